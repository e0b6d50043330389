"""Decode groups of files in parallel processes; unchanged groups come from the store."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

from components.ingest import decoded_records
from components.ingest.decode_group import Task
from components.ingest.decoded_records import DecodedGroup
from components.ingest.shard_groups import Group, overlapping
from components.shared.errors import UnavailableError
from components.shared.imaging.decode_sandbox import Decoder, EndedError, Template
from components.shared.imaging.image_files import Decoding
from components.shared.runtime.threads import count_threads
from components.shared.storage.image_source import Source

if TYPE_CHECKING:
    from components.shared.storage.store import Store

READERS = 8
"""Number of threads that read records."""
DECODE_TASK = "components.ingest.decode_group:decode_task"
"""The function that a decoding process runs."""


def decode_groups(store: Store, source: Source, groups: Sequence[Group], decoding: Decoding) -> Iterator[DecodedGroup]:
    """Yield the result of each group: unchanged ones first, the others as they finish."""
    prefix = decoded_records.record_prefix(decoding)
    recorded = decoded_records.group_names(store, prefix)
    changed = []
    with ThreadPoolExecutor(READERS) as executor:
        unchanged = executor.map(lambda group: decoded_records.read_unchanged(store, prefix, group), groups)
        for group, decoded_group in zip(groups, unchanged, strict=True):
            if decoded_group:
                yield decoded_group
            else:
                changed.append(group)
    tasks = [Task(group, overlapping(recorded, group), decoding, store.uri, source.address) for group in changed]
    if not tasks:
        return
    decoder_pool = _DecoderPool()
    executor = ThreadPoolExecutor(min(len(tasks), count_threads()), "decode")
    try:
        for future in as_completed([executor.submit(decoder_pool.decode, task) for task in tasks]):
            yield future.result()
    finally:
        decoder_pool.end()
        executor.shutdown(cancel_futures=True)
        decoder_pool.close()


class _DecoderPool:
    """One decoding process per thread, started on first use."""

    def __init__(self) -> None:
        self._template = Template(DECODE_TASK)
        self._thread = threading.local()
        self._decoders: list[Decoder] = []
        self._lock, self._closed = threading.Lock(), False

    def decode(self, task: Task) -> DecodedGroup:
        """Decode a group, and refuse a file that crashes its process."""
        while True:
            decoder = self._decoder()
            decoder.send(task)
            try:
                answer = pickle.loads(decoder.receive())  # noqa: S301 - the process has no fewer rights than this one
            except EndedError as end:
                self._thread.decoder = None
                if end.cause == "killed" or not end.note:
                    raise UnavailableError(
                        f"One of {len(self._decoders)} decoding processes was killed, probably for lack of memory. "
                        "Give the step more memory or fewer processors, and run again; finished groups are kept."
                    ) from None
                task = task._replace(refused={**task.refused, end.note: end.sentence()})
                # Decode the files before it once more and keep the result, in case a later file crashes too.
                task = task._replace(partial=self.decode(task._replace(stop_before=end.note)))
                continue
            if isinstance(answer, Exception):
                raise answer
            assert isinstance(answer, DecodedGroup)
            return answer

    def _decoder(self) -> Decoder:
        if getattr(self._thread, "decoder", None) is None:
            with self._lock:
                if self._closed:
                    raise UnavailableError("The step is ending.")
                self._thread.decoder = Decoder(self._template)
                self._decoders.append(self._thread.decoder)
        decoder: Decoder = self._thread.decoder
        return decoder

    def end(self) -> None:
        """Kill all processes, so that the threads waiting for them end too."""
        with self._lock:
            self._closed = True
            for decoder in self._decoders:
                decoder.kill()

    def close(self) -> None:
        """Release all processes. Call it when no thread waits for them."""
        self._template.close()
        for decoder in self._decoders:
            decoder.close()
