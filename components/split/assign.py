"""Assign new patients to splits: by a shared image, by the published split, or by the draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.shared.errors import RefusedError
from components.split.codes import NONE, SPLITS, TEST, TRAIN, Codes, group_minimum, split_codes
from components.split.draw import draw, places_per_split
from components.split.history import LINKED, Assignment, History, Owners
from components.split.strata import People

MIN_PATIENTS = 3
"""Minimum number of patients of a class: one each for train, validation and test."""
OFFICIAL, DRAWN = "official", "draw"


def assign_linked(
    assignment: Assignment, is_present: NDArray[np.bool_], people: People, owners: Owners, previous: History
) -> Assignment:
    """Assign new patients who share an image with assigned ones to their split."""
    strictest = owners.owner_minimum(
        previous.patients["patient_id"].combine_chunks(), split_codes(previous.patients["side"])
    )
    return assignment.assign(is_present, group_minimum(people.patient_of_row, strictest, len(people.ids), NONE), LINKED)


def assign_official(
    assignment: Assignment, is_present: NDArray[np.bool_], people: People, index: pa.Table
) -> Assignment:
    """Assign new patients to their strictest published split, except train."""
    published = group_minimum(people.patient_of_row, split_codes(index["official"]), len(people.ids), NONE)
    return assignment.assign(is_present, np.where(published == TRAIN, NONE, published), OFFICIAL)


def assign_drawn(
    assignment: Assignment, is_present: NDArray[np.bool_], people: People, fractions: tuple[float, float], rank: Codes
) -> Assignment:
    """Draw the splits of all other patients, but do not extend a published test set."""
    splits = assignment.splits
    for stratum in np.unique(people.stratum[is_present]):
        members = is_present & (people.stratum == stratum)
        assigned = np.bincount(splits[members], minlength=NONE + 1)
        test_is_fixed = bool((members & (splits == TEST) & (assignment.reasons == OFFICIAL)).any())
        places = places_per_split(int(assigned[NONE]), assigned[:NONE].tolist(), fractions, test_is_fixed)
        drawn = draw(people.features, members, np.where(splits == NONE, -1, splits), places, rank)
        splits = np.where(members, drawn, splits)
    return assignment.assign(is_present, splits, DRAWN)


def check_patients(people: People, is_present: NDArray[np.bool_], about: dict[str, Any]) -> list[str]:
    """Return warnings about rare findings; raise a ValueError for too few patients."""
    findings, classes = people.findings, about["classes"]
    if findings is None:
        for name, count in zip(classes, people.count_by_class(is_present, len(classes)), strict=True):
            _require(f"Class {name!r}", count, f"Add patients of that class, or leave it out.{_guess(about)}")
        return []
    _require("The data set", int(is_present.sum()), f"Add patients.{_guess(about)}")
    if not findings[is_present].any():
        raise RefusedError(
            f"No image of the data set has any of its {len(classes)} findings. Check the column of labels and the "
            "label map."
        )
    return [
        f"Finding {name!r} has {_patients(count)}; at least {MIN_PATIENTS} are needed, one each for train, validation "
        "and test. Add patients with it, or leave it out."
        for name, count in zip(classes, findings[is_present].sum(axis=0).tolist(), strict=True)
        if count < MIN_PATIENTS
    ]


def _guess(about: dict[str, Any]) -> str:
    """Return a note if patients were guessed, on which the count then depends."""
    guessed = sum(about.get("counts", {}).get("guessed", {}).values())
    if not guessed:
        return ""
    return (
        f" The patients of {guessed:,} images were guessed from names of files and folders; if that is wrong, name "
        "them in patients.csv, or set ingest_options patient_pattern."
    )


def _patients(count: int) -> str:
    return f"{count} patient{'s' * (count != 1)}"


def _require(subject: str, count: int, remedy: str) -> None:
    if count < MIN_PATIENTS:
        raise RefusedError(
            f"{subject} has {_patients(count)}; the split needs at least {MIN_PATIENTS}, one each for train, "
            f"validation and test. {remedy}"
        )


def check_splits(index_labels: tuple[Codes, Codes], splits: Codes, about: dict[str, Any]) -> list[str]:
    """Return warnings about missing findings; raise a ValueError for a missing class."""
    rows, labels = index_labels
    classes, warnings = about["classes"], []
    for split in range(NONE):
        has_class = np.bincount(labels[splits[rows] == split], minlength=len(classes)) > 0
        missing_classes = [name for name, has_it in zip(classes, has_class, strict=True) if not has_it]
        subject = f"The {SPLITS[split]} split has no image"
        remedy = f"({len(splits)} images in total). Add patients with one, or change the fractions in split_options."
        if about["task"] != "multilabel" and missing_classes:
            raise RefusedError(f"{subject} of class {missing_classes[0]!r} {remedy}")
        if not has_class.any():
            raise RefusedError(f"{subject} with a finding {remedy}")
        warnings += [f"{subject} with the finding {name!r}, so it has no figures there." for name in missing_classes]
    return warnings
