"""The patients of a data set, and what of each is to be balanced: classes or findings, sex, age band, site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.shared.datasets.parquet_tables import AGES
from components.split.columns import Codes, distinct, positions

IMAGES = (2, 3, 5, 9, 17, 33, 65)
"""Bands of how many images a patient has, so that the sides have their share of images, too."""
OF_STRATUM = 0.05
"""How much a stratum counts beside a finding, which counts 1."""


@dataclass(frozen=True)
class Features:
    """What is balanced: patient `who[i]` has the feature `what[i]`; and how much each feature counts."""

    who: Codes
    what: Codes
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class People:
    """The patients of a data set in the order of their ids, `of` giving the one of each row."""

    ids: pa.Array
    of: Codes
    stratum: Codes
    """The group within which shares are exact: the rarest of their classes; 0 where images have findings."""
    findings: NDArray[np.bool_] | None
    """Which patient has which finding on any image; None where every image has one class."""
    features: Features
    having: tuple[Codes, Codes]
    """Every patient with every class or finding they have on any image."""

    def with_each(self, members: NDArray[np.bool_], classes: int) -> list[int]:
        """How many of these patients have each class."""
        who, label = self.having
        return [int(count) for count in np.bincount(label[members[who]], minlength=classes)]


def read_people(index: pa.Table, about: dict[str, Any]) -> People:
    """The patients behind these rows."""
    ids = distinct(index["patient_id"])
    of = positions(index["patient_id"], ids)
    rows, labels = labels_of(index)
    counts = np.bincount(of, minlength=len(ids))
    strata = [
        *(majority(of, codes, len(ids)) for codes, _ in (described(index, name) for name in ("sex", "age", "site"))),
        np.searchsorted(IMAGES, counts, side="right").astype(np.int64),
    ]
    classes = max(1, len(about["classes"]))
    pairs = np.unique(of[rows] * classes + labels)
    having = (pairs // classes, pairs % classes)
    if about["task"] != "multilabel":
        return People(ids, of, _rarest(having, len(ids), classes), None, _features([], strata), having)
    findings = np.zeros((len(ids), len(about["classes"])), bool)
    findings[of[rows], labels] = True
    columns = [*findings.T, ~findings.any(axis=1)]
    return People(ids, of, np.zeros(len(ids), np.int64), findings, _features(columns, strata), having)


def _rarest(having: tuple[Codes, Codes], patients: int, classes: int) -> Codes:
    """Of each patient's classes the one that the fewest patients have, the last of them where it is even."""
    who, label = having
    order = np.lexsort((-label, np.bincount(label, minlength=classes)[label], who))
    found = np.zeros(patients, np.int64)
    first = np.unique(who[order], return_index=True)
    found[first[0]] = label[order][first[1]]
    return found


def labels_of(index: pa.Table) -> tuple[Codes, Codes]:
    """Every label of every row: the row's position, and the label."""
    lists = index["labels"].combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    return rows.astype(np.int64), pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.int64)


def described(index: pa.Table, name: str) -> tuple[Codes, list[str]]:
    """The sex, age band or site of each row as a number, -1 where it is not known; and what the numbers stand for."""
    if name != "age":
        values = distinct(index[name].filter(pc.not_equal(index[name], "")))
        return positions(index[name], values), values.to_pylist()
    ages, codes = index["age"].to_numpy(), np.full(len(index), -1, np.int64)
    for band, (low, high) in enumerate(AGES.values()):
        codes[(ages >= low) & (ages <= high)] = band
    return codes, list(AGES)


def majority(of: Codes, codes: Codes, number: int) -> Codes:
    """The code that most rows of each group have, the higher one where it is even; -1 where none is known."""
    of, codes = of[codes >= 0], codes[codes >= 0]
    found = np.full(number, -1, np.int64)
    if len(codes):
        wide = int(codes.max()) + 1
        pairs, counts = np.unique(of * wide + codes, return_counts=True)
        order = np.lexsort((pairs % wide, counts, pairs // wide))
        found[pairs[order] // wide] = pairs[order] % wide  # of equal places the last one stays
    return found


def _features(findings: list[NDArray[np.bool_]], strata: list[Codes]) -> Features:
    who = [np.flatnonzero(column) for column in findings]
    what = [np.full(len(found), feature) for feature, found in enumerate(who)]
    weight = [1.0] * len(findings)
    for codes in strata:
        there = np.flatnonzero(codes >= 0)
        who.append(there)
        what.append(codes[there] + len(weight))
        weight += [OF_STRATUM] * (int(codes.max(initial=-1)) + 1)
    everyone, everything = np.concatenate(who), np.concatenate(what)
    order = np.lexsort((everything, everyone))
    return Features(everyone[order], everything[order], np.array(weight))
