"""What a source says of each file besides its pixels: class, patient, official side, and the row of its table."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from components.shared.source import TABLE, Entry

OFFICIAL = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}
"""Folder names, above the class folders, that publish a split."""

_NUMBER = re.compile(r"[-_ ]\d+$")


@dataclass(frozen=True)
class Labelled:
    """A file of the source with what is known of it before it is opened."""

    name: str
    label: str
    official: str
    table: dict[str, str] = field(default_factory=dict)


def read_labels(source: Path, entries: Iterable[Entry]) -> list[Labelled]:
    """Every image of the source with its class (its folder), its official side, and its row of the table, if any."""
    rows = _table(source / TABLE)
    found = []
    for entry in entries:
        if entry.name == TABLE:
            continue
        parts = PurePosixPath(entry.name).parts
        official = OFFICIAL.get(parts[0].lower(), "") if len(parts) > 2 else ""
        folders = parts[1:-1] if official else parts[:-1]
        found.append(Labelled(entry.name, folders[0] if folders else "", official, rows.get(entry.name, {})))
    return found


def order_classes(names: Iterable[str]) -> list[str]:
    """The classes in the order of their labels: the one called normal first, the others by name."""
    return sorted(set(names), key=lambda name: (name.lower() not in ("normal", "negative", "no finding"), name))


def patient_of(name: str) -> str:
    """The patient a file name tells: the name without its last number (`person7_bacteria_25` → `person7_bacteria`)."""
    stem = PurePosixPath(name).stem
    return _NUMBER.sub("", stem) or stem


def age_of(text: str) -> int:
    """An age in whole years from `45`, `045Y` or `18M`; -1 where it is unknown."""
    found = re.fullmatch(r"(\d{1,3})\s*([YMWD]?)", text.strip().upper())
    if not found:
        return -1
    years = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.0, "D": 365.0}[found[2]]
    return int(int(found[1]) / years)


def _table(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if "file" not in (reader.fieldnames or []):
            raise ValueError(
                f"{path.name} has no column 'file'; it has {', '.join(reader.fieldnames or []) or 'none'}. "
                "Name each image in it, relative to the source, in a column 'file'."
            )
        return {row["file"]: {name: (value or "").strip() for name, value in row.items() if name} for row in reader}
