"""What of a source is asked for, and how its files tell it: parameters of ingest, checked together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from components.shared.errors import RefusedError
from components.shared.runtime.interface import nearest
from components.shared.storage.source import TABLE

ABOUT = ("sex", "age", "site", "view", "modality", "label_source", "text")
"""What a table may say of an image besides the names, the label and the side."""

COLUMNS = ("file", "patient_id", "label", "official", *ABOUT)
"""Our names of a table's columns."""

SIDES = ("train", "val", "test")
"""The sides that a published split may name."""

_CHOICES = {"task": ("auto", "classification", "multilabel"), "missing_files": ("refuse", "skip")}


@dataclass(frozen=True)
class Asked:
    """How a source's labels, patients and sides are to be read, and which of its images are to be taken."""

    classes: Sequence[str] = ()
    label_map: Mapping[str, str] = field(default_factory=dict)
    task: str = "auto"
    table: str = TABLE
    columns: Mapping[str, str] = field(default_factory=dict)
    separator: str = ""
    no_finding: str = ""
    label_pattern: str = ""
    patient_pattern: str = ""
    official: Mapping[str, str] = field(default_factory=dict)
    limit_per_class: int = 0
    missing_files: str = "refuse"

    def __post_init__(self) -> None:
        _check_texts(self)
        for name, values in _CHOICES.items():
            value = getattr(self, name)
            if value not in values:
                raise RefusedError(
                    f"{name} is {value!r}, and must be one of {', '.join(values)}.{nearest(value, values)} Name one."
                )
        if self.limit_per_class < 0:
            raise RefusedError(
                f"limit_per_class is {self.limit_per_class}, and must be 0 or more. Set 0 to take every image."
            )
        _check_columns(self.columns)
        for name, side in self.official.items():
            if side not in SIDES:
                raise RefusedError(
                    f"official says {side!r} for the list {name}, and a side is one of {', '.join(SIDES)}."
                    f"{nearest(side, SIDES)} Name one."
                )
        _check_classes(self)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have any number of findings; where nothing is said, a separator tells."""
        return self.task == "multilabel" or (self.task == "auto" and bool(self.separator))

    @property
    def skips_missing(self) -> bool:
        """Whether lines that name files which the source lacks are passed over."""
        return self.missing_files == "skip"

    @property
    def needs_table(self) -> bool:
        """Whether the table must be there; patients.csv may be left out."""
        return self.table != TABLE or bool(self.columns)


def compiled(name: str, pattern: str) -> re.Pattern[str] | None:
    """The regular expression that a parameter holds, or None where it holds none."""
    if not pattern:
        return None
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise RefusedError(f"{name} is {pattern!r}, which is no regular expression: {error}. Mend it.") from None
    if not found.groups:
        raise RefusedError(f"{name} is {pattern!r}, which has no group. Put what is to be taken into parentheses.")
    return found


def _check_texts(asked: Asked) -> None:
    for name in ("label_map", "columns", "official"):
        for key, value in getattr(asked, name).items():
            for what in (key, value):
                if not isinstance(what, str):
                    raise RefusedError(f"{name} holds {what!r}, which is no text. Put it into quotation marks.")
    for what in asked.classes:
        if not isinstance(what, str):
            raise RefusedError(f"classes holds {what!r}, which is no text. Put it into quotation marks.")


def _check_columns(columns: Mapping[str, str]) -> None:
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise RefusedError(
            f"columns maps {unknown[0]!r}, which means nothing here.{nearest(unknown[0], COLUMNS)} Write our name, a "
            f"colon, the table's name; ours are {', '.join(COLUMNS)}."
        )
    if columns and "file" not in columns:
        raise RefusedError("columns does not map 'file'. Say which column of the table names the files.")


def _check_classes(asked: Asked) -> None:
    least = 1 if asked.multilabel else 2
    targets = sorted({name for name in asked.label_map.values() if name})
    if asked.label_map and len(targets) < least:
        raise RefusedError(
            f"label_map leads to {len(targets)} class{'es' * (len(targets) != 1)}{': ' * bool(targets)}"
            f"{', '.join(targets)}; a {'multilabel task' if least == 1 else 'classifier'} needs at least {least}. "
            "Map the labels to more."
        )
    stray = [name for name in asked.classes if asked.label_map and name not in targets]
    if stray:
        raise RefusedError(
            f"classes names {stray[0]!r}, to which label_map leads no label.{nearest(stray[0], targets)} "
            "Name what the map leads to."
        )
    chosen = list(dict.fromkeys(asked.classes))
    if asked.classes and len(chosen) < least:
        raise RefusedError(f"classes names only {chosen[0]!r}; a classifier needs at least 2. Name more, or none.")
    if not asked.multilabel or not asked.no_finding:
        return
    if asked.no_finding in chosen:
        raise RefusedError(
            f"classes names {asked.no_finding!r}, which no_finding says is none. An image without a finding has no "
            "label in a multilabel task; take it out of one of the two."
        )
    if asked.label_map.get(asked.no_finding):
        raise RefusedError(
            f"label_map leads {asked.no_finding!r} to a class, and no_finding says that it means none. Take it out of "
            "the map, or map it to '' to leave its images out."
        )
