"""The folds of cross-validation: each patient outside the test is in one, for good."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.shared.errors import RefusedError
from components.split.columns import TEST, TRAIN, VAL, Codes, once
from components.split.draw import draw, room_in_folds
from components.split.history import Owners
from components.split.strata import People


def check_fold(folds: int, fold: int) -> None:
    """A ValueError unless there are no folds or at least two, and this is one of them."""
    if folds == 1:
        raise RefusedError(
            "folds is 1, and must be 0 for none, or from 2 to 20. With one there is nothing to train on."
        )
    if fold >= max(folds, 1):
        raise RefusedError(f"fold is {fold}, and must be below folds, which is {folds}. The first fold is 0.")


def draw_folds(
    people: People, side: Codes, linked: NDArray[np.bool_], owners: Owners, fold: Codes, folds: int, lot: Codes
) -> Codes:
    """Everyone's fold, -1 for those on test and on no side; who has a fold (`fold` is not -1) keeps it.

    A patient who is linked to another by the same picture shares their fold.
    """
    members = (side == VAL) | (side == TRAIN)
    fold = np.where(members, fold, -1)
    for together in (~linked, np.ones(len(side), bool)):
        for stratum in np.unique(people.stratum[members]):
            among = members & together & (people.stratum == stratum)
            held = np.bincount(fold[among & (fold >= 0)], minlength=folds).tolist()
            room = room_in_folds(int((among & (fold < 0)).sum()), held)
            fold = np.where(among, draw(people.features, among, fold, room, lot), fold)
        fold = np.where(members & linked & (fold < 0), _of_others(people, owners, fold, folds), fold)
    return fold


def _of_others(people: People, owners: Owners, fold: Codes, folds: int) -> Codes:
    found = owners.least(people.ids, np.where(fold >= 0, fold, folds), folds)
    theirs = np.full(len(people.ids), folds, np.int64)
    np.minimum.at(theirs, people.of, found)
    return np.where(theirs < folds, theirs, -1)


def rotate(side: Codes, fold: Codes, chosen: int) -> Codes:
    """The sides of this run: the chosen fold validates and the others train; the test stays as it is."""
    return np.where(side == TEST, TEST, np.where(fold < 0, side, np.where(fold == chosen, VAL, TRAIN)))


def uneven(people: People, side: Codes, folds: int, classes: list[str]) -> list[str]:
    """Which findings have fewer patients outside the test than there are folds; a ValueError where a class has."""
    members = (side == VAL) | (side == TRAIN)
    what = "Class" if people.findings is None else "Finding"
    found = [
        f"{what} {name!r} has {count} patients outside the test, and {folds} folds need one each. Set fewer folds, or "
        "add patients."
        for name, count in zip(classes, people.with_each(members, len(classes)), strict=True)
        if count < folds
    ]
    if found and people.findings is None:
        raise RefusedError(found[0])
    return found


def shares_of_folds(people: People, fold: Codes, used: NDArray[np.bool_], folds: int) -> list[dict[str, int]]:
    """How many patients and images each fold has."""
    rows = np.flatnonzero(used & (fold[people.of] >= 0))
    images = np.bincount(fold[people.of[rows]], minlength=folds)
    patients = np.bincount(fold[once(people.of[rows])], minlength=folds)
    return [{"patients": int(count), "images": int(number)} for count, number in zip(patients, images, strict=True)]
