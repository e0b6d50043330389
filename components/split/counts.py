"""Count the patients and images of each class, sex, age band and site in each split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from components.split.codes import NONE, SPLITS, Codes, sorted_unique
from components.split.strata import attribute_codes, labels_of

NO_FINDING = "no finding"


def count_by_value(index: pa.Table, patient_of_row: Codes, splits: Codes, about: dict[str, Any]) -> dict[str, Any]:
    """Count patients and images by field, value and split."""
    rows, labels = labels_of(index)
    names = list(about["classes"])
    if about["task"] == "multilabel":
        without = np.setdiff1d(np.arange(len(index)), rows)
        rows, labels = np.append(rows, without), np.append(labels, np.full(len(without), _position(NO_FINDING, names)))
    counts = {"class": _count(rows, labels, names, patient_of_row, splits)}
    for field in ("sex", "age", "site"):
        codes, values = attribute_codes(index, field)
        if (codes < 0).any():
            codes = np.where(codes < 0, _position("unknown", values), codes)
        counts[field] = _count(np.arange(len(index)), codes, values, patient_of_row, splits)
    return counts


def _count(rows: Codes, codes: Codes, names: Sequence[str], patient_of_row: Codes, splits: Codes) -> dict[str, Any]:
    rows, codes = rows[splits[rows] != NONE], codes[splits[rows] != NONE]
    cell = codes * NONE + splits[rows]
    images = np.bincount(cell, minlength=len(names) * NONE).reshape(-1, NONE)
    count = int(patient_of_row.max()) + 1
    cell_of_patient = sorted_unique(cell * count + patient_of_row[rows]) // count
    patients = np.bincount(cell_of_patient, minlength=len(names) * NONE).reshape(-1, NONE)
    return {
        name: {
            SPLITS[split]: {"patients": int(patients[number, split]), "images": int(images[number, split])}
            for split in range(NONE)
        }
        for number, name in enumerate(names)
    }


def _position(name: str, names: list[str]) -> int:
    """Return the position of a name in `names`; add it if it is missing."""
    if name not in names:
        names.append(name)
    return names.index(name)
