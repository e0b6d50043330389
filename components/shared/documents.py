"""Reads JSON that came from outside, within limits. Standard library only: YAML has `yaml_documents.py`."""

from __future__ import annotations

import json
from typing import Any

BYTES, DEPTH = 64 * 2**20, 64
"""Maximum size and nesting of a JSON document. The largest of ours are manifests and reports of a few megabytes."""


def parse_json(data: bytes | str, most: int = BYTES) -> Any:
    """The value in a JSON document; a ValueError says what is wrong with it, in words that follow a colon."""
    if len(data) > most:
        raise ValueError(f"it has {len(data):,} bytes, and {most:,} are allowed")
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
        raise ValueError(f"{where} is not readable as JSON: {error}. Mend it, or make it again.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in set(names[:place]))
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return found


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > DEPTH:
            raise _too_deep()
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {DEPTH} deep")
