"""How the patients and images of each class, sex, age band and site are shared out among the sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from components.split.columns import NONE, SIDES, Codes, once
from components.split.strata import described, labels_of

NO_FINDING = "no finding"


def shares(index: pa.Table, of: Codes, side: Codes, about: dict[str, Any]) -> dict[str, Any]:
    """Counts of patients and images by field, value and side; an image counts for each of its findings."""
    rows, labels = labels_of(index)
    names = list(about["classes"])
    if about["task"] == "multilabel":
        without = np.setdiff1d(np.arange(len(index)), rows)
        rows, labels = np.append(rows, without), np.append(labels, np.full(len(without), _place(NO_FINDING, names)))
    found = {"class": _counted(rows, labels, names, of, side)}
    for field in ("sex", "age", "site"):
        codes, values = described(index, field)
        if (codes < 0).any():
            codes = np.where(codes < 0, _place("unknown", values), codes)
        found[field] = _counted(np.arange(len(index)), codes, values, of, side)
    return found


def _counted(rows: Codes, codes: Codes, names: Sequence[str], of: Codes, side: Codes) -> dict[str, Any]:
    rows, codes = rows[side[rows] != NONE], codes[side[rows] != NONE]
    cell = codes * NONE + side[rows]
    images = np.bincount(cell, minlength=len(names) * NONE).reshape(-1, NONE)
    patients = once(cell * (int(of.max()) + 1) + of[rows]) // (int(of.max()) + 1)
    people = np.bincount(patients, minlength=len(names) * NONE).reshape(-1, NONE)
    return {
        name: {
            SIDES[place]: {"patients": int(people[number, place]), "images": int(images[number, place])}
            for place in range(NONE)
        }
        for number, name in enumerate(names)
    }


def _place(name: str, names: list[str]) -> int:
    """Where this name stands among the names, added if need be."""
    if name not in names:
        names.append(name)
    return names.index(name)
