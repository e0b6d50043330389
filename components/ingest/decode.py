"""From the files of a group to its shard: what is new or has changed is decoded, the rest is taken from before."""

from __future__ import annotations

import errno
import json
import pickle
import traceback
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from components.ingest import readers, records
from components.ingest.groups import Group
from components.ingest.look import look
from components.ingest.records import FACTS, Fact, Masters, Shard
from components.ingest.text import text_like
from components.shared.contracts import digest
from components.shared.datasets.dataset import ShardWriter, pixel_digest, read_shard
from components.shared.errors import RefusedError, UnavailableError
from components.shared.imaging import header
from components.shared.imaging.decoder import limited, limits
from components.shared.imaging.pixels import Decoding, Master, Pixels
from components.shared.privacy import hash_keys
from components.shared.privacy.hash_keys import HashKey
from components.shared.runtime.events import configure_logging, log
from components.shared.storage.source import CHANGED, Bucket, Entry, Source, open_source
from components.shared.storage.store import Store, open_store

AHEAD = 4
"""How many objects of a bucket are on their way, or wait in memory, while one is decoded."""
MAX_BYTES = 2**31
"""A file of more bytes is not read."""
LARGE = 2**28
"""A shard of more bytes is ended, and the group's next image begins another."""
NOTHING: Fact = {
    **dict.fromkeys(("problem", "pixel_digest", "look", "patient", "sex", "site", "view", "modality"), ""),
    **dict.fromkeys(("frame", "shard", "row", "age"), -1),
    **dict.fromkeys(("height", "width", "bits"), 0),
    "notes": "[]",
}


class Picture(NamedTuple):
    """An image of a file with what is known of it, or a file's problem."""

    fact: Fact
    pixels: Pixels | None


class Task(NamedTuple):
    """A group to decode."""

    group: Group
    earlier: Sequence[str]
    """Names of the records that may hold these files."""
    how: Decoding
    store_uri: str
    address: str
    refused: Mapping[str, str] = {}
    """Files that ended a process which was decoding them, with the reason; they are not tried again."""
    begun: Masters | None = None
    """The first files of the group, if they were decoded before; then `upto` is not set."""
    upto: str = ""
    """The file before which to stop; without it all are decoded, and the group's record is written to the store."""


def work(task: Task) -> bytes:
    """Decode a group in a process of its own; returns a pickled Masters, or the exception."""
    configure_logging()
    try:
        return pickle.dumps(decode(task))
    except Exception as error:
        error.add_note(traceback.format_exc())
        return pickle.dumps(error)


def decode(task: Task) -> Masters:
    """The masters of a group's files, and the record of them in the store."""
    group, how = task.group, task.how
    if task.upto:
        group = replace(group, members=[member for member in group.members if member[0] < task.upto])
    store, key, where = open_store(task.store_uri), hash_keys.from_environment(), records.place(how)
    known_before = [found for name in task.earlier if (found := records.read(store, where, name))]
    before = _Before([task.begun, *known_before] if task.begun else known_before, store)
    source = open_source(task.address)
    fresh = [(file, entry) for file, entry in group.members if not before.holds(file, entry)]
    contents = _contents(source, fresh)
    waiting = {file for file, _ in fresh}
    ahead = [entry.size for _, entry in fresh] if isinstance(source, Bucket) else []
    facts: list[Fact] = []
    decoded = 0
    with ExitStack() as stack:
        shards = _Shards(store, stack)
        for file, entry in group.members:
            data = next(contents) if file in waiting else None
            ahead = ahead[1:] if file in waiting else ahead
            known = digest(data) if data is not None else before.facts[file][0]["source_digest"]
            about = {"file": file, "size": entry.size, "version": entry.version, "source_digest": known}
            pictures, guard = before.pictures(file, known), _unlimited()
            if pictures is None and file in task.refused:
                pictures = iter([_problem(file, task.refused[file])])
            elif pictures is None:
                decoded += 1
                data = _read(source, entry, file) if data is None else data
                pictures, guard = _pictures(data, file, entry, how, key), _limited(data, file, sum(ahead[:AHEAD]))
            with guard:
                for fact, pixels in pictures:
                    shard, row = (-1, -1) if pixels is None else shards.add(pixels)
                    facts.append({**NOTHING, **fact, **about, "shard": shard, "row": row})
        kept = shards.close()
    found = Masters(group.name, kept, pa.Table.from_pylist(facts, schema=FACTS), decoded)
    if not task.upto:
        records.write(store, where, found)
    return found


class _Shards:
    """The shards of a group: one, and further ones where files hold so many images that it grows too large."""

    def __init__(self, store: Store, stack: ExitStack) -> None:
        self._store, self._stack = store, stack
        self._kept: list[Shard] = []
        self._writer: ShardWriter | None = None
        self._path, self._bytes = Path(), 0

    def add(self, pixels: Pixels) -> tuple[int, int]:
        """Write one master; gives its shard's number in the group, and its row there."""
        if self._bytes > LARGE:
            self.close()
        if self._writer is None:
            self._path, self._bytes = self._stack.enter_context(self._store.making()), 0
            self._writer = ShardWriter(self._path)
            self._stack.callback(self._writer.abandon)
        self._bytes += pixels.nbytes
        return len(self._kept), self._writer.add(pixels)

    def close(self) -> list[Shard]:
        """End the shard that is being written; gives all of the group."""
        if self._writer is not None:
            blob = self._store.put_file(self._path, self._writer.close())
            self._kept.append(Shard(blob.digest, blob.size, self._writer.rows))
            self._path.unlink()
            self._writer, self._bytes = None, 0
        return self._kept


class _Before:
    """What earlier records tell of files, and the pixels in their shards."""

    def __init__(self, found: Sequence[Masters], store: Store) -> None:
        self.facts: dict[str, list[Fact]] = defaultdict(list)
        self._store = store
        self._shards_of: dict[str, list[Shard]] = {}  # of each file the record that is read first tells
        self._shards: dict[str, dict[int, Pixels] | None] = {}
        for each in found:
            told = set(self._shards_of)
            for fact in each.facts.to_pylist():
                if fact["file"] not in told:
                    self._shards_of[fact["file"]] = each.shards
                    self.facts[fact["file"]].append(fact)

    def holds(self, file: str, entry: Entry) -> bool:
        """Whether what is known of a file is surely so of its present content."""
        known = self.facts[file][0] if self.facts[file] else {}
        return bool(entry.version) and (known.get("size"), known.get("version")) == (entry.size, entry.version)

    def pictures(self, file: str, source_digest: str) -> Iterator[Picture] | None:
        """The images that a file's content gave before; None if it was not decoded yet, or they are lost."""
        facts = self.facts[file]
        if not facts or facts[0]["source_digest"] != source_digest:
            return None
        shards = self._shards_of[file]
        found = {number: self._pixels(shards[number].digest) for number in {fact["shard"] for fact in facts} - {-1}}
        if any(pixels is None for pixels in found.values()):
            return None
        return (Picture(fact, (found.get(fact["shard"]) or {}).get(fact["row"])) for fact in facts)

    def _pixels(self, shard: str) -> dict[int, Pixels] | None:
        if shard not in self._shards:
            self._shards[shard] = None
            with suppress(FileNotFoundError):
                try:
                    self._shards[shard] = dict(enumerate(read_shard(self._store.fetch(shard))))
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    why = f"the shard {shard[:12]} does not hold what its name says, so its files are decoded again"
                    log.warning("shard damaged", extra={"fields": {"stage": "ingest", "why": why}})
                    self._store.discard(shard)
        return self._shards[shard]


def _pictures(data: bytes, file: str, entry: Entry, how: Decoding, key: HashKey) -> Iterator[Picture]:
    try:
        if entry.size > MAX_BYTES:
            raise RefusedError(f"the file has {entry.size:,} bytes; at most {MAX_BYTES:,} are read")
        for master in readers.read(data, how):
            yield Picture(_described(master, key.image(entry.name, master.frame), key), master.pixels)
    except ValueError as error:
        yield _problem(file, str(error))


def _problem(file: str, why: str) -> Picture:
    return Picture({"image_id": file, "problem": why}, None)


def _limited(data: bytes, file: str, ahead: int) -> AbstractContextManager[None]:
    return limited(limits(data), file, ahead)


def _unlimited() -> AbstractContextManager[None]:
    return nullcontext()


def _described(master: Master, image_id: str, key: HashKey) -> Fact:
    pixels, notes = master.pixels, [*master.notes]
    said = header.pseudonymous(master.header, key) if master.header else {}
    if what := text_like(pixels):
        notes.append(("writing in the image", what))
    return {
        "image_id": image_id,
        "frame": master.frame,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "bits": master.bits,
        "pixel_digest": pixel_digest(pixels),
        "look": look(pixels),
        "notes": json.dumps(notes) if notes else "[]",
        "patient": said.get("patient_hash", ""),
        "age": int(said.get("age") or -1),
        **{name: said.get(name, "") for name in ("sex", "site", "view", "modality")},
    }


def _contents(source: Source, files: Sequence[tuple[str, Entry]]) -> Iterator[bytes]:
    """The files' contents in order; of a bucket, which answers slower than an image is decoded, a few read ahead."""
    if not isinstance(source, Bucket):
        yield from (_read(source, entry, file) for file, entry in files)
        return
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        try:
            for file, entry in files:
                waiting.append(pool.submit(_read, source, entry, file))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(source: Source, entry: Entry, file: str) -> bytes:
    if entry.size > MAX_BYTES:
        return b""
    try:
        return source.read(entry)
    except FileNotFoundError:
        raise UnavailableError(CHANGED) from None
    except ConnectionError:
        raise  # that is no matter of one file
    except OSError as error:
        if not error.strerror:
            raise type(error)(f"{error} It was about the file {file[:12]}.") from None
        raise OSError(
            f"A file of the source cannot be read ({error.strerror}): {file[:12]}. Make all of it readable; names of "
            "files are not written down here, `medloop data locate` tells them."
        ) from None
