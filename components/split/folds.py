"""Assign each patient outside the test split permanently to a fold of cross-validation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.shared.errors import RefusedError
from components.split.codes import TEST, TRAIN, VAL, Codes, group_minimum, sorted_unique
from components.split.draw import draw, places_per_fold
from components.split.history import Owners
from components.split.strata import People


def check_fold(folds: int, fold: int) -> None:
    """Raise a ValueError unless `folds` is 0 or at least 2, and `fold` is one of them."""
    if folds == 1:
        raise RefusedError("folds is 1; it must be 0 for none, or from 2 to 20. With 1 there is no fold to train on.")
    if fold >= max(folds, 1):
        raise RefusedError(f"fold is {fold}; it must be below folds, which is {folds}. The first fold is 0.")


def draw_folds(
    people: People, splits: Codes, is_linked: NDArray[np.bool_], owners: Owners, fold: Codes, folds: int, rank: Codes
) -> Codes:
    """Return each patient's fold, -1 in test and in no split; keep existing ones.

    Patients who are linked by a shared image get the same fold.
    """
    members = (splits == VAL) | (splits == TRAIN)
    fold = np.where(members, fold, -1)
    for in_round in (~is_linked, np.ones(len(splits), bool)):
        for stratum in np.unique(people.stratum[members]):
            group = members & in_round & (people.stratum == stratum)
            assigned = np.bincount(fold[group & (fold >= 0)], minlength=folds).tolist()
            places = places_per_fold(int((group & (fold < 0)).sum()), assigned)
            fold = np.where(group, draw(people.features, group, fold, places, rank), fold)
        fold = np.where(members & is_linked & (fold < 0), _folds_of_linked(people, owners, fold, folds), fold)
    return fold


def _folds_of_linked(people: People, owners: Owners, fold: Codes, folds: int) -> Codes:
    owner_fold = owners.owner_minimum(people.ids, np.where(fold >= 0, fold, folds), folds)
    linked_fold = group_minimum(people.patient_of_row, owner_fold, len(people.ids), folds)
    return np.where(linked_fold < folds, linked_fold, -1)


def rotate(splits: Codes, fold: Codes, validation_fold: int) -> Codes:
    """Return the splits of this run: one fold is val, the others are train."""
    return np.where(splits == TEST, TEST, np.where(fold < 0, splits, np.where(fold == validation_fold, VAL, TRAIN)))


def check_folds(people: People, splits: Codes, folds: int, classes: list[str]) -> list[str]:
    """Return warnings about findings too rare for the folds; refuse such classes."""
    members = (splits == VAL) | (splits == TRAIN)
    kind = "Class" if people.findings is None else "Finding"
    problems = [
        f"{kind} {name!r} has {count} patients outside the test split, but {folds} folds need one each. Set fewer "
        "folds, or add patients."
        for name, count in zip(classes, people.count_by_class(members, len(classes)), strict=True)
        if count < folds
    ]
    if problems and people.findings is None:
        raise RefusedError(problems[0])
    return problems


def count_by_fold(people: People, fold: Codes, used: NDArray[np.bool_], folds: int) -> list[dict[str, int]]:
    """Return the number of patients and images in each fold."""
    rows = np.flatnonzero(used & (fold[people.patient_of_row] >= 0))
    images = np.bincount(fold[people.patient_of_row[rows]], minlength=folds)
    patients = np.bincount(fold[sorted_unique(people.patient_of_row[rows])], minlength=folds)
    return [{"patients": int(count), "images": int(number)} for count, number in zip(patients, images, strict=True)]
