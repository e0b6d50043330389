"""What passes between the stages: annotations, manifests and JSON records. Standard library only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from components.shared.errors import RefusedError
from components.shared.parsing import file_names
from components.shared.parsing.json_documents import parse_json

In = Annotated[Path, "in"]
"""A stage's argument that is a directory to read."""

Ins = Annotated[Path, "ins"]
"""A stage's argument that is a directory to read, with a directory in it for each of several artifacts."""

Out = Annotated[Path, "out"]
"""A stage's argument that is a directory to fill."""


class Between(NamedTuple):
    """The closed range a number parameter may take; stands in an annotation."""

    low: float
    high: float


class OneOf(NamedTuple):
    """The values a text parameter may take; stands in an annotation."""

    values: tuple[str, ...]


SCHEMAS = {
    "manifest": 1,
    "result": 1,
    "ref": 1,
    "error": 2,  # of schema 1 some hold faults of ours: they count as none
    "resolved": 1,
    "portion": 1,
    "dataset": 2,
    "split": 2,
    "bundle": 1,
    "metrics": 2,
    "decision": 2,
    "lost": 1,
    "release": 1,
    "approval": 1,
    "lease": 1,
    "run": 1,
    "step": 1,
    "signature": 1,
    "sealed": 1,
    "lineage": 1,
    "heads": 1,
    "view": 1,
}
"""Every kind of JSON record and the one version of it that this code reads and writes."""


LOST = "lost.json"
"""What stands in the place of a model in service whose files the store has lost: its digest, and why."""


def encode(kind: str, record: dict[str, Any]) -> bytes:
    """The canonical bytes of a record: sorted keys, its schema number, a newline at the end."""
    document = {"kind": kind, "schema": SCHEMAS[kind], **record}
    return (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode(kind: str, data: bytes, where: str) -> dict[str, Any]:
    """The record in `data`; refuses what is not JSON, another kind, or a schema that this code does not know."""
    try:
        document = parse_json(data)
    except ValueError as error:
        raise RefusedError(f"{where} is not a JSON {kind}: {error}. It was cut or changed; make it again.") from None
    return check(kind, document, where)


def check(kind: str, document: Any, where: str) -> dict[str, Any]:
    """The document, if it is a record of this kind and of the schema that this code knows."""
    found = document.get("kind") if isinstance(document, dict) else type(document).__name__
    if found != kind:
        raise RefusedError(f"{where} holds a {found!r}, where a {kind!r} is expected. Hand in the right file.")
    if document.get("schema") != SCHEMAS[kind]:
        raise RefusedError(
            f"{where} is a {kind} of schema {document.get('schema')!r}; this version of medloop reads schema "
            f"{SCHEMAS[kind]}. Use the version that wrote it, or make it again."
        )
    return dict(document)


def try_decode(kind: str, data: bytes | None) -> dict[str, Any] | None:
    """The record in `data`, or None where there is none or it is damaged: for records that can be made again."""
    try:
        return decode(kind, data, kind) if data is not None else None
    except ValueError:
        return None


def digest(data: bytes) -> str:
    """The SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: object) -> str:
    """The digest of any JSON-able value, whatever the order of its keys."""
    return digest(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode())


@dataclass(frozen=True)
class Blob:
    """One file's content in the store: its digest and its size in bytes."""

    digest: str
    size: int


def is_digest(text: object) -> bool:
    """Return whether this is a SHA-256 in hexadecimal, which is the only thing that names an object."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def _is_sound(blob: Blob) -> bool:
    return is_digest(blob.digest) and type(blob.size) is int and blob.size >= 0


@dataclass(frozen=True)
class Manifest:
    """The small file that stands for an artifact: names of files, and the objects that hold them.

    An artifact without files means "there is none" (no model in service, no split before this one). One that stands for
    several names them: its parts.
    """

    files: dict[str, Blob] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    @staticmethod
    def of(several: Iterable[Manifest]) -> Manifest:
        """The one that stands for several, in whatever order they come: a directory for each."""
        members = sorted(several, key=lambda member: member.digest)
        files = {f"{n:05}/{name}": blob for n, member in enumerate(members) for name, blob in member.files.items()}
        return Manifest(files, tuple(member.digest for member in members))

    def encode(self) -> bytes:
        """Its canonical bytes."""
        files = {name: {"digest": blob.digest, "size": blob.size} for name, blob in self.files.items()}
        return encode("manifest", {"files": files} | ({"parts": list(self.parts)} if self.parts else {}))

    @staticmethod
    def decode(data: bytes, where: str) -> Manifest:
        """The manifest in `data`, or a ValueError that names `where`."""
        record = decode("manifest", data, where)
        try:
            files = {name: Blob(entry["digest"], entry["size"]) for name, entry in record["files"].items()}
            manifest = Manifest(files, tuple(record.get("parts", ())))
            sound = all(map(is_digest, manifest.parts)) and all(map(_is_sound, files.values()))
        except (KeyError, TypeError, AttributeError):
            sound = False
        if sound:
            file_names.check_names(files, where)
        if not sound or manifest.encode() != data:  # else files that differ would go by the same digest
            raise RefusedError(f"{where} is no manifest as medloop writes it. It was changed; make it again.")
        return manifest

    @property
    def digest(self) -> str:
        """What names this artifact everywhere: the digest of its bytes."""
        return digest(self.encode())

    @property
    def bytes(self) -> int:
        """The size of all its files together."""
        return sum(blob.size for blob in self.files.values())


def read_record(kind: str, path: Path) -> dict[str, Any]:
    """The record of this kind in a file."""
    return decode(kind, path.read_bytes(), path.name)


def write_record(kind: str, path: Path, record: dict[str, Any]) -> None:
    """Write a record of this kind to a file."""
    path.write_bytes(encode(kind, record))
