"""What a source says of each file besides its pixels: class, patient, official side, and the row of its table."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from components.shared.interface import nearest
from components.shared.source import TABLE, Entry, Source

OFFICIAL = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}
"""Folder names, above the class folders, that publish a split."""

COLUMNS = ("file", "patient_id", "sex", "age", "site", "view", "modality", "text")
"""What patients.csv may say of a file."""

NEGATIVE = ("normal", "negative", "healthy", "benign", "control", "no finding", "clear")
"""Names of classes that mean the absence of a finding; such a class goes first, and is not the one looked for."""

_NUMBER = re.compile(r"[-_. ]\(?\d+\)?$")


@dataclass(frozen=True)
class Labelled:
    """A file of the source with what is known of it before it is opened."""

    name: str
    label: str
    official: str
    table: dict[str, str] | None
    """Its row of the table; empty where it needs none, None where the table names patients and leaves it out."""


def read_labels(source: Source, entries: Iterable[Entry]) -> list[Labelled]:
    """Every image of the source with its class (its folder), its official side, and its row of the table, if any."""
    entries = list(entries)
    rows = _table(source, {entry.name: entry for entry in entries})
    # Where a table names patients it must name them all: the same person under two names could part at the split.
    otherwise: dict[str, str] | None = None if any("patient_id" in row for row in rows.values()) else {}
    found = []
    for entry in entries:
        if entry.name == TABLE:
            continue
        parts = [part for part in entry.name.split("/") if part]  # a bucket may hold `A//one.png`
        official = OFFICIAL.get(parts[0].lower(), "") if len(parts) > 2 else ""
        folders = parts[1:-1] if official else parts[:-1]
        row = rows.get(entry.name, otherwise)
        found.append(Labelled(entry.name, folders[0] if folders else "", official, row))
    return found


def order_classes(names: Iterable[str]) -> list[str]:
    """The classes in the order of their labels: one that means no finding first, the others by name."""
    return sorted(set(names), key=lambda name: (name.lower() not in NEGATIVE, name))


def patient_of(name: str) -> str:
    """The patient a file name tells: the name without its last number (`person7_bacteria_25`, `person7 (3)`)."""
    stem = PurePosixPath(name).stem
    return _NUMBER.sub("", stem) or stem


def age_of(text: str) -> int:
    """An age in whole years from `45`, `045Y` or `18M`; -1 where it is unknown."""
    found = re.fullmatch(r"(\d{1,3})\s*([YMWD]?)", text.strip().upper())
    if not found:
        return -1
    years = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.0, "D": 365.0}[found[2]]
    return int(int(found[1]) / years)


def _table(source: Source, entries: dict[str, Entry]) -> dict[str, dict[str, str]]:
    """The rows of the table by file; none where there is no table.

    What does not fit is refused, for a patient who is not recognised could end on both sides of the split.
    """
    if TABLE not in entries:
        return {}
    names = set(entries)
    try:
        with source.file(entries[TABLE]) as path, path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            _check_columns(TABLE, columns)
            reader.fieldnames = columns
            rows: dict[str, dict[str, str]] = {}
            for row in reader:
                _add_row(rows, row, f"{TABLE}, line {reader.line_num}", names)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{TABLE} is not readable as CSV in UTF-8: {error}. Mend it, or save it anew.") from None
    return rows


def _check_columns(table: str, columns: list[str]) -> None:
    if "file" not in columns:
        raise ValueError(
            f"{table} has no column 'file'; it has {', '.join(columns) or 'none'}. Name each image in it, relative to "
            "the source, in a column 'file', with commas between the columns."
        )
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise ValueError(
            f"{table} has a column {unknown[0]!r}, which means nothing here.{nearest(unknown[0], COLUMNS)} "
            f"Columns may be {', '.join(COLUMNS)}; rename it, or take it out."
        )


def _add_row(rows: dict[str, dict[str, str]], row: dict[str, Any], where: str, names: set[str]) -> None:
    if None in row or None in row.values():
        raise ValueError(f"{where} has more or fewer fields than the table has columns. Mend that line.")
    values = {name: value.strip() for name, value in row.items()}
    name = PurePosixPath(values.pop("file").replace("\\", "/")).as_posix()
    if name not in names:
        raise ValueError(f"{where} names a file that is not in the source. Mend the name, or take the line out.")
    if "patient_id" in values and not values["patient_id"]:
        raise ValueError(f"{where} has no patient_id. Give one, or take the column out.")
    if rows.setdefault(name, values) != values:
        raise ValueError(f"{where} says something else of a file than an earlier line. Keep one of them.")
