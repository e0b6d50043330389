"""The figures of a classifier on labelled images, each for many weightings of the patients at once.

A weighting says how often each patient counts: once each for the figure itself, and as drawn for the bootstrap, so one
piece of code gives both. What a class has no image for is NaN, and averages over classes leave such a class out;
a class that is never predicted has precision 0. With two classes the second is the positive one and sensitivity,
specificity, precision, F1, AUC and PR-AUC are its own; with more they are means over the classes, one against the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from components.evaluate.intervals import Floats

Ints = NDArray[np.int64]

BY_CLASS = ("sensitivity", "specificity", "precision", "f1", "auc", "pr_auc", "calibration_error")
"""Figures that each class has."""
SCORES = ("accuracy", "balanced_accuracy", "auc", "pr_auc", "sensitivity", "specificity", "precision", "f1")
"""Figures between 0 and 1 that a flawless model has at 1."""
OTHERS = {"kappa": (-1.0, 1.0), "brier": (0.0, 2.0), "calibration_error": (0.0, 1.0)}
"""All other figures, with their lowest and highest value."""
PLAIN = ("accuracy", "auc", "balanced_accuracy", "brier")
"""The figures in which two models are compared."""

CELLS = 250_000
"""How many numbers a piece of the bootstrap holds at once."""


@dataclass(frozen=True)
class Scored:
    """Images with their true class, a model's class and probabilities for them, and their patients as 0, 1, 2, …"""

    labels: Ints
    predicted: Ints
    probabilities: Floats
    patients: Ints

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.probabilities.shape[1])

    @cached_property
    def number_of_patients(self) -> int:
        """How many patients the images are of."""
        return int(self.patients.max()) + 1

    def only(self, chosen: NDArray[np.bool_]) -> Scored:
        """The chosen images alone, their patients numbered anew."""
        patients = np.unique(self.patients[chosen], return_inverse=True)[1]
        return Scored(self.labels[chosen], self.predicted[chosen], self.probabilities[chosen], patients)

    def patients_of(self, images: NDArray[np.bool_]) -> int:
        """How many patients these images are of."""
        return len(np.unique(self.patients[images]))


def calibration_bins(probabilities: Floats) -> Ints:
    """The bin of each probability: ten bins, fewer where there are few images, each with about equally many."""
    number = min(10, max(2, len(probabilities) // 20))
    edges = np.quantile(probabilities, np.linspace(0, 1, number + 1))
    return np.searchsorted(edges[1:-1], probabilities)


class Measure:
    """All figures of scored images, for any weighting of the patients: `weights` is [weightings, patients]."""

    def __init__(self, scored: Scored) -> None:
        self.scored = scored
        self.classes = range(scored.classes)
        pairs = scored.labels * scored.classes + scored.predicted
        self._confusion = self._by_patient(np.eye(scored.classes**2)[pairs])
        truth = np.eye(scored.classes)[scored.labels]
        errors = (scored.probabilities - truth) ** 2
        self._brier = self._by_patient(errors[:, 1:] if scored.classes == 2 else errors).sum(axis=1)
        self._calibration = [self._gaps(truth[:, k], scored.probabilities[:, k]) for k in self.classes]

    def _by_patient(self, values: Floats) -> Floats:
        sums = np.zeros((self.scored.number_of_patients, values.shape[1]))
        np.add.at(sums, self.scored.patients, values)
        return sums

    def _gaps(self, truth: Floats, probability: Floats) -> Floats:
        bins = calibration_bins(probability)
        return self._by_patient(np.eye(int(bins.max()) + 1)[bins] * (truth - probability)[:, None])

    def confusion(self, weights: Floats) -> Floats:
        """How often class i (row) is taken for class j (column): [weightings, i, j]."""
        return np.asarray((weights @ self._confusion).reshape(-1, len(self.classes), len(self.classes)))

    def chance(self, weights: Floats) -> Floats:
        """The accuracy that chance would give with these classes called as often as they were."""
        confusion = self.confusion(weights)
        return np.asarray((confusion.sum(axis=1) * confusion.sum(axis=2)).sum(axis=1) / confusion.sum(axis=(1, 2)) ** 2)

    def plain(self, weights: Floats) -> dict[str, Floats]:
        """The figures in which models are compared."""
        confusion = self.confusion(weights)
        total = confusion.sum(axis=(1, 2))
        right = np.diagonal(confusion, axis1=1, axis2=2)
        ranked = [self.ranking(k, weights)[0] for k in self.ranked]
        return {
            "accuracy": right.sum(axis=1) / total,
            "balanced_accuracy": _mean(_ratio(right, confusion.sum(axis=2))),
            "auc": _mean(np.stack(ranked, axis=1)),
            "brier": weights @ self._brier / total,
        }

    @property
    def ranked(self) -> list[int]:
        """The classes whose AUC is averaged: all, or the positive one of two."""
        return [1] if len(self.classes) == 2 else list(self.classes)

    def by_class(self, weights: Floats) -> dict[str, Floats]:
        """The figures of each class: [weightings, classes]."""
        confusion = self.confusion(weights)
        total = confusion.sum(axis=(1, 2))[:, None]
        right = np.diagonal(confusion, axis1=1, axis2=2)
        actual, called = confusion.sum(axis=2), confusion.sum(axis=1)
        ranked = [self.ranking(k, weights) for k in self.classes]
        gaps = np.stack([np.abs(weights @ gaps).sum(axis=1) for gaps in self._calibration], axis=1)
        present = np.where(actual > 0, 1.0, np.nan)
        return {
            "sensitivity": _ratio(right, actual),
            "specificity": _ratio(total - actual - called + right, total - actual),
            "precision": right / np.maximum(called, 1) * present,
            "f1": _ratio(2 * right, actual + called) * present,
            "auc": np.stack([auc for auc, _ in ranked], axis=1),
            "pr_auc": np.stack([pr_auc for _, pr_auc in ranked], axis=1),
            "calibration_error": gaps / total * present,
        }

    def overall(self, by_class: dict[str, Floats], weights: Floats) -> dict[str, Floats]:
        """The figures over all classes, from those of each class."""
        confusion = self.confusion(weights)
        total = confusion.sum(axis=(1, 2))
        accuracy = np.diagonal(confusion, axis1=1, axis2=2).sum(axis=1) / total
        chance = self.chance(weights)
        return {
            "accuracy": accuracy,
            "balanced_accuracy": _mean(by_class["sensitivity"]),
            "kappa": _ratio(accuracy - chance, 1 - chance),
            "brier": weights @ self._brier / total,
            **{name: _mean(by_class[name][:, self.ranked]) for name in BY_CLASS},
        }

    def all(self, weights: Floats) -> dict[str, Floats]:
        """The figures over all classes by name, and those of class k as name/k."""
        by_class = self.by_class(weights)
        single = {f"{name}/{k}": values[:, k] for name, values in by_class.items() for k in self.classes}
        return {**self.overall(by_class, weights), **single}

    @cached_property
    def _order(self) -> list[tuple[Ints, NDArray[np.bool_], Ints]]:
        """For each class: the images from the most to the least likely, which of them are of it, the ends of ties."""
        orders = []
        for k in self.classes:
            order = np.argsort(-self.scored.probabilities[:, k], kind="stable")
            ranked = self.scored.probabilities[order, k]
            ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
            orders.append((order, self.scored.labels[order] == k, ends))
        return orders

    def ranking(self, k: int, weights: Floats) -> tuple[Floats, Floats]:
        """AUC and PR-AUC (average precision) of class k against the rest."""
        order, positive, ends = self._order[k]
        drawn = weights[:, self.scored.patients[order]]
        called = np.cumsum(drawn, axis=1)[:, ends]
        found = np.cumsum(drawn * positive, axis=1)[:, ends]
        wrong = called - found
        new_found, new_wrong = np.diff(found, axis=1, prepend=0), np.diff(wrong, axis=1, prepend=0)
        all_found, all_wrong = found[:, -1], wrong[:, -1]
        ahead = (new_found * (all_wrong[:, None] - wrong + new_wrong / 2)).sum(axis=1)
        precision = (new_found * found / np.maximum(called, 1)).sum(axis=1)
        return _ratio(ahead, all_found * all_wrong), _ratio(precision, all_found)


def once(scored: Scored) -> Floats:
    """The weighting in which every patient counts once."""
    return np.ones((1, scored.number_of_patients))


def pieces(weights: NDArray[np.uint16], images: int) -> Iterator[Floats]:
    """The weightings in pieces that fit into memory together with so many images."""
    step = max(1, CELLS // max(images, weights.shape[1]))
    for start in range(0, len(weights), step):
        yield weights[start : start + step].astype(np.float64)


def resample(
    figures: Callable[[Floats], dict[str, Floats]], weights: NDArray[np.uint16], images: int
) -> dict[str, Floats]:
    """The figures for each of many weightings."""
    parts = [figures(piece) for piece in pieces(weights, images)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))


def _mean(by_class: Floats) -> Floats:
    """The mean over the classes that have a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no class has a value: NaN is the answer
        return np.asarray(np.nanmean(by_class, axis=1))
