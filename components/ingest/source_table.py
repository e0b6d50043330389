"""Read the CSV table of a source: one row per file, with medloop's column names or mapped ones."""

from __future__ import annotations

import codecs
import csv
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from components.ingest.file_names import SPLIT_NAMES, FileNames
from components.ingest.parameters import COLUMNS, DETAIL_COLUMNS
from components.shared.errors import RefusedError
from components.shared.parsing.json_documents import check_columns, table_lines
from components.shared.privacy.pseudonyms import parse_age
from components.shared.runtime.stage_interface import nearest
from components.shared.storage.image_source import IMAGE_SUFFIXES

OLDEST = 120
"""Maximum plausible age in years; a higher one counts as unknown."""

SEPARATORS = (",", ";", "\t")
"""Separators of columns; spreadsheets of many countries write semicolons."""

_PARTS = re.compile(r"\s*[,;\t|]\s*")
_VALUE_PATTERN = re.compile(r"[\d./:_-]+")
_SEX_WORDS = {
    "F": "f female w weiblich frau woman femme féminin feminin mujer femenino femmina femminile",
    "M": "m male männlich maennlich mann man homme masculin hombre masculino maschio maschile",
    "": "u unknown unbekannt o other d divers",
}
_SEXES = {"": "", **{word: sex for sex, words in _SEX_WORDS.items() for word in words.split()}}


class TableRow(NamedTuple):
    """A table's row about a file."""

    patient: str
    label: str
    official: str
    details: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """The content of a table: its columns, its rows by file, and warnings."""

    name: str
    columns: frozenset[str] = frozenset()
    rows: Mapping[str, TableRow] = field(default_factory=dict)
    label_lines: Mapping[str, int] = field(default_factory=dict)
    """The line where each label first occurs; errors name it and not the label, which may be another column's value."""
    warnings: tuple[tuple[str, str], ...] = ()


def sex_of(text: str) -> str:
    """Return M or F for words such as `m`, `Female`, `weiblich`; "" if unknown."""
    return _SEXES.get(text.strip().lower(), "")


def read_table(path: Path, name: str, columns: Mapping[str, str], files: FileNames, skip_missing: bool) -> Table:
    """Return the content of the table at `path`, which messages call `name`.

    Invalid rows are errors: a patient who is not recognised could end up in both the training and the test split.
    """
    try:
        with open_text(path, name) as text:
            first = next(text, "")
            while first.count('"') % 2 and (line := next(text, "")):  # a quoted column name with a line break
                first += line
            separator = _separator(first, columns.get("file", "file"))
            reader = csv.reader(itertools.chain([first], text), delimiter=separator, strict=True)
            header = [column.strip() for column in next(reader, [])]
            check_columns(header, name)
            positions = _column_positions(name, header, columns, files)
            row_reader = _RowReader(name, positions, len(header), files)
            for fields in reader:
                if fields:
                    row_reader.add(fields, reader.line_num)
    except csv.Error as error:
        raise RefusedError(f"{name} is not valid CSV: {error}. Correct it, or save it again.") from None
    warnings = [("Windows-1252", f"{name} is not in UTF-8; it was read as Windows-1252. Check letters with accents")]
    warnings = (
        warnings * (encoding_of(path) == "cp1252")
        + check_missing(name, row_reader.missing, skip_missing, bool(row_reader.rows))
        + row_reader.warnings()
    )
    if not row_reader.rows:
        raise RefusedError(f"{name} has no row below the column names. Add a row for each image, or remove the file.")
    return Table(name, frozenset(positions), row_reader.rows, row_reader.label_lines, tuple(warnings))


@contextmanager
def open_text(path: Path, name: str) -> Iterator[Iterator[str]]:
    """Open a file as lines: UTF-8, UTF-16 with a byte order mark, else Windows-1252, as spreadsheets write them."""
    try:
        with path.open(encoding=encoding_of(path), newline="") as lines:
            yield table_lines(lines, name)
    except UnicodeDecodeError:
        raise RefusedError(
            f"{name}, line {_undecodable(path)} is not in UTF-8, UTF-16 or Windows-1252. Save it again as CSV in UTF-8."
        ) from None


def _undecodable(path: Path) -> int:
    encoding = encoding_of(path)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 1


def encoding_of(path: Path) -> str:
    """Return the encoding of a text file."""
    strict, lenient = (codecs.getincrementaldecoder("utf-8")(errors) for errors in ("strict", "ignore"))
    is_utf8, has_letters = True, False
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        file.seek(0)
        while block := file.read(2**20):
            has_letters = has_letters or not lenient.decode(block).isascii()
            try:
                strict.decode(block)
            except UnicodeDecodeError:
                is_utf8 = False
    # A file with letters in UTF-8 and a wrong byte is damaged UTF-8; opening it then fails.
    return "utf-8-sig" if is_utf8 or has_letters else "cp1252"


def _separator(header: str, file_column: str) -> str:
    """Return the separator that makes a column of this name, else the most frequent one."""
    for separator in SEPARATORS:
        with suppress(csv.Error):
            if file_column in [column.strip() for column in next(csv.reader([header], delimiter=separator), [])]:
                return separator
    return max(SEPARATORS, key=header.count)


def check_missing(name: str, lines: Sequence[int], skip: bool, others: bool) -> list[tuple[str, str]]:
    """Return a warning about skipped lines that name no file of the source.

    Raise a ValueError if such lines must not be skipped, or if a table or list has no `others`.
    """
    if not lines:
        return []
    if skip and not others:
        raise RefusedError(
            f"None of the {len(lines)} lines of {name} names a file in the source. Write file names relative to the "
            "source, or check that it is the right table."
        )
    if not skip:
        more = f", and so do {len(lines) - 1} more" if len(lines) > 1 else ""
        raise RefusedError(
            f"{name}, line {lines[0]} names a file that is not in the source{more}. Correct the name, remove the line, "
            "or skip such lines with ingest_options missing_files=skip."
        )
    rows = "1 line" if len(lines) == 1 else f"{len(lines)} lines"
    verb = "names a file" if len(lines) == 1 else "name files"
    return [("no file", f"{rows} of {name} {verb} that the source does not have")]


def _column_positions(name: str, header: list[str], columns: Mapping[str, str], files: FileNames) -> dict[str, int]:
    if any(_is_value(column, files) for column in header):
        raise RefusedError(f"The first line of {name} contains values. Add a first line with the column names.")
    description = _describe_columns(header, [*columns.values()] if columns else COLUMNS)
    if columns:
        for ours, theirs in columns.items():
            if theirs not in header:
                raise RefusedError(
                    f"{name} has no column {theirs!r}, to which columns maps {ours!r}.{nearest(theirs, header)} "
                    f"It has {description}. Use one of those."
                )
            if header.count(theirs) > 1:
                raise RefusedError(f"{name} has {header.count(theirs)} columns {theirs!r}. Rename all but one.")
        return {ours: header.index(theirs) for ours, theirs in columns.items()}
    if "file" not in header:
        raise RefusedError(
            f"{name} has no column 'file'; it has {description}. Add a column 'file' with each image's name relative "
            "to the source, or map its column names with ingest_options columns."
        )
    unknown = [column for column in header if column not in COLUMNS]
    if unknown:
        raise RefusedError(
            f"{name} has an unknown column {unknown[0]!r}.{nearest(unknown[0], COLUMNS)} Allowed columns are "
            f"{', '.join(COLUMNS)}. Rename it, remove it, or select the columns to read with ingest_options columns."
        )
    twice = [column for column in header if header.count(column) > 1]
    if twice:
        raise RefusedError(f"{name} has {header.count(twice[0])} columns {twice[0]!r}. Rename all but one.")
    return {column: position for position, column in enumerate(header)}


def _is_value(column: str, files: FileNames) -> bool:
    """Whether a field of the first line is a value, which messages must not quote."""
    return any(
        files.contains(part) or part.lower().endswith(tuple(IMAGE_SUFFIXES)) or bool(_VALUE_PATTERN.fullmatch(part))
        for part in _PARTS.split(column)
    )


def _describe_columns(header: list[str], known: Sequence[str]) -> str:
    """Return the column names; only their number if all may be values."""
    shown = [column for column in header if column]
    parts = [part for column in shown for part in _PARTS.split(column)]
    if shown and not any(part in known or nearest(part, known) for part in parts):
        return f"{len(shown)} others, not shown here because the first line may contain values"
    return ", ".join(shown) or "none"


class _RowReader:
    """Collects a table's rows; details shared by many images are stored once."""

    def __init__(self, name: str, positions: Mapping[str, int], width: int, files: FileNames) -> None:
        self.rows: dict[str, TableRow] = {}
        self.label_lines: dict[str, int] = {}
        self.missing: list[int] = []
        self._name, self._width, self._files = name, width, files
        self._file = positions["file"]
        self._patient, self._label, self._official = (positions.get(n) for n in ("patient_id", "label", "official"))
        self._detail_columns = [(column, positions[column]) for column in DETAIL_COLUMNS if column in positions]
        self._cache: dict[tuple[str, ...], tuple[dict[str, str], list[str]]] = {}
        self._invalid_lines: dict[str, list[int]] = {"age": [], "sex": []}  # line numbers: a value may be a name
        self._sex_of: dict[str, str] = {}
        self._patients_with_two_sexes: set[str] = set()

    def add(self, fields: list[str], number: int) -> None:
        """Add a row; raise a ValueError if an earlier one about the file differs."""
        if len(fields) != self._width:
            raise RefusedError(
                f"{self._name}, line {number} has more or fewer fields than the table has columns. Correct that line."
            )
        values = tuple([fields[position].strip() for _, position in self._detail_columns])
        cached = self._cache.get(values)
        if cached is None:
            cached = self._cache[values] = self._details(values)
        row = TableRow(
            "" if self._patient is None else fields[self._patient].strip(),
            "" if self._label is None else fields[self._label].strip(),
            "" if self._official is None else self._split(fields[self._official], number),
            cached[0],
        )
        file = self._files.find(fields[self._file].strip(), self._name, number)
        if not file:
            self.missing.append(number)
            return
        for column in cached[1]:
            self._invalid_lines[column].append(number)
        if self.rows.setdefault(file, row) != row:
            raise RefusedError(
                f"{self._name}, line {number} differs from an earlier line about the same file. Keep one of them."
            )
        self.label_lines.setdefault(row.label, number)
        sex = row.details.get("sex", "")
        if row.patient and sex and self._sex_of.setdefault(row.patient, sex) != sex:
            self._patients_with_two_sexes.add(row.patient)

    def warnings(self) -> list[tuple[str, str]]:
        """Return a warning for each kind of value that could not be used."""
        warnings = []
        for column, noun, problem in (
            ("age", ("age", "ages"), f"invalid or above {OLDEST} years"),
            ("sex", ("entry for sex", "entries for sex"), "neither M nor F"),
        ):
            if lines := self._invalid_lines[column]:
                several = len(lines) > 1
                where = f"the first in line {lines[0]}" if several else f"line {lines[0]}"
                are, count = ("are", "count") if several else ("is", "counts")
                detail = (
                    f"{len(lines)} {noun[several]} in {self._name} ({where}) {are} {problem} and {count} as unknown"
                )
                warnings.append((f"no {column}", detail))
        if number := len(self._patients_with_two_sexes):
            patients = "1 patient has" if number == 1 else f"{number} patients have"
            detail = f"{patients} two sexes in {self._name}: check whether two people share an id"
            warnings.append(("two sexes", detail))
        return warnings

    def _details(self, values: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
        details = {column: value for (column, _), value in zip(self._detail_columns, values, strict=True)}
        age, sex = details.get("age", ""), details.get("sex", "")
        invalid = ["age"] * (bool(age) and not 0 <= parse_age(age) <= OLDEST) + ["sex"] * (sex.lower() not in _SEXES)
        if "age" in invalid:
            details["age"] = ""
        if sex:
            details["sex"] = sex_of(sex)
        return {column: value for column, value in details.items() if value}, invalid

    def _split(self, text: str, number: int) -> str:
        split = text.strip().lower()
        if split and split not in SPLIT_NAMES:
            raise RefusedError(
                f"{self._name}, line {number} names a split other than train, val and test. Correct it, or leave it "
                "empty to draw a split at random."
            )
        return SPLIT_NAMES.get(split, "")
