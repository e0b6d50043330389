"""Lists of files, one name a line, each of which publishes one side of a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from components.ingest.names import Files
from components.ingest.tables import Missing, open_text
from components.shared.errors import RefusedError

Open = Callable[[str], AbstractContextManager[Path]]
"""What gives a list of the source, by its name, as a local file."""


def read_lists(
    official: Mapping[str, str], opened: Open, files: Files, skip_missing: bool
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The published side of each file that the lists name, and what is to be warned of."""
    sides: dict[str, str] = {}
    warnings: list[tuple[str, str]] = []
    for name, side in sorted(official.items()):
        missing, found = Missing(name), 0
        with opened(name) as path, open_text(path, name) as lines:
            for number, line in enumerate(lines, 1):
                given = line.strip()
                file = files.find(given, name, number)
                if file and sides.setdefault(file, side) != side:
                    raise RefusedError(
                        f"{name}, line {number} names a file for {side}, and another list names it for {sides[file]}. "
                        "Take it out of one of them."
                    )
                if file:
                    found += 1
                elif given:
                    missing.add(number)
        warnings += missing.judge(skip_missing, found > 0)
        if not found:
            raise RefusedError(f"The list {name} is empty. Write the names of its files into it, one a line.")
    return sides, warnings
