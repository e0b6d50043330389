"""The sides of patients who have none: that of whom they are taken to be, the official one, the draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.shared.errors import RefusedError
from components.split.columns import NONE, TEST, TRAIN, Codes, least, side_codes
from components.split.draw import draw, room_on_sides
from components.split.history import LINKED, Given, History, Owners
from components.split.strata import People

FEWEST = 3
"""Patients of a class: one each for train, validation and test."""
OFFICIAL, DRAWN = "official", "draw"


def link(given: Given, there: NDArray[np.bool_], people: People, owners: Owners, before: History) -> Given:
    """New patients who show a picture of one who has a side: they go there too, to the strictest of all such sides."""
    strictest = owners.least(before.patients["patient_id"].combine_chunks(), side_codes(before.patients["side"]))
    return given.give(there, least(people.of, strictest, len(people.ids), NONE), LINKED)


def follow_official(given: Given, there: NDArray[np.bool_], people: People, index: pa.Table) -> Given:
    """New patients for whom a side was published, the strictest of all; train may still give some to validation."""
    published = least(people.of, side_codes(index["official"]), len(people.ids), NONE)
    return given.give(there, np.where(published == TRAIN, NONE, published), OFFICIAL)


def draw_sides(
    given: Given, there: NDArray[np.bool_], people: People, fractions: tuple[float, float], lot: Codes
) -> Given:
    """Everyone else, drawn so that the sides have their shares; a published test set is not added to."""
    side = given.side
    for stratum in np.unique(people.stratum[there]):
        members = there & (people.stratum == stratum)
        held = np.bincount(side[members], minlength=NONE + 1)
        closed = bool((members & (side == TEST) & (given.why == OFFICIAL)).any())
        room = room_on_sides(int(held[NONE]), held[:NONE].tolist(), fractions, closed)
        drawn = draw(people.features, members, np.where(side == NONE, -1, side), room, lot)
        side = np.where(members, drawn, side)
    return given.give(there, side, DRAWN)


def enough(people: People, there: NDArray[np.bool_], about: dict[str, Any]) -> list[str]:
    """A ValueError where the patients are too few to divide; what is doubtful, in sentences."""
    findings, classes = people.findings, about["classes"]
    if findings is None:
        for name, count in zip(classes, people.with_each(there, len(classes)), strict=True):
            _require(f"Class {name!r}", count, "Add patients of that class, or leave it out.")
        return []
    _require("The data set", int(there.sum()), "Add patients.")
    if not findings[there].any():
        raise RefusedError(
            f"No image of the data set has any of its {len(classes)} findings; there is nothing to learn. Check the "
            "column of labels and the label map."
        )
    return [
        f"Finding {name!r} has {_patients(count)}; at least {FEWEST} are needed for one each on train, validation and "
        "test. Add patients with it, or leave it out."
        for name, count in zip(classes, findings[there].sum(axis=0).tolist(), strict=True)
        if count < FEWEST
    ]


def _patients(count: int) -> str:
    return f"{count} patient{'s' * (count != 1)}"


def _require(what: str, count: int, remedy: str) -> None:
    if count < FEWEST:
        raise RefusedError(
            f"{what} has {_patients(count)}; the split needs at least {FEWEST}, one each for train, validation and "
            f"test. {remedy}"
        )


def missing(index_labels: tuple[Codes, Codes], side: Codes, about: dict[str, Any], names: Sequence[str]) -> list[str]:
    """What the sides lack. A ValueError where a side lacks a class, or where it has no image with a finding at all."""
    rows, labels = index_labels
    classes, warnings = about["classes"], []
    for place in range(NONE):
        there = np.bincount(labels[side[rows] == place], minlength=len(classes)) > 0
        lacking = [name for name, has in zip(classes, there, strict=True) if not has]
        what = f"The {names[place]} side has no image"
        remedy = f"({len(side)} images in all). Add patients with one, or change the fractions in split_options."
        if about["task"] != "multilabel" and lacking:
            raise RefusedError(f"{what} of class {lacking[0]!r} {remedy}")
        if not there.any():
            raise RefusedError(f"{what} with a finding {remedy}")
        warnings += [f"{what} with the finding {name!r}. No figure can be told of it there." for name in lacking]
    return warnings
