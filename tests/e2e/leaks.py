"""Looks for planted words in all that a directory holds, in whatever form it is written down."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_BASE64 = re.compile(rb"[A-Za-z0-9+/]{40,}={0,2}")
_DEPTH = 4


def found_in(folder: Path, words: Iterable[str], leave: Iterable[Path] = ()) -> list[str]:
    """Each word that stands in a file of the folder or in its name, with the file: "word in path"."""
    needles = {word: forms(word) for word in words}
    left = set(leave)
    hits = []
    for path in sorted(folder.rglob("*")):
        if path in left or left & set(path.parents):
            continue
        name = path.relative_to(folder).as_posix()
        hits += [f"{word} in the name {name}" for word in found(name.encode(), needles)]
        if path.is_file() and not path.is_symlink():
            hits += [f"{word} in {name}" for word in found(path.read_bytes(), needles)]
    return hits


def found(data: bytes, needles: dict[str, set[bytes]]) -> list[str]:
    """The words that stand in these bytes, or in what they hold packed."""
    hits = {
        word: None
        for layer in map(bytes.lower, unpacked(data))
        for word, written in needles.items()
        if any(needle in layer for needle in written)
    }
    return list(hits)


def forms(word: str) -> set[bytes]:
    """A word as text in UTF-8 or UTF-16, as hexadecimal digits, and as a plain hash of it, all in lower case."""
    written = set()
    for spelt in {word, word.lower(), word.upper(), word.capitalize()}:
        plain, wide = spelt.encode(), spelt.encode("utf-16-le")
        written |= {plain.lower(), wide.lower(), plain.hex().encode(), wide.hex().encode()}
        written |= {getattr(hashlib, name)(plain).hexdigest().encode() for name in ("md5", "sha1", "sha256")}
    return written


def unpacked(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """These bytes, and those that they hold: compressed, archived, in a table, a database, or as base64."""
    yield data
    if depth == _DEPTH:
        return
    for inner in _inside(data):
        yield from unpacked(inner, depth + 1)


def _inside(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"\x1f\x8b"):
        yield gzip.decompress(data)
    elif data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield archive.read(name)
    elif data.startswith(b"PAR1"):
        yield from _table(pq.read_table(io.BytesIO(data)))
    elif data.startswith(b"ARROW1"):
        yield from _table(pa.ipc.open_file(data).read_all())
    elif data.startswith(b"SQLite format 3\0"):
        with sqlite3.connect(":memory:") as database:
            database.deserialize(data)
            yield "\n".join(database.iterdump()).encode()
        database.close()
    elif data.startswith(b"\x89PNG"):
        yield from _png_texts(data)
    elif b"\0" not in data[:1024]:
        yield from _base64s(data)


def _table(table: pa.Table) -> Iterator[bytes]:
    yield repr(table.schema.metadata).encode()
    for column in table.columns:
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            continue  # numbers: classes, and pixels
        yield "\n".join(map(str, column.to_pylist())).encode()


def _png_texts(data: bytes) -> Iterator[bytes]:
    for start in re.finditer(rb"zTXt[^\0]{1,79}\0\0", data):
        yield zlib.decompressobj().decompress(data[start.end() :])


def _base64s(data: bytes) -> Iterator[bytes]:
    for run in _BASE64.findall(data):
        text = run.rstrip(b"=")
        yield base64.b64decode(text[: len(text) // 4 * 4])
