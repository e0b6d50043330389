"""Lists of file names that publish a split: one list for each of train, val and test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from components.ingest.file_names import FileNames
from components.ingest.source_table import check_missing, open_text
from components.shared.errors import RefusedError

OpenFile = Callable[[str], AbstractContextManager[Path]]
"""Function that makes a file of the source available as a local file."""


def read_split_lists(
    official: Mapping[str, str], open_file: OpenFile, files: FileNames, skip_missing: bool
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the split of each file in the lists, and warnings (reason, detail)."""
    splits: dict[str, str] = {}
    warnings: list[tuple[str, str]] = []
    for name, split in sorted(official.items()):
        missing: list[int] = []
        count = 0
        with open_file(name) as path, open_text(path, name) as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip()
                file = files.find(text, name, number)
                if file and splits.setdefault(file, split) != split:
                    raise RefusedError(
                        f"{name}, line {number} assigns a file to {split}, but another list assigns it to "
                        f"{splits[file]}. Remove it from one of them."
                    )
                if file:
                    count += 1
                elif text:
                    missing.append(number)
        warnings += check_missing(name, missing, skip_missing, count > 0)
        if not count:
            raise RefusedError(f"The list {name} is empty. Write one file name per line into it.")
    return splits, warnings
