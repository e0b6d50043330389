"""Data that stages exchange: annotations, manifests and JSON records. Standard library only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from components.shared.errors import RefusedError
from components.shared.parsing import safe_names
from components.shared.parsing.json_documents import parse_json

In = Annotated[Path, "in"]
"""Argument of a stage: a directory to read."""

Ins = Annotated[Path, "ins"]
"""Argument of a stage: a directory to read, with a subdirectory for each of several artifacts."""

Out = Annotated[Path, "out"]
"""Argument of a stage: a directory to write."""


class Between(NamedTuple):
    """Annotation of a numeric parameter: its closed range."""

    low: float
    high: float


class OneOf(NamedTuple):
    """Annotation of a text parameter: its allowed values."""

    values: tuple[str, ...]


SCHEMAS = {
    "manifest": 1,
    "result": 1,
    "ref": 1,
    "error": 2,  # some of schema 1 contain faults of medloop, and are ignored
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
"""Kinds of JSON records, each with the only version that this code reads and writes."""

LOST = "lost.json"
"""File in place of a model in service whose files the store has lost: its digest, and the reason."""


def encode(kind: str, record: dict[str, Any]) -> bytes:
    """Return the canonical bytes of a record: sorted keys, schema number, newline at the end."""
    document = {"kind": kind, "schema": SCHEMAS[kind], **record}
    return (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode(kind: str, data: bytes, where: str) -> dict[str, Any]:
    """Return the record in `data`; raise RefusedError if it is not JSON, or of another kind or schema."""
    try:
        document = parse_json(data)
    except ValueError as error:
        raise RefusedError(
            f"{where} is not a JSON {kind}: {error}. It was truncated or changed; create it again."
        ) from None
    return check(kind, document, where)


def check(kind: str, document: Any, where: str) -> dict[str, Any]:
    """Return the document; raise RefusedError if it is not a record of this kind and its current schema."""
    actual = document.get("kind") if isinstance(document, dict) else type(document).__name__
    if actual != kind:
        raise RefusedError(f"{where} contains a {actual!r}; a {kind!r} is expected. Pass the right file.")
    if document.get("schema") != SCHEMAS[kind]:
        raise RefusedError(
            f"{where} is a {kind} of schema {document.get('schema')!r}; this version of medloop reads schema "
            f"{SCHEMAS[kind]}. Use the version that wrote it, or create it again."
        )
    return dict(document)


def try_decode(kind: str, data: bytes | None) -> dict[str, Any] | None:
    """Return the record in `data`, or None if it is missing or damaged: for records that can be created again."""
    try:
        return decode(kind, data, kind) if data is not None else None
    except ValueError:
        return None


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: object) -> str:
    """Return the digest of a JSON value, independent of the order of its keys."""
    return digest(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode())


@dataclass(frozen=True)
class Blob:
    """A file's content in the store: digest, and size in bytes."""

    digest: str
    size: int


def is_digest(text: object) -> bool:
    """Return whether this is a SHA-256 in hexadecimal, the only valid name of an object."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def _is_valid(blob: Blob) -> bool:
    return is_digest(blob.digest) and type(blob.size) is int and blob.size >= 0


@dataclass(frozen=True)
class Manifest:
    """A manifest, which represents an artifact: names of files, and the objects with their content.

    An artifact without files means "there is none" (no model in service, no previous split). A combined artifact names
    its parts.
    """

    files: dict[str, Blob] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    @staticmethod
    def of(manifests: Iterable[Manifest]) -> Manifest:
        """Return the combined manifest, independent of the order, with a directory for each part."""
        members = sorted(manifests, key=lambda member: member.digest)
        files = {f"{n:05}/{name}": blob for n, member in enumerate(members) for name, blob in member.files.items()}
        return Manifest(files, tuple(member.digest for member in members))

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        files = {name: {"digest": blob.digest, "size": blob.size} for name, blob in self.files.items()}
        return encode("manifest", {"files": files} | ({"parts": list(self.parts)} if self.parts else {}))

    @staticmethod
    def decode(data: bytes, where: str) -> Manifest:
        """Return the manifest in `data`; raise RefusedError, with the name `where`, if it is invalid."""
        record = decode("manifest", data, where)
        try:
            files = {name: Blob(entry["digest"], entry["size"]) for name, entry in record["files"].items()}
            manifest = Manifest(files, tuple(record.get("parts", ())))
            valid = all(map(is_digest, manifest.parts)) and all(map(_is_valid, files.values()))
        except (KeyError, TypeError, AttributeError):
            valid = False
        if valid:
            safe_names.check_names(files, where)
        if not valid or manifest.encode() != data:  # otherwise different bytes could have the same digest
            raise RefusedError(f"{where} is not a valid manifest. It was changed; create it again.")
        return manifest

    @property
    def digest(self) -> str:
        """Digest of the canonical bytes; it identifies the artifact."""
        return digest(self.encode())

    @property
    def bytes(self) -> int:
        return sum(blob.size for blob in self.files.values())


def read_record(kind: str, path: Path) -> dict[str, Any]:
    """Return the record of this kind in a file."""
    return decode(kind, path.read_bytes(), path.name)


def write_record(kind: str, path: Path, record: dict[str, Any]) -> None:
    """Write a record of this kind to a file."""
    path.write_bytes(encode(kind, record))
