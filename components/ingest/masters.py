"""Decodes files into shards of master pixels, each group of files once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from components.shared import keys
from components.shared.contracts import digest, encode, fingerprint, try_decode
from components.shared.dataset import write_shard
from components.shared.pixels import Pixels, decode_image
from components.shared.source import CHANGED, Entry, Source, open_source
from components.shared.store import Store, open_store
from components.shared.work import package_versions

DECODER = 1
"""Counts the changes in decoding that give other masters; part of every shard's key."""
GROUP = 128
"""The mean number of files in a shard."""
AHEAD = 4
"""How many files are on their way, or wait in memory, while one is decoded."""


@dataclass(frozen=True)
class Shard:
    """One shard in the store, and what became of each file that belongs to it, by source digest."""

    digest: str
    size: int
    files: dict[str, dict[str, Any]]


def group(digests: list[str]) -> list[list[str]]:
    """Source digests in groups that depend on the set of files alone, not on the order or the time of their arrival.

    A group ends after a digest that happens to be a multiple of GROUP, so a new file changes the group it falls into
    and leaves the others, and their shards, as they were.
    """
    groups: list[list[str]] = [[]]
    for name in sorted(set(digests)):
        groups[-1].append(name)
        if int(name[:12], 16) % GROUP == 0:
            groups.append([])
    return [members for members in groups if members]


def decode_groups(store: Store, source: Source, files: dict[str, Entry], max_side: int) -> Iterator[Shard]:
    """The shards of these files (digest → a file that holds it), decoded side by side, known ones at once."""
    groups = group(list(files))
    waiting = []
    for members in groups:
        shard = _shard(try_decode("shard", store.read(_record_name(members, max_side))))
        if shard and (not shard.digest or store.has(shard.digest)):
            yield shard
        else:
            waiting.append(members)
    tasks = [([(name, files[name]) for name in members], max_side, store.uri, source.address) for members in waiting]
    workers = min(len(tasks), len(os.sched_getaffinity(0)))
    if workers <= 1:
        for task in tasks:
            yield _decode_group(*task)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(_decode_group, *task) for task in tasks]
        for future in as_completed(pending):
            yield future.result()


def _decode_group(members: list[tuple[str, Entry]], max_side: int, store_uri: str, address: str) -> Shard:
    key, store = keys.from_environment(), open_store(store_uri)
    images: list[Pixels] = []
    files: dict[str, dict[str, Any]] = {}
    contents = _contents(open_source(address), [entry for _, entry in members])
    for (source_digest, _), data in zip(members, contents, strict=True):
        if digest(data) != source_digest:
            raise RuntimeError(CHANGED)
        try:
            master = decode_image(data, max_side)
        except ValueError as error:
            files[source_digest] = {"problem": str(error)}
            continue
        header = dict(master.header)
        if patient := header.pop("patient_id", ""):
            header["patient_hash"] = key.hash("patient", patient)  # the name itself goes no further
        files[source_digest] = {
            "row": len(images),
            "height": master.pixels.shape[0],
            "width": master.pixels.shape[1],
            "bits": master.bits,
            "pixel_digest": pixel_digest(master.pixels),
            "header": header,
        }
        images.append(master.pixels)
    shard = _keep(store, images, files)
    record = {"shard": shard.digest, "size": shard.size, "files": shard.files}
    store.write(_record_name([name for name, _ in members], max_side), encode("shard", record))
    return shard


def _contents(source: Source, entries: list[Entry]) -> Iterator[bytes]:
    """The files' contents in order, a few read ahead: a bucket answers slower than an image is decoded."""

    def read(entry: Entry) -> bytes:
        with source.file(entry) as path:
            return path.read_bytes()

    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        try:
            for entry in entries:
                waiting.append(pool.submit(read, entry))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _keep(store: Store, images: list[Pixels], files: dict[str, dict[str, Any]]) -> Shard:
    if not images:
        return Shard("", 0, files)
    with TemporaryDirectory(prefix="medloop-shard-") as scratch:
        path = Path(scratch) / "shard"
        write_shard(images, path)
        blob = store.put_file(path)
    return Shard(blob.digest, blob.size, files)


def pixel_digest(pixels: Pixels) -> str:
    """The digest of an image as pixels, whatever file it came in."""
    head = json.dumps([str(pixels.dtype), list(pixels.shape)]).encode()
    return hashlib.sha256(head + pixels.tobytes()).hexdigest()


def _record_name(members: list[str], max_side: int) -> str:
    made_by = [DECODER, package_versions("ingest"), max_side, keys.from_environment().id]
    return f"masters/{fingerprint([*made_by, members])}.json"


def _shard(record: dict[str, Any] | None) -> Shard | None:
    return Shard(record["shard"], record["size"], record["files"]) if record else None
