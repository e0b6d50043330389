"""Sources of files whose content nobody looks at: only names, tables and lists are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.ingest import decode_group
from components.ingest.labels import Labels, SourceFile, read_labels
from components.ingest.parameters import SourceParameters
from components.shared.storage.image_source import Directory, Entry

PLANTED = ("zebedee", "wolfram", "1951")
"""Parts of files' and patients' names, which no message may tell."""


def order(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()


def listing(root: Path) -> list[Entry]:
    """What the source lists, with the tables and lists in its root."""
    return Directory(str(root)).entries()


def add(root: Path, names: Iterable[str]) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def read(root: Path, **asked: Any) -> Labels:
    return read_labels(Directory(str(root)), listing(root), SourceParameters(**asked), order)


def by_name(labels: Labels) -> dict[str, SourceFile]:
    return {item.name: item for item in labels.files}


def classes_of(labels: Labels) -> dict[str, list[str]]:
    """The names of the classes of each file that is not set aside."""
    return {item.name: [labels.classes[place] for place in item.labels] for item in labels.files if not item.problem}


def work_with_small_shards(task: decode_group.Task) -> bytes:
    """What a decoding process runs, with shards of 3,000 bytes."""
    decode_group.LARGE = 3000
    return decode_group.decode_task(task)
