"""What the name of a file tells: its class folder, its side, its patient; and which file a table means by a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from components.shared.errors import RefusedError

OFFICIAL = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}
"""Folder names, above the class folders, that publish a split."""

_NUMBER = re.compile(r"[-_. ]\(?\d+\)?$")


def patient_of(name: str) -> str:
    """The patient a file's name tells: the folder below its class folder, if there is one (`NORMAL/person7/3.png`);
    else the bare name without its last number (`person7_bacteria_25`, `person7 (3)`).
    """
    folder, _, bare = name.rpartition("/")
    parts = [part for part in folder.split("/") if part]
    below = parts[2:] if parts and parts[0].lower() in OFFICIAL else parts[1:]
    if below:
        return below[0]
    stem = bare.rpartition(".")[0].removesuffix(".nii") or bare
    return _NUMBER.sub("", stem) or stem


def class_and_side(folder: str) -> tuple[str, str]:
    """The class folder and the published side that a folder's name tells; both may be empty.

    A folder `train` with no folder in it is a class; with one it is a side.
    """
    parts = [part for part in folder.split("/") if part]  # a bucket may hold `A//one.png`
    official = OFFICIAL.get(parts[0].lower(), "") if len(parts) > 1 else ""
    parts = parts[1:] if official else parts
    return (parts[0] if parts else "", official)


def side_of(folder: str) -> str:
    """The published side that a folder's name tells where no folder is a class."""
    first = folder.strip("/").partition("/")[0]
    return OFFICIAL.get(first.lower(), "")


class Files:
    """The files of a source, to be found as tables and lists name them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = set(names)
        self._bare: dict[str, list[str]] = {}

    def known(self, name: str) -> bool:
        """Whether it is the name of a file, relative to the source."""
        return name in self._names

    def find(self, given: str, table: str, line: int) -> str:
        """The file meant: by its name relative to the source, or its bare name where one file has it; "" for none."""
        if given in self._names:
            return given
        if not given:
            return ""
        name = given
        if "/" in given or "\\" in given:
            name = PurePosixPath(given.replace("\\", "/")).as_posix()
        if name in self._names or "/" in name:
            return name if name in self._names else ""
        if not self._bare:
            for known in self._names:
                self._bare.setdefault(known.rpartition("/")[2], []).append(known)
        meant = self._bare.get(name, [])
        if len(meant) > 1:
            raise RefusedError(
                f"{table}, line {line} names a file without its folder, and {len(meant)} files of the source have that "
                "name. Name it relative to the source."
            )
        return meant[0] if meant else ""
