"""Read untrusted JSON and lines of tables within limits.

Uses only the standard library; YAML is in `yaml_documents.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from components.shared.errors import RefusedError

MAX_BYTES, MAX_DEPTH = 64 * 2**20, 64
"""Maximum size and nesting of a JSON document. medloop's largest are manifests and reports of a few megabytes."""


def parse_json(data: bytes | str, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value of a JSON document; raise a ValueError without its name."""
    if len(data) > max_bytes:
        raise RefusedError(f"it has {len(data):,} bytes; the maximum is {max_bytes:,}")
    try:
        value = json.loads(data, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    return value


def read_json(data: bytes | str, name: str, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value of a JSON document; raise a ValueError with its `name`."""
    try:
        return parse_json(data, max_bytes)
    except ValueError as error:
        raise RefusedError(f"{name} is not valid JSON: {error}. Correct it, or create it again.") from None


MAX_LINE, MAX_COLUMNS, MAX_COLUMN_NAME = 2**20, 1000, 200
"""Maximum length of a table's line in characters, number of columns, and length of a column's name."""


def table_lines(file: TextIO, name: str) -> Iterator[str]:
    """Yield the lines of a table; refuse one that is too long or not text."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise RefusedError(
                f"{name}, line {number} has more than {MAX_LINE:,} characters. Check that it is a table."
            )
        if "\0" in line:
            raise RefusedError(f"{name}, line {number} contains a NUL character. Save the table again as CSV.")
        yield line


def check_columns(names: Sequence[str], table: str) -> None:
    """Refuse a table with too many columns or too long column names."""
    if len(names) > MAX_COLUMNS:
        raise RefusedError(
            f"{table} has {len(names):,} columns; the maximum is {MAX_COLUMNS:,}. Check that it is a table."
        )
    longest = max(map(len, names), default=0)
    if longest > MAX_COLUMN_NAME:
        raise RefusedError(
            f"{table} has a column name of {longest:,} characters; the maximum is {MAX_COLUMN_NAME}. Its first line "
            "must contain the column names."
        )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        duplicate = next(name for name, count in counts.items() if count > 1)
        raise RefusedError(f"the key {duplicate[:80]!r} occurs more than once")
    return mapping


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [container for container in level if isinstance(container, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]


def _too_deep() -> ValueError:
    return RefusedError(f"it has more than {MAX_DEPTH} levels of nesting")
