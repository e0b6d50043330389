"""What was scored, and those figures whose intervals are drawn: for many weightings of the patients at once.

A weighting says how often each patient counts: once each for the figure itself, and as drawn for the bootstrap, so one
piece of code gives both. What a class has no image for is NaN, and averages over classes leave such a class out.
Figures that are shares or areas stand in estimates.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.statistics.intervals import Floats

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

CELLS = 4_000_000
"""How many numbers a piece of the bootstrap holds at once."""


@dataclass(frozen=True)
class Scored:
    """Images with what is true of them, what a model says, its probabilities, and their patients as 0, 1, 2, …

    Of one class an image `labels` and `predicted` are [images]. Of findings they are [images, findings] of 0 and 1.
    """

    labels: Ints
    predicted: Ints
    probabilities: Floats
    patients: Ints

    @property
    def classes(self) -> int:
        """How many classes or findings there are."""
        return int(self.probabilities.shape[1])

    @property
    def several(self) -> bool:
        """Whether an image has any number of findings, rather than one class."""
        return self.labels.ndim == 2

    @property
    def ranked(self) -> list[int]:
        """The classes whose figures are averaged: all, or the positive one of two."""
        return [1] if self.classes == 2 and not self.several else list(range(self.classes))

    @cached_property
    def truth(self) -> Bools:
        """Whether each image is of each class, or shows each finding: [images, classes]."""
        return self.labels.astype(bool) if self.several else self.labels[:, None] == np.arange(self.classes)

    @cached_property
    def called(self) -> Bools:
        """Whether the model says so: [images, classes]."""
        return self.predicted.astype(bool) if self.several else self.predicted[:, None] == np.arange(self.classes)

    @cached_property
    def number_of_patients(self) -> int:
        """How many patients the images are of."""
        return int(self.patients.max()) + 1 if len(self.patients) else 0

    def only(self, chosen: Bools) -> Scored:
        """The chosen images alone, their patients numbered anew."""
        patients = np.unique(self.patients[chosen], return_inverse=True)[1]
        return Scored(self.labels[chosen], self.predicted[chosen], self.probabilities[chosen], patients)

    def patients_of(self, images: Bools) -> int:
        """How many patients these images are of."""
        return int(np.count_nonzero(np.bincount(self.patients[images])))

    @cached_property
    def _sorted(self) -> tuple[Ints, Ints]:
        order = np.argsort(self.patients, kind="stable")
        return order, np.searchsorted(self.patients[order], np.arange(self.number_of_patients))

    def by_patient(self, values: NDArray[Any]) -> Floats:
        """The sum over each patient's images, of each column: [patients, …]."""
        order, starts = self._sorted
        return np.asarray(np.add.reduceat(values[order].astype(np.float64), starts, axis=0))


def calibration_bins(probabilities: Floats) -> Ints:
    """The bin of each probability: ten bins, fewer where there are few images, each with about equally many."""
    number = min(10, max(2, len(probabilities) // 20))
    edges = np.quantile(probabilities, np.linspace(0, 1, number + 1))
    return np.searchsorted(edges[1:-1], probabilities)


class Measure:
    """The figures that are drawn, for any weighting of the patients: `weights` is [weightings, patients].

    With `ordered` classes the quadratic-weighted kappa is one of them.
    """

    def __init__(self, scored: Scored, ordered: bool = False) -> None:
        self.scored, self.ordered = scored, ordered
        self.classes = range(scored.classes)
        truth, called = scored.truth, scored.called
        errors = (scored.probabilities - truth) ** 2
        parts = {"both": truth & called, "truth": truth, "called": called, "brier": errors}
        if not scored.several:
            parts["pairs"] = np.eye(scored.classes**2, dtype=bool)[scored.labels * scored.classes + scored.predicted]
        for k in self.classes:
            bins = calibration_bins(scored.probabilities[:, k])
            parts[f"bins/{k}"] = np.eye(int(bins.max()) + 1)[bins] * (truth[:, k] - scored.probabilities[:, k])[:, None]
        parts["images"] = np.ones((len(truth), 1), bool)
        self._sums = np.concatenate([scored.by_patient(part) for part in parts.values()], axis=1)
        ends = np.cumsum([part.shape[1] for part in parts.values()])
        self._places = dict(zip(parts, map(slice, [0, *ends[:-1]], ends), strict=True))

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        """The figures over all classes by name, and those of class k as name/k."""
        sums = weights @ self._sums
        part = {name: sums[:, place] for name, place in self._places.items()}
        total = part["images"]
        actual, called = part["truth"], part["called"]
        right = total - actual - called + 2 * part["both"]
        chance = (actual * called + (total - actual) * (total - called)) / total**2
        present = np.where(actual > 0, 1.0, np.nan)
        gaps = [np.abs(part[f"bins/{k}"]).sum(axis=1) for k in self.classes]
        by_class = {
            "kappa": ratio(right / total - chance, 1 - chance) * present,
            "brier": part["brier"] / total,
            "calibration_error": np.stack(gaps, axis=1) / total * present,
        }
        ranked = self.scored.ranked
        figures = {name: mean(values[:, ranked]) for name, values in by_class.items()}
        if not self.scored.several:
            pairs = part["pairs"].reshape(-1, len(self.classes), len(self.classes))
            figures["kappa"] = weighted_kappa(pairs, 0)
            if len(self.classes) > 2:
                figures["brier"] = by_class["brier"].sum(axis=1)
            if self.ordered:
                figures["weighted_kappa"] = weighted_kappa(pairs, 2)
        return figures | {f"{name}/{k}": values[:, k] for name, values in by_class.items() for k in self.classes}


def confusion(scored: Scored) -> Ints:
    """How often class i (row) is taken for class j (column); of each finding, whether it is there and called."""
    if not scored.several:
        pairs = np.bincount(scored.labels * scored.classes + scored.predicted, minlength=scored.classes**2)
        return pairs.reshape(scored.classes, scored.classes)
    cells = (2 * scored.labels + scored.predicted).T
    return np.stack([np.bincount(each, minlength=4).reshape(2, 2) for each in cells])


def weighted_kappa(confusion: Floats, power: int) -> Floats:
    """Agreement beyond chance, for many tables; an error weighs as the distance of the classes to this power."""
    places = np.arange(confusion.shape[1])
    weight = np.abs(places[:, None] - places) ** power if power else (places[:, None] != places).astype(np.int64)
    total = confusion.sum(axis=(1, 2))
    expected = confusion.sum(axis=2)[:, :, None] * confusion.sum(axis=1)[:, None, :]
    by_chance = (expected * weight).sum(axis=(1, 2)) / total
    return np.where(by_chance > 0, 1 - ratio((confusion * weight).sum(axis=(1, 2)), by_chance), np.nan)


def once(scored: Scored) -> Floats:
    """The weighting in which every patient counts once."""
    return np.ones((1, scored.number_of_patients))


def pieces(weights: NDArray[np.uint16]) -> Iterator[Floats]:
    """The weightings in pieces that fit into memory."""
    step = max(1, CELLS // weights.shape[1])
    for start in range(0, len(weights), step):
        yield weights[start : start + step].astype(np.float64)


def resample(figures: Callable[[Floats], dict[str, Floats]], weights: NDArray[np.uint16]) -> dict[str, Floats]:
    """The figures for each of many weightings."""
    parts = [figures(piece) for piece in pieces(weights)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ratio(above: Floats, below: Floats) -> Floats:
    """One by the other, NaN where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0))


def mean(by_class: Floats) -> Floats:
    """The mean over the classes that have a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no class has a value: NaN is the answer
        return np.asarray(np.nanmean(by_class, axis=1))
