"""Decode a group of files into shards; files that are unchanged since an earlier ingest are not decoded again."""

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

from components.ingest import decoded_records, file_formats
from components.ingest.burned_in_text import find_text
from components.ingest.decoded_records import ROW_SCHEMA, DecodedGroup, FileRow, Shard
from components.ingest.perceptual_hash import perceptual_hash
from components.ingest.shard_groups import Group
from components.shared.contracts import digest
from components.shared.datasets.dataset import ShardWriter, pixel_digest, read_shard
from components.shared.errors import RefusedError, UnavailableError
from components.shared.imaging.decode_sandbox import limit_resources, limits
from components.shared.imaging.image_files import Decoding, Master
from components.shared.imaging.views import Pixels
from components.shared.privacy import keyed_hash, pseudonyms
from components.shared.privacy.keyed_hash import HashKey
from components.shared.runtime.events import configure_logging, log
from components.shared.storage.image_source import CHANGED, Bucket, Entry, Source, open_source
from components.shared.storage.store import Store, open_store

AHEAD = 4
"""Maximum number of objects of a bucket that are downloaded ahead of decoding."""
MAX_BYTES = 2**31
"""Maximum size of a file in bytes."""
LARGE = 2**28
"""Size in bytes above which a shard is closed; the group's next image starts a new one."""
EMPTY_ROW: FileRow = {
    **dict.fromkeys(("problem", "pixel_digest", "look", "patient", "sex", "site", "view", "modality"), ""),
    **dict.fromkeys(("frame", "shard", "row", "age"), -1),
    **dict.fromkeys(("height", "width", "bits"), 0),
    "notes": "[]",
}


class DecodedImage(NamedTuple):
    """An image of a file with its metadata, or a file's problem."""

    row_data: FileRow
    pixels: Pixels | None


class Task(NamedTuple):
    """A group to decode."""

    group: Group
    earlier: Sequence[str]
    """Names of the groups whose records may contain these files."""
    decoding: Decoding
    store_uri: str
    source_address: str
    refused: Mapping[str, str] = {}
    """Files that crashed a decoding process, with the reason; they are not decoded again."""
    partial: DecodedGroup | None = None
    """Result for the first files of the group, if a crash interrupted this task."""
    stop_before: str = ""
    """File before which to stop; if empty, all are decoded and the group's record is written to the store."""


def decode_task(task: Task) -> bytes:
    """Decode a group in a separate process; return the pickled result or exception."""
    configure_logging()
    try:
        return pickle.dumps(decode(task))
    except Exception as error:
        error.add_note(traceback.format_exc())
        return pickle.dumps(error)


def decode(task: Task) -> DecodedGroup:
    """Decode a group's files, and write its shards and its record to the store."""
    group, decoding = task.group, task.decoding
    if task.stop_before:
        group = replace(group, members=[member for member in group.members if member[0] < task.stop_before])
    store, key, prefix = (
        open_store(task.store_uri),
        keyed_hash.from_environment(),
        decoded_records.record_prefix(decoding),
    )
    earlier_groups = [result for name in task.earlier if (result := decoded_records.read(store, prefix, name))]
    earlier_results = _EarlierResults([task.partial, *earlier_groups] if task.partial else earlier_groups, store)
    source = open_source(task.source_address)
    changed = [(file, entry) for file, entry in group.members if not earlier_results.is_current(file, entry)]
    contents = _contents(source, changed)
    changed_files = {file for file, _ in changed}
    ahead = [entry.size for _, entry in changed] if isinstance(source, Bucket) else []
    rows: list[FileRow] = []
    decoded = 0
    with ExitStack() as stack:
        shards = _ShardsWriter(store, stack)
        for file, entry in group.members:
            data = next(contents) if file in changed_files else None
            ahead = ahead[1:] if file in changed_files else ahead
            content_digest = digest(data) if data is not None else earlier_results.rows[file][0]["source_digest"]
            identity = {"file": file, "size": entry.size, "version": entry.version, "source_digest": content_digest}
            images = earlier_results.images(file, content_digest)
            guard: AbstractContextManager[None] = nullcontext()
            if images is None and file in task.refused:
                images = iter([_unusable(file, task.refused[file])])
            elif images is None:
                decoded += 1
                data = _read(source, entry, file) if data is None else data
                images = _decode_file(data, file, entry, decoding, key)
                guard = limit_resources(limits(data), file, sum(ahead[:AHEAD]))
            with guard:
                for row_data, pixels in images:
                    shard, row = (-1, -1) if pixels is None else shards.add(pixels)
                    rows.append({**EMPTY_ROW, **row_data, **identity, "shard": shard, "row": row})
        shards_written = shards.close()
    result = DecodedGroup(group.name, shards_written, pa.Table.from_pylist(rows, schema=ROW_SCHEMA), decoded)
    if not task.stop_before:
        decoded_records.write(store, prefix, result)
    return result


class _ShardsWriter:
    """Writes the shards of a group: one, or more if the first becomes too large."""

    def __init__(self, store: Store, stack: ExitStack) -> None:
        self._store, self._stack = store, stack
        self._shards: list[Shard] = []
        self._writer: ShardWriter | None = None
        self._path, self._bytes = Path(), 0

    def add(self, pixels: Pixels) -> tuple[int, int]:
        """Write one master; return its shard's number within the group and its row."""
        if self._bytes > LARGE:
            self.close()
        if self._writer is None:
            self._path, self._bytes = self._stack.enter_context(self._store.making()), 0
            self._writer = ShardWriter(self._path)
            self._stack.callback(self._writer.abandon)
        self._bytes += pixels.nbytes
        return len(self._shards), self._writer.add(pixels)

    def close(self) -> list[Shard]:
        """Finish the current shard; return all shards of the group."""
        if self._writer is not None:
            blob = self._store.put_file(self._path, self._writer.close())
            self._shards.append(Shard(blob.digest, blob.size, self._writer.rows))
            self._path.unlink()
            self._writer, self._bytes = None, 0
        return self._shards


class _EarlierResults:
    """Results of earlier ingests; for each file the first group takes precedence."""

    def __init__(self, groups: Sequence[DecodedGroup], store: Store) -> None:
        self.rows: dict[str, list[FileRow]] = defaultdict(list)
        self._store = store
        self._shards_by_file: dict[str, list[Shard]] = {}
        self._pixels_by_shard: dict[str, dict[int, Pixels] | None] = {}
        for group in groups:
            known_files = set(self._shards_by_file)
            for row_data in group.rows.to_pylist():
                if row_data["file"] not in known_files:
                    self._shards_by_file[row_data["file"]] = group.shards
                    self.rows[row_data["file"]].append(row_data)

    def is_current(self, file: str, entry: Entry) -> bool:
        """Whether a file has the same size and version as when it was decoded."""
        last = self.rows[file][0] if self.rows[file] else {}
        return bool(entry.version) and (last.get("size"), last.get("version")) == (entry.size, entry.version)

    def images(self, file: str, source_digest: str) -> Iterator[DecodedImage] | None:
        """Return the known images of this content; None if unknown or lost."""
        rows = self.rows[file]
        if not rows or rows[0]["source_digest"] != source_digest:
            return None
        shards = self._shards_by_file[file]
        masters = {
            number: self._pixels(shards[number].digest) for number in {row_data["shard"] for row_data in rows} - {-1}
        }
        if any(pixels is None for pixels in masters.values()):
            return None
        return (
            DecodedImage(row_data, (masters.get(row_data["shard"]) or {}).get(row_data["row"])) for row_data in rows
        )

    def _pixels(self, shard: str) -> dict[int, Pixels] | None:
        if shard not in self._pixels_by_shard:
            self._pixels_by_shard[shard] = None
            with suppress(FileNotFoundError):
                try:
                    self._pixels_by_shard[shard] = dict(enumerate(read_shard(self._store.fetch(shard))))
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    why = f"the content of shard {shard[:12]} does not match its digest; its files are decoded again"
                    log.warning("shard damaged", extra={"fields": {"stage": "ingest", "why": why}})
                    self._store.discard(shard)
        return self._pixels_by_shard[shard]


def _decode_file(data: bytes, file: str, entry: Entry, decoding: Decoding, key: HashKey) -> Iterator[DecodedImage]:
    try:
        if entry.size > MAX_BYTES:
            raise RefusedError(f"the file has {entry.size:,} bytes; the maximum is {MAX_BYTES:,}")
        for master in file_formats.read_images(data, decoding):
            yield DecodedImage(_describe(master, key.image(entry.name, master.frame), key), master.pixels)
    except ValueError as error:
        yield _unusable(file, str(error))


def _unusable(file: str, why: str) -> DecodedImage:
    return DecodedImage({"image_id": file, "problem": why}, None)


def _describe(master: Master, image_id: str, key: HashKey) -> FileRow:
    pixels, notes = master.pixels, [*master.notes]
    header_values = pseudonyms.pseudonymise(master.header, key) if master.header else {}
    if what := find_text(pixels):
        notes.append(("writing in the image", what))
    return {
        "image_id": image_id,
        "frame": master.frame,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "bits": master.bits,
        "pixel_digest": pixel_digest(pixels),
        "look": perceptual_hash(pixels),
        "notes": json.dumps(notes) if notes else "[]",
        "patient": header_values.get("patient_hash", ""),
        "age": int(header_values.get("age") or -1),
        **{name: header_values.get(name, "") for name in ("sex", "site", "view", "modality")},
    }


def _contents(source: Source, files: Sequence[tuple[str, Entry]]) -> Iterator[bytes]:
    """Yield the files' contents in order; read ahead from buckets, which are slow."""
    if not isinstance(source, Bucket):
        yield from (_read(source, entry, file) for file, entry in files)
        return
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        try:
            for file, entry in files:
                pending.append(pool.submit(_read, source, entry, file))
                if len(pending) == AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
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
        raise  # not specific to this file
    except OSError as error:
        if not error.strerror:
            raise type(error)(f"{error} It concerned the file {file[:12]}.") from None
        raise OSError(
            f"A file of the source cannot be read ({error.strerror}): {file[:12]}. Make all files readable; file names "
            "are not logged, `medloop data locate` prints them."
        ) from None
