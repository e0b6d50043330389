"""Derive class, published split and patient from a file's name, and find the files that a table names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple

from components.shared.errors import RefusedError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""The split for each folder name, or word in a table, that stands for one."""

FOLDER, NAME, FILE = "folder", "file name", "file"
"""Bases of a guessed patient: the folder, the file's name without its last number, or the file itself."""

FEW_CLASSES = 5
"""More folders than this whose files are named after them may be folders of persons, not classes: merge decides."""

_NUMBER = re.compile(r"[-_. ]\(?\d+\)?$")


def guess_patients(names: Sequence[str], in_class_folders: bool = True) -> list[tuple[str, str]]:
    """Guess the patient of each file of a source, and return it with the basis of the guess.

    It is the folder below the class folder (`NORMAL/person7/3.png`) if there is one, otherwise the base name without
    its last number (`person7_bacteria_25`, `person7 (3)`). A base name that is the class's name (`benign/benign_1`)
    identifies no patient, so each such file is a patient of its own. This depends on the file and its folder only, so
    that a patient stays the same while the source grows.
    """
    guesses = [_guess(name) for name in names]
    labels = {guess.label for guess in guesses}
    named_after_class = in_class_folders and len(labels) <= FEW_CLASSES
    return [
        (name, FILE) if named_after_class and guess.is_class_name else (guess.patient, guess.basis)
        for name, guess in zip(names, guesses, strict=True)
    ]


class _Guess(NamedTuple):
    patient: str
    label: str
    basis: str

    @property
    def is_class_name(self) -> bool:
        """Whether the name is that of the class, which is a word and not the number of a patient."""
        name = _plain(self.patient)
        return self.basis == NAME and name == _plain(self.label) and any(map(str.isalpha, name))


def _guess(name: str) -> _Guess:
    folder, _, base = name.rpartition("/")
    parts = [part for part in folder.split("/") if part]
    below = parts[2:] if parts and parts[0].lower() in SPLIT_NAMES else parts[1:]
    label = class_and_split(folder)[0]
    if below:
        return _Guess(below[0], label, FOLDER)
    stem = base.rpartition(".")[0].removesuffix(".nii") or base
    return _Guess(_NUMBER.sub("", stem) or stem, label, NAME)


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


@cache
def class_and_split(folder: str) -> tuple[str, str]:
    """Return class and published split of the files in a folder, "" if it has none.

    A folder `train` is a split if it has subfolders, otherwise a class.
    """
    parts = [part for part in folder.split("/") if part]  # a bucket may hold `A//one.png`
    official = SPLIT_NAMES.get(parts[0].lower(), "") if len(parts) > 1 else ""
    parts = parts[1:] if official else parts
    return (parts[0] if parts else "", official)


@cache
def split_of(folder: str) -> str:
    """Return the published split of a folder, in a source without class folders."""
    return SPLIT_NAMES.get(folder.strip("/").partition("/")[0].lower(), "")


class FileNames:
    """The names of a source's files, found by the spellings of tables and lists."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = set(names)
        self._by_base_name: dict[str, list[str]] = {}

    def contains(self, name: str) -> bool:
        """Whether a file has this name relative to the source."""
        return name in self._names

    def find(self, text: str, table: str, line: int) -> str:
        """Return the file with this relative or unique base name, "" if there is none."""
        if text in self._names or not text:
            return text
        name = text
        if "/" in text or "\\" in text:
            name = PurePosixPath(text.replace("\\", "/")).as_posix()
        if name in self._names or "/" in name:
            return name if name in self._names else ""
        if not self._by_base_name:
            for path in self._names:
                self._by_base_name.setdefault(path.rpartition("/")[2], []).append(path)
        matches = self._by_base_name.get(name, [])
        if len(matches) > 1:
            raise RefusedError(
                f"{table}, line {line} names a file without its folder, and {len(matches)} files in the source have "
                "that name. Write the name relative to the source."
            )
        return matches[0] if matches else ""
