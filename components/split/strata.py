"""The patients of a data set and the features to balance: classes or findings, sex, age band, site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.shared.datasets.age_bands import AGES
from components.split.codes import Codes, distinct, positions

IMAGE_COUNT_BANDS = (2, 3, 5, 9, 17, 33, 65)
"""Bands of the number of images per patient, so that splits also have their fraction of images."""
STRATUM_WEIGHT = 0.05
"""Weight of sex, age band, site and number of images, relative to a finding's weight of 1."""


@dataclass(frozen=True)
class Features:
    """Weighted features to balance: pairs of a patient and a feature."""

    patient_index: Codes
    feature_index: Codes
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class People:
    """The patients of a data set, sorted by id."""

    ids: pa.Array
    patient_of_row: Codes
    stratum: Codes
    """The rarest class of each patient, within which fractions are exact; 0 if images have findings."""
    findings: NDArray[np.bool_] | None
    """Which patient has which finding on any image; None if every image has one class."""
    features: Features
    label_pairs: tuple[Codes, Codes]
    """Pairs of a patient and a class or finding that they have on any image."""

    def count_by_class(self, members: NDArray[np.bool_], classes: int) -> list[int]:
        """Return how many of these patients have each class."""
        patient_index, label = self.label_pairs
        return [int(count) for count in np.bincount(label[members[patient_index]], minlength=classes)]


def read_people(index: pa.Table, about: dict[str, Any]) -> People:
    """Return the patients of these rows."""
    ids = distinct(index["patient_id"])
    patient_of_row = positions(index["patient_id"], ids)
    rows, labels = labels_of(index)
    counts = np.bincount(patient_of_row, minlength=len(ids))
    strata = [majority(patient_of_row, attribute_codes(index, name)[0], len(ids)) for name in ("sex", "age", "site")]
    strata.append(np.searchsorted(IMAGE_COUNT_BANDS, counts, side="right").astype(np.int64))
    classes = max(1, len(about["classes"]))
    pairs = np.unique(patient_of_row[rows] * classes + labels)
    label_pairs = (pairs // classes, pairs % classes)
    if about["task"] != "multilabel":
        return People(
            ids, patient_of_row, _rarest(label_pairs, len(ids), classes), None, _features([], strata), label_pairs
        )
    findings = np.zeros((len(ids), len(about["classes"])), bool)
    findings[patient_of_row[rows], labels] = True
    columns = [*findings.T, ~findings.any(axis=1)]
    return People(ids, patient_of_row, np.zeros(len(ids), np.int64), findings, _features(columns, strata), label_pairs)


def _rarest(label_pairs: tuple[Codes, Codes], patients: int, classes: int) -> Codes:
    """Return each patient's rarest class, in a tie the last one."""
    patient_index, label = label_pairs
    order = np.lexsort((-label, np.bincount(label, minlength=classes)[label], patient_index))
    result = np.zeros(patients, np.int64)
    first = np.unique(patient_index[order], return_index=True)
    result[first[0]] = label[order][first[1]]
    return result


def labels_of(index: pa.Table) -> tuple[Codes, Codes]:
    """Return the row and the label of each label in the index."""
    lists = index["labels"].combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    return rows.astype(np.int64), pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.int64)


def attribute_codes(index: pa.Table, name: str) -> tuple[Codes, list[str]]:
    """Return the code of each row's attribute, -1 if unknown, and the values."""
    if name != "age":
        values = distinct(index[name].filter(pc.not_equal(index[name], "")))
        return positions(index[name], values), values.to_pylist()
    ages, codes = index["age"].to_numpy(), np.full(len(index), -1, np.int64)
    for band, (low, high) in enumerate(AGES.values()):
        codes[(ages >= low) & (ages <= high)] = band
    return codes, list(AGES)


def majority(patient_of_row: Codes, codes: Codes, count: int) -> Codes:
    """Return each group's most frequent code, in a tie the higher; -1 if unknown."""
    patient_of_row, codes = patient_of_row[codes >= 0], codes[codes >= 0]
    result = np.full(count, -1, np.int64)
    if len(codes):
        wide = int(codes.max()) + 1
        pairs, counts = np.unique(patient_of_row * wide + codes, return_counts=True)
        order = np.lexsort((pairs % wide, counts, pairs // wide))
        result[pairs[order] // wide] = pairs[order] % wide  # the last assignment to a position counts
    return result


def _features(findings: list[NDArray[np.bool_]], strata: list[Codes]) -> Features:
    patient_index = [np.flatnonzero(column) for column in findings]
    feature_index = [np.full(len(members), feature) for feature, members in enumerate(patient_index)]
    weight = [1.0] * len(findings)
    for codes in strata:
        known = np.flatnonzero(codes >= 0)
        patient_index.append(known)
        feature_index.append(codes[known] + len(weight))
        weight += [STRATUM_WEIGHT] * (int(codes.max(initial=-1)) + 1)
    everyone, everything = np.concatenate(patient_index), np.concatenate(feature_index)
    order = np.lexsort((everything, everyone))
    return Features(everyone[order], everything[order], np.array(weight))
