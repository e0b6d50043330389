"""The CSV table of a source: a line a file, in our columns or in those that a map names."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from components.ingest.names import OFFICIAL, Files
from components.ingest.parameters import ABOUT, COLUMNS
from components.shared.errors import RefusedError
from components.shared.parsing.json_documents import check_columns, table_lines
from components.shared.runtime.interface import nearest
from components.shared.storage.source import IMAGE_SUFFIXES

OLDEST = 120
"""An age above it, in years, is a slip of the pen."""

_AGE = re.compile(r"(\d{1,3})(?:\.\d+)?\s*([YMWD]?)")
_VALUE = re.compile(r"[\d./:_-]+")
_WORDS = {
    "F": "f female w weiblich frau woman femme féminin feminin mujer femenino femmina femminile",
    "M": "m male männlich maennlich mann man homme masculin hombre masculino maschio maschile",
    "": "u unknown unbekannt o other d divers",
}
_SEXES = {"": "", **{word: sex for sex, words in _WORDS.items() for word in words.split()}}


class Line(NamedTuple):
    """What a table says of a file."""

    patient: str
    label: str
    official: str
    about: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table that was read: which of our columns it has, its lines by file, and what was odd in it."""

    name: str
    columns: frozenset[str] = frozenset()
    lines: Mapping[str, Line] = field(default_factory=dict)
    label_lines: Mapping[str, int] = field(default_factory=dict)
    """The first line with each label: an error names it rather than the label, which may be from another column."""
    warnings: tuple[tuple[str, str], ...] = ()


def age_of(text: str) -> int:
    """An age in whole years from `45`, `045Y` or `18M`; -1 where it is unknown, or more than people reach."""
    found = _AGE.fullmatch(text.strip().upper())
    if not found:
        return -1
    years = int(int(found[1]) / {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.0, "D": 365.0}[found[2]])
    return years if years <= OLDEST else -1


def sex_of(text: str) -> str:
    """M, F, or "" where it is unknown, from `m`, `Female`, `weiblich` and the like."""
    return _SEXES.get(text.strip().lower(), "")


def read_table(path: Path, name: str, columns: Mapping[str, str], files: Files, skip_missing: bool) -> Table:
    """The table in a file, called `name`, with what it says of each file of the source.

    What does not fit is refused, for a patient who is not recognised could end on both sides of the split.
    """
    try:
        with open_text(path, name) as text:
            reader = csv.reader(text, strict=True)
            header = [column.strip() for column in next(reader, [])]
            check_columns(header, name)
            places = _places(name, header, columns, files)
            reading = _Reading(name, places, len(header))
            missing = Missing(name)
            for fields in reader:
                if fields:
                    file, line = reading.line(fields, reader.line_num, files)
                    if not file:
                        missing.add(reader.line_num)
                    else:
                        reading.add(file, line, reader.line_num)
    except csv.Error as error:
        raise RefusedError(f"{name} is not readable as CSV in UTF-8: {error}. Mend it, or save it anew.") from None
    warnings = [*missing.judge(skip_missing, bool(reading.lines)), *reading.warnings()]
    if not reading.lines:
        raise RefusedError(
            f"{name} has no line below the names of its columns. Write one for each image, or remove it."
        )
    return Table(name, frozenset(places), reading.lines, reading.label_lines, tuple(warnings))


@contextmanager
def open_text(path: Path, name: str) -> Iterator[Iterable[str]]:
    """The lines of a file in UTF-8, for a `with`; a ValueError that calls it `name` where it is written otherwise."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
        raise RefusedError(f"{name} is written in UTF-16, or is no text at all. Save it anew as CSV in UTF-8.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield table_lines(lines, name)
    except UnicodeDecodeError:
        raise RefusedError(
            f"{name}, line {_undecodable(path)} holds a character that is not written in UTF-8; the file may be in "
            "Latin-1 or Windows-1252. Save it anew as CSV in UTF-8."
        ) from None


def _undecodable(path: Path) -> int:
    """The number of the first line that is not in UTF-8."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


class Missing:
    """The lines of a table or list that name a file which the source does not have."""

    def __init__(self, name: str) -> None:
        self._name, self._first, self._count = name, 0, 0

    def add(self, line: int) -> None:
        self._first = self._first or line
        self._count += 1

    def judge(self, skip: bool, others: bool) -> list[tuple[str, str]]:
        """The warning that they were passed over, or a ValueError where they may not be, or where no line fits."""
        if not self._count:
            return []
        if skip and not others:
            raise RefusedError(
                f"{self._name} names no file of the source in any of its {self._count} lines. Name the files relative "
                "to the source, or check that it is the right table."
            )
        more = f", and so do {self._count - 1} more" if self._count > 1 else ""
        if not skip:
            raise RefusedError(
                f"{self._name}, line {self._first} names a file that is not in the source{more}. Mend the name, take "
                "the line out, or pass over such lines with ingest_options missing_files=skip."
            )
        lines = "1 line" if self._count == 1 else f"{self._count} lines"
        name = "names a file" if self._count == 1 else "name files"
        return [("no file", f"{lines} of {self._name} {name} that the source does not have")]


def _places(name: str, header: list[str], columns: Mapping[str, str], files: Files) -> dict[str, int]:
    """Where each of our columns stands in the table."""
    if any(_is_value(column, files) for column in header):
        raise RefusedError(f"{name} begins with values. Begin it with a line of the columns' names.")
    listed = _listed(header, [*columns.values()] if columns else COLUMNS)
    if columns:
        for ours, theirs in columns.items():
            if theirs not in header:
                raise RefusedError(
                    f"{name} has no column {theirs!r}, which columns names for {ours!r}.{nearest(theirs, header)} "
                    f"It has {listed}. {_parted(header) or 'Name one of those.'}"
                )
            if header.count(theirs) > 1:
                raise RefusedError(f"{name} has {header.count(theirs)} columns {theirs!r}. Rename all but one.")
        return {ours: header.index(theirs) for ours, theirs in columns.items()}
    if "file" not in header:
        parted = f"{_parted(header)} " if _parted(header) else ""
        raise RefusedError(
            f"{name} has no column 'file'; it has {listed}. {parted}Name each image in it, relative to the "
            "source, in a column 'file', with commas between the columns, or say with ingest_options columns what its "
            "columns are called."
        )
    unknown = [column for column in header if column not in COLUMNS]
    if unknown:
        raise RefusedError(
            f"{name} has a column {unknown[0]!r}, which means nothing here.{nearest(unknown[0], COLUMNS)} "
            f"Columns may be {', '.join(COLUMNS)}; rename it, take it out, or name those to read with ingest_options "
            "columns."
        )
    twice = [column for column in header if header.count(column) > 1]
    if twice:
        raise RefusedError(f"{name} has {header.count(twice[0])} columns {twice[0]!r}. Rename all but one.")
    return {column: place for place, column in enumerate(header)}


def _is_value(column: str, files: Files) -> bool:
    """Whether a field of the first line is rather a value: then the line must not be told."""
    return any(
        files.known(part) or part.lower().endswith(tuple(IMAGE_SUFFIXES)) or bool(_VALUE.fullmatch(part))
        for part in re.split(r"[;\t]", column)
    )


def _listed(header: list[str], known: Sequence[str]) -> str:
    """The columns' names, if one of them at least is like a known one; else the line may hold values."""
    shown = [column for column in header if column]
    parts = [part.strip() for column in shown for part in re.split(r"[;\t]", column)]
    if shown and not any(part in known or nearest(part, known) for part in parts):
        return f"{len(shown)} others, which are not shown here: the first line may hold values"
    return ", ".join(shown) or "none"


def _where(lines: Sequence[int]) -> str:
    """Where to look for what is counted."""
    return f"line {lines[0]}" if len(lines) == 1 else f"the first in line {lines[0]}"


def _parted(header: list[str]) -> str:
    if len(header) == 1:
        for mark, called in ((";", "semicolons"), ("\t", "tabs")):
            if mark in header[0]:
                return f"Its columns are parted by {called}; save it with commas."
    return ""


class _Reading:
    """Lines as they are read. What is said of many images alike (sex, age, view) is kept once."""

    def __init__(self, name: str, places: Mapping[str, int], width: int) -> None:
        self.lines: dict[str, Line] = {}
        self.label_lines: dict[str, int] = {}
        self._name, self._width = name, width
        self._file = places["file"]
        self._patient, self._label, self._official = (places.get(n) for n in ("patient_id", "label", "official"))
        self._about = [(column, places[column]) for column in ABOUT if column in places]
        self._kept: dict[tuple[str, ...], tuple[dict[str, str], list[str]]] = {}
        self._odd: dict[str, list[int]] = {"age": [], "sex": []}  # the lines; a value may be a name in a shifted column
        self._sex_of: dict[str, str] = {}
        self._both: set[str] = set()

    def line(self, fields: list[str], number: int, files: Files) -> tuple[str, Line]:
        """The file that a line means, "" where the source has none such, and what it says of it."""
        if len(fields) != self._width:
            raise RefusedError(
                f"{self._name}, line {number} has more or fewer fields than the table has columns. Mend that line."
            )
        given = tuple([fields[place].strip() for _, place in self._about])
        kept = self._kept.get(given)
        if kept is None:
            kept = self._kept[given] = self._told(given)
        line = Line(
            "" if self._patient is None else fields[self._patient].strip(),
            "" if self._label is None else fields[self._label].strip(),
            "" if self._official is None else self._side(fields[self._official], number),
            kept[0],
        )
        file = files.find(fields[self._file].strip(), self._name, number)
        if file:
            for column in kept[1]:
                self._odd[column].append(number)
        return file, line

    def add(self, file: str, line: Line, number: int) -> None:
        """Keep a line, unless an earlier one said otherwise."""
        if self.lines.setdefault(file, line) != line:
            raise RefusedError(
                f"{self._name}, line {number} says something else of a file than an earlier line. Keep one of them."
            )
        self.label_lines.setdefault(line.label, number)
        sex = line.about.get("sex", "")
        if line.patient and sex and self._sex_of.setdefault(line.patient, sex) != sex:
            self._both.add(line.patient)

    def warnings(self) -> list[tuple[str, str]]:
        """What could not be understood, and how often."""
        found = []
        if lines := self._odd["age"]:
            ages, are, count = ("age", "is", "counts") if len(lines) == 1 else ("ages", "are", "count")
            detail = (
                f"{len(lines)} {ages} in {self._name} ({_where(lines)}) cannot be read or {are} above {OLDEST} years"
            )
            found.append(("no age", f"{detail}, and {count} as unknown"))
        if lines := self._odd["sex"]:
            entries, count = ("entry", "counts") if len(lines) == 1 else ("entries", "count")
            detail = f"{len(lines)} {entries} for sex in {self._name} ({_where(lines)}) cannot be read as M or F"
            found.append(("no sex", f"{detail}, and {count} as unknown"))
        if self._both:
            number = len(self._both)
            patients = "1 patient has" if number == 1 else f"{number} patients have"
            detail = f"{patients} two sexes in {self._name}: look whether two people share an id"
            found.append(("two sexes", detail))
        return found

    def _told(self, given: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
        about = {column: value for (column, _), value in zip(self._about, given, strict=True)}
        age, sex = about.get("age", ""), about.get("sex", "")
        odd = ["age"] * (bool(age) and age_of(age) < 0) + ["sex"] * (sex.lower() not in _SEXES)
        if "age" in odd:
            about["age"] = ""
        if sex:
            about["sex"] = sex_of(sex)
        return {column: value for column, value in about.items() if value}, odd

    def _side(self, text: str, number: int) -> str:
        side = text.strip().lower()
        if side and side not in OFFICIAL:
            raise RefusedError(
                f"{self._name}, line {number} names a side that is none of train, val and test. Mend it, or leave it "
                "empty for the draw."
            )
        return OFFICIAL.get(side, "")
