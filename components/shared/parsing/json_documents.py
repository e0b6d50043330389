"""Reads JSON and the lines of tables that came from outside, within limits.

Standard library only: YAML has `yaml_documents.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from components.shared.errors import RefusedError

BYTES, DEPTH = 64 * 2**20, 64
"""Maximum size and nesting of a JSON document. The largest of ours are manifests and reports of a few megabytes."""


def parse_json(data: bytes | str, most: int = BYTES) -> Any:
    """The value in a JSON document; a ValueError says what is wrong with it, in words that follow a colon."""
    if len(data) > most:
        raise RefusedError(f"it has {len(data):,} bytes, and {most:,} are allowed")
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    return value


def read_json(data: bytes | str, where: str, most: int = BYTES) -> Any:
    """The value in a JSON document that is called `where`; a ValueError says in a sentence what is wrong with it."""
    try:
        return parse_json(data, most)
    except ValueError as error:
        raise RefusedError(f"{where} is not readable as JSON: {error}. Mend it, or make it again.") from None


LINE, COLUMNS, COLUMN = 2**20, 1000, 200
"""Maximum characters of a table's line, number of its columns, and characters of a column's name."""


def table_lines(file: TextIO, name: str) -> Iterator[str]:
    """Yield the lines of a table; a ValueError names one that is too long to be read, or that is no text."""
    number = 0
    while line := file.readline(LINE + 1):
        number += 1
        if len(line) > LINE:
            raise RefusedError(f"{name}, line {number} has more than {LINE:,} characters. Check that it is a table.")
        if "\0" in line:
            raise RefusedError(f"{name}, line {number} holds a NUL character, which no text has. Save it anew as CSV.")
        yield line


def check_columns(names: Sequence[str], table: str) -> None:
    """Refuse a table whose columns are too many, or have names that nobody writes."""
    if len(names) > COLUMNS:
        raise RefusedError(
            f"{table} has {len(names):,} columns, and {COLUMNS:,} are allowed. Check that it is a table."
        )
    longest = max(map(len, names), default=0)
    if longest > COLUMN:
        raise RefusedError(
            f"{table} has a column's name of {longest:,} characters, and {COLUMN} are allowed. Begin it with a line of "
            "the columns' names."
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise RefusedError(f"the key {twice[:80]!r} stands there twice")
    return found


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > DEPTH:
            raise _too_deep()
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]


def _too_deep() -> ValueError:
    return RefusedError(f"it is nested more than {DEPTH} deep")
