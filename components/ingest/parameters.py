"""The parameters of ingest that concern a source, and their checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from components.shared.contracts import Between, OneOf
from components.shared.errors import RefusedError
from components.shared.runtime.interface import nearest
from components.shared.storage.source import TABLE

ABOUT = ("sex", "age", "site", "view", "modality", "label_source", "text")
"""What a table may say of an image besides the names, the label and the side."""

COLUMNS = ("file", "patient_id", "label", "official", *ABOUT)
"""Our names of a table's columns."""

SIDES = ("train", "val", "test")
"""The sides that a published split may name."""


@dataclass(frozen=True)
class SourceParameters:
    """How a source's labels, patients and sides are read, and which of its images are taken."""

    classes: list[str] = field(default_factory=list)
    """the classes to take, the one without a finding first; all when empty. Other labels count for nothing: an
    image that has no more is left out, or in a multilabel task has no finding"""
    label_map: dict[str, str] = field(default_factory=dict)
    """published label to class; '' leaves its images out. If given, it must name every label there is"""
    task: Annotated[str, OneOf(("auto", "classification", "multilabel"))] = "auto"
    """classification (one class an image), multilabel (any number of findings), or auto: multilabel if separator is
    given"""
    table: str = "patients.csv"
    """the CSV file in the source's root with a line an image"""
    columns: dict[str, str] = field(default_factory=dict)
    """our name of a column to the table's, for those to read; without it the table must use our names, which are
    file, patient_id, label, official, sex, age, site, view, modality, label_source, text, and have no others"""
    separator: str = ""
    """what stands between the labels of one image, as in Effusion|Mass"""
    no_finding: str = ""
    """the label that means none; in a multilabel task an image that has it has no finding"""
    label_pattern: str = ""
    """a regular expression, searched for in each file's name relative to the source, that holds the label in a
    group; of several groups the first that matched. It goes before the folders"""
    patient_pattern: str = ""
    """likewise for the patient; it goes before a DICOM header and the rule for file names"""
    official: dict[str, str] = field(default_factory=dict)
    """lists of files in the source's root, one name a line, and the side of each: train, val or test. They go
    before folders of those names"""
    limit_per_class: Annotated[int, Between(0, 10000000)] = 0
    """how many images of each class to take on each published side, 0 for all. Patients come in an order that the
    hash key gives, each with all images; an image is taken while one of its classes is below the limit"""
    missing_files: Annotated[str, OneOf(("refuse", "skip"))] = "refuse"
    """what becomes of lines of the table or a list that name files which the source lacks: refuse or skip"""
    keep_sites: list[str] = field(default_factory=list)
    """names of sites that the table may show as they are; the others are shown by a keyed hash"""
    keep_text: bool = False
    """keep the table's free text, which may name patients"""

    def __post_init__(self) -> None:
        _check_texts(self)
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


def _check_texts(parameters: SourceParameters) -> None:
    for name in ("label_map", "columns", "official"):
        for key, value in getattr(parameters, name).items():
            for what in (key, value):
                if not isinstance(what, str):
                    raise RefusedError(f"{name} holds {what!r}, which is no text. Put it into quotation marks.")
    for what in parameters.classes:
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


def _check_classes(parameters: SourceParameters) -> None:
    least = 1 if parameters.multilabel else 2
    targets = sorted({name for name in parameters.label_map.values() if name})
    if parameters.label_map and len(targets) < least:
        raise RefusedError(
            f"label_map leads to {len(targets)} class{'es' * (len(targets) != 1)}{': ' * bool(targets)}"
            f"{', '.join(targets)}; a {'multilabel task' if least == 1 else 'classifier'} needs at least {least}. "
            "Map the labels to more."
        )
    stray = [name for name in parameters.classes if parameters.label_map and name not in targets]
    if stray:
        raise RefusedError(
            f"classes names {stray[0]!r}, to which label_map leads no label.{nearest(stray[0], targets)} "
            "Name what the map leads to."
        )
    chosen = list(dict.fromkeys(parameters.classes))
    if parameters.classes and len(chosen) < least:
        raise RefusedError(f"classes names only {chosen[0]!r}; a classifier needs at least 2. Name more, or none.")
    if not parameters.multilabel or not parameters.no_finding:
        return
    if parameters.no_finding in chosen:
        raise RefusedError(
            f"classes names {parameters.no_finding!r}, which no_finding says is none. An image without a finding has "
            "no label in a multilabel task; take it out of one of the two."
        )
    if parameters.label_map.get(parameters.no_finding):
        raise RefusedError(
            f"label_map leads {parameters.no_finding!r} to a class, and no_finding says that it means none. Take it "
            "out of the map, or map it to '' to leave its images out."
        )
