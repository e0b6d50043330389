"""The masters of a source's files: what was decoded before is taken from the store, the rest decoded side by side."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from components.ingest import records
from components.ingest.decode import Task
from components.ingest.groups import Group, overlapping
from components.ingest.records import Masters
from components.shared.errors import UnavailableError
from components.shared.imaging.decoder import Decoder, EndedError, Template
from components.shared.imaging.pixels import Decoding
from components.shared.runtime.threads import count_threads
from components.shared.storage.source import Source

if TYPE_CHECKING:
    from components.shared.storage.store import Store

AT_ONCE = 8
"""How many records are read side by side."""
WORK = "components.ingest.decode:work"
"""What a decoding process runs."""


def masters(store: Store, source: Source, groups: Sequence[Group], how: Decoding) -> Iterator[Masters]:
    """The masters of each group: known ones first, the others as they get done."""
    where = records.place(how)
    known = records.names(store, where)
    waiting = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        looked_up = pool.map(lambda each: records.unchanged(store, where, each), groups)
        for group, found in zip(groups, looked_up, strict=True):
            if found:
                yield found
            else:
                waiting.append(group)
    tasks = [Task(group, overlapping(known, group), how, store.uri, source.address) for group in waiting]
    if not tasks:
        return
    decoders = _Decoders()
    pool = ThreadPoolExecutor(min(len(tasks), count_threads()), "decode")
    try:
        for future in as_completed([pool.submit(decoders.decode, task) for task in tasks]):
            yield future.result()
    finally:
        decoders.end()
        pool.shutdown(cancel_futures=True)
        decoders.close()


class _Decoders:
    """A decoding process for each thread that asks for one."""

    def __init__(self) -> None:
        self._template = Template(WORK)
        self._own = threading.local()
        self._all: list[Decoder] = []
        self._door, self._closed = threading.Lock(), False

    def decode(self, task: Task) -> Masters:
        """The masters of a group. A file that ends its process is refused, and the others are decoded all the same."""
        while True:
            decoder = self._decoder()
            decoder.send(task)
            try:
                answer = pickle.loads(decoder.receive())  # noqa: S301 - the process may write to the store as we may
            except EndedError as end:
                self._own.decoder = None
                if end.why == "killed" or not end.note:
                    raise UnavailableError(
                        f"One of {len(self._all)} decoding processes was killed, likely for want of memory. Give the "
                        "step more memory or fewer processors, and run again: what was decoded is kept."
                    ) from None
                task = task._replace(refused={**task.refused, end.note: end.sentence()})
                # What comes before that file is decoded a second time and kept, so that no further file costs it again.
                task = task._replace(begun=self.decode(task._replace(upto=end.note)))
                continue
            if isinstance(answer, Exception):
                raise answer
            assert isinstance(answer, Masters)
            return answer

    def _decoder(self) -> Decoder:
        if getattr(self._own, "decoder", None) is None:
            with self._door:
                if self._closed:
                    raise UnavailableError("The step is ending.")
                self._own.decoder = Decoder(self._template)
                self._all.append(self._own.decoder)
        found: Decoder = self._own.decoder
        return found

    def end(self) -> None:
        """End all processes, whatever they do, so that the threads that wait for them end, too."""
        with self._door:
            self._closed = True
            for decoder in self._all:
                decoder.kill()

    def close(self) -> None:
        """Let go of the processes, for which no thread may wait any more."""
        self._template.close()
        for decoder in self._all:
            decoder.close()
