"""Parameters that describe a source, and their checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from components.shared.contracts import Between, OneOf
from components.shared.errors import RefusedError
from components.shared.runtime.stage_interface import nearest
from components.shared.storage.image_source import TABLE

DETAIL_COLUMNS = ("sex", "age", "site", "view", "modality", "label_source", "text")
"""Optional columns of a table that describe an image, besides names, label and published split."""

COLUMNS = ("file", "patient_id", "label", "official", *DETAIL_COLUMNS)
"""medloop's names of the columns of a table."""

SPLITS = ("train", "val", "test")
"""Splits to which a list of files may assign images."""


@dataclass(frozen=True)
class SourceParameters:
    """How to read a source, and which of its images to use."""

    classes: list[str] = field(default_factory=list)
    """classes to use, the one without a finding first; empty uses all. Other labels are ignored: an image with no
    remaining label is left out, or in a multilabel task counts as having no finding"""
    label_map: dict[str, str] = field(default_factory=dict)
    """class for each published label; '' leaves out the label's images. If set, it must contain every label"""
    task: Annotated[str, OneOf(("auto", "classification", "multilabel"))] = "auto"
    """classification (one class per image), multilabel (any number of findings per image), or auto: multilabel if
    separator is set"""
    table: str = "patients.csv"
    """CSV file in the source's root with one row per image"""
    columns: dict[str, str] = field(default_factory=dict)
    """the table's name for each medloop column to read. If empty, the table may only have medloop's column names:
    file, patient_id, label, official, sex, age, site, view, modality, label_source, text"""
    separator: str = ""
    """separator between the labels of one image, for example | in Effusion|Mass"""
    no_finding: str = ""
    """label that means no finding; in a multilabel task it is not a class"""
    label_pattern: str = ""
    """regular expression that finds the label in each file's name relative to the source; the label is the first
    group that matches. Takes precedence over folder names"""
    patient_pattern: str = ""
    """regular expression that finds the patient in the same way; takes precedence over the DICOM header and over the
    default rule for file names"""
    official: dict[str, str] = field(default_factory=dict)
    """split (train, val or test) for each list in the source's root; a list has one file name per line. Takes
    precedence over folders with those names"""
    limit_per_class: Annotated[int, Between(0, 10000000)] = 0
    """maximum number of images per class in each published split; 0 disables the limit. Patients are taken in the
    order of their keyed hashes; an image is used while at least one of its classes is below the limit"""
    missing_files: Annotated[str, OneOf(("refuse", "skip"))] = "refuse"
    """handling of rows that name a file the source does not have: refuse the source, or skip the row"""
    keep_sites: list[str] = field(default_factory=list)
    """site names in the table to keep in plain text; other names are replaced by a keyed hash"""
    keep_text: bool = False
    """keep the table's free text, which may contain patients' names"""

    def __post_init__(self) -> None:
        _check_texts(self)
        _check_columns(self.columns)
        for name, split in self.official.items():
            if split not in SPLITS:
                raise RefusedError(
                    f"official assigns the list {name} to {split!r}; it must be one of {', '.join(SPLITS)}."
                    f"{nearest(split, SPLITS)}"
                )
        _check_classes(self)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have any number of findings."""
        return self.task == "multilabel" or (self.task == "auto" and bool(self.separator))

    @property
    def skips_missing(self) -> bool:
        """Whether to skip rows that name a file the source does not have."""
        return self.missing_files == "skip"

    @property
    def needs_table(self) -> bool:
        """Whether a missing table is an error; the default patients.csv is optional."""
        return self.table != TABLE or bool(self.columns)


def compiled(name: str, pattern: str) -> re.Pattern[str] | None:
    """Compile the pattern of the parameter `name`; return None if it is empty."""
    if not pattern:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise RefusedError(
            f"{name} is {pattern!r}, which is not a valid regular expression: {error}. Correct it."
        ) from None
    if not expression.groups:
        raise RefusedError(f"{name} is {pattern!r}, which has no group. Put the part to extract in parentheses.")
    return expression


def _check_texts(parameters: SourceParameters) -> None:
    mappings = ((name, getattr(parameters, name)) for name in ("label_map", "columns", "official"))
    texts = [("classes", text) for text in parameters.classes]
    texts += [(name, text) for name, mapping in mappings for pair in mapping.items() for text in pair]
    for name, text in texts:
        if not isinstance(text, str):
            raise RefusedError(f"{name} contains {text!r}, which is not text. Put it in quotation marks.")


def _check_columns(columns: Mapping[str, str]) -> None:
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise RefusedError(
            f"columns has the unknown key {unknown[0]!r}.{nearest(unknown[0], COLUMNS)} Write medloop's name, a "
            f"colon, and the table's name. medloop's names are {', '.join(COLUMNS)}."
        )
    if columns and "file" not in columns:
        raise RefusedError("columns has no key 'file'. Add the name of the table's column with the file names.")


def _check_classes(parameters: SourceParameters) -> None:
    minimum = 1 if parameters.multilabel else 2
    targets = sorted({name for name in parameters.label_map.values() if name})
    if parameters.label_map and len(targets) < minimum:
        raise RefusedError(
            f"label_map has {len(targets)} class{'es' * (len(targets) != 1)}{': ' * bool(targets)}"
            f"{', '.join(targets)}; a {'multilabel task' if minimum == 1 else 'classifier'} needs at least {minimum}. "
            "Map labels to more classes."
        )
    unknown = [name for name in parameters.classes if parameters.label_map and name not in targets]
    if unknown:
        raise RefusedError(
            f"classes contains {unknown[0]!r}, but label_map maps no label to it.{nearest(unknown[0], targets)} "
            "Use the classes of label_map."
        )
    chosen = list(dict.fromkeys(parameters.classes))
    if parameters.classes and len(chosen) < minimum:
        raise RefusedError(
            f"classes contains only {chosen[0]!r}; a classifier needs at least 2. Add classes, or leave it empty."
        )
    if not parameters.multilabel or not parameters.no_finding:
        return
    if parameters.no_finding in chosen:
        raise RefusedError(
            f"{parameters.no_finding!r} is in both classes and no_finding. In a multilabel task an image without a "
            "finding has no class; remove it from one of the two."
        )
    if parameters.label_map.get(parameters.no_finding):
        raise RefusedError(
            f"label_map maps {parameters.no_finding!r} to a class, but no_finding declares it to mean no finding. "
            "Remove it from label_map, or map it to '' to leave out its images."
        )
