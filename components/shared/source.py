"""A source of images, and its revision: what resolve records and ingest reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.shared.contracts import fingerprint

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})
TABLE = "patients.csv"
"""A table beside the class folders with a row a file: patient, sex, age, site, view, text."""


@dataclass(frozen=True)
class Entry:
    """One file of a source: its name relative to the source, its size, and when it was changed."""

    name: str
    size: int
    changed: int


def entries(source: str) -> list[Entry]:
    """The files that a source consists of, by name."""
    root = directory(source)
    found = []
    for path in _files(root):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
            continue  # a link that leads out of the source is not part of it
        if path.suffix.lower() in IMAGE_SUFFIXES or name.as_posix() == TABLE:
            about = path.stat()
            found.append(Entry(name.as_posix(), about.st_size, about.st_mtime_ns))
    return sorted(found, key=lambda entry: entry.name)


def _files(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        # Silence here would be a data set without the images of a folder, and nobody would know.
        raise PermissionError(
            f"A folder of the source {root} cannot be read ({error.strerror}). Make all of it readable, and run again."
        ) from None

    for folder, _, names in os.walk(root, onerror=refuse):
        yield from (Path(folder) / name for name in names)


def directory(source: str) -> Path:
    """The directory of a source, or a sentence that says what is wrong with it."""
    if not source:
        raise ValueError("No source was given. Name the directory that holds a folder of images for each class.")
    root = Path(source)
    if not root.exists():
        raise FileNotFoundError(f"There is no source {source}. Check the path; `medloop synth DIR` makes one to try.")
    if not root.is_dir():
        raise NotADirectoryError(
            f"The source {source} is a file. Name the directory that holds a folder for each class."
        )
    return root


def revision(found: list[Entry]) -> str:
    """The digest of a listing: it changes when a file comes, goes or is changed. It tells no names."""
    return fingerprint([[entry.name, entry.size, entry.changed] for entry in found])
