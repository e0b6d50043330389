"""Predictions, and the figures whose intervals are bootstrapped, for many weightings of the patients at once.

A weighting is the number of times that each patient counts: once for the figure itself, and as drawn for the bootstrap.
A figure that a class has no images for is NaN, and averages over classes ignore such a class. Proportions and areas are
in evaluate/point_metrics.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.statistics.calibration_bins import calibration_bins
from components.shared.statistics.intervals import Floats

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_CELLS = 4_000_000
"""Maximum size of the arrays of the bootstrap."""


@dataclass(frozen=True)
class Predictions:
    """Labels of images, the classes and probabilities that a model predicts, and the patients as 0, 1, 2, …

    `labels` and `predicted` are [images] for classes, and [images, findings] of 0 and 1 for findings.
    """

    labels: Ints
    predicted: Ints
    probabilities: Floats
    patients: Ints

    @property
    def classes(self) -> int:
        """Number of classes or findings."""
        return int(self.probabilities.shape[1])

    @property
    def multilabel(self) -> bool:
        """Whether an image has any number of findings, rather than one class."""
        return self.labels.ndim == 2

    @property
    def reported_classes(self) -> list[int]:
        """The classes whose figures are averaged: all, or the positive one of two classes."""
        return [1] if self.classes == 2 and not self.multilabel else list(range(self.classes))

    @cached_property
    def truth(self) -> Bools:
        """Whether each image is of each class, or shows each finding: [images, classes]."""
        return self.labels.astype(bool) if self.multilabel else self.labels[:, None] == np.arange(self.classes)

    @cached_property
    def decisions(self) -> Bools:
        """Whether the model predicts each class or finding: [images, classes]."""
        return self.predicted.astype(bool) if self.multilabel else self.predicted[:, None] == np.arange(self.classes)

    @cached_property
    def number_of_patients(self) -> int:
        """Number of patients of all images."""
        return int(self.patients.max()) + 1 if len(self.patients) else 0

    def subset(self, chosen: Bools) -> Predictions:
        """Return the chosen images, with their patients renumbered."""
        patients = np.unique(self.patients[chosen], return_inverse=True)[1]
        return Predictions(self.labels[chosen], self.predicted[chosen], self.probabilities[chosen], patients)

    def patients_of(self, images: Bools) -> int:
        """Return the number of patients of these images."""
        return int(np.count_nonzero(np.bincount(self.patients[images])))

    @cached_property
    def _sorted(self) -> tuple[Ints, Ints]:
        order = np.argsort(self.patients, kind="stable")
        return order, np.searchsorted(self.patients[order], np.arange(self.number_of_patients))

    def by_patient(self, values: NDArray[Any]) -> Floats:
        """Return the sum of each column over the images of each patient: [patients, …]."""
        order, starts = self._sorted
        return np.asarray(np.add.reduceat(values[order].astype(np.float64), starts, axis=0))


class Measure:
    """The bootstrapped figures for any weighting of the patients: `weights` is [weightings, patients].

    With `ordered` classes they include the quadratic-weighted kappa.
    """

    def __init__(self, predictions: Predictions, ordered: bool = False) -> None:
        self.predictions, self.ordered = predictions, ordered
        self.classes = range(predictions.classes)
        truth, decisions = predictions.truth, predictions.decisions
        errors = (predictions.probabilities - truth) ** 2
        parts = {"both": truth & decisions, "truth": truth, "predicted": decisions, "brier": errors}
        if not predictions.multilabel:
            parts["pairs"] = np.eye(predictions.classes**2, dtype=bool)[
                predictions.labels * predictions.classes + predictions.predicted
            ]
        for k in self.classes:
            bins = calibration_bins(predictions.probabilities[:, k])
            parts[f"bins/{k}"] = (
                np.eye(int(bins.max()) + 1)[bins] * (truth[:, k] - predictions.probabilities[:, k])[:, None]
            )
        parts["images"] = np.ones((len(truth), 1), bool)
        self._sums = np.concatenate([predictions.by_patient(part) for part in parts.values()], axis=1)
        ends = np.cumsum([part.shape[1] for part in parts.values()])
        self._columns = dict(zip(parts, map(slice, [0, *ends[:-1]], ends), strict=True))

    def __call__(self, weights: Floats) -> dict[str, Floats]:
        """Return the figures over all classes by name, and those of class k as name/k."""
        sums = weights @ self._sums
        part = {name: sums[:, columns] for name, columns in self._columns.items()}
        total = part["images"]
        actual, predicted = part["truth"], part["predicted"]
        right = total - actual - predicted + 2 * part["both"]
        chance = (actual * predicted + (total - actual) * (total - predicted)) / total**2
        present = np.where(actual > 0, 1.0, np.nan)
        gaps = [np.abs(part[f"bins/{k}"]).sum(axis=1) for k in self.classes]
        by_class = {
            "kappa": divide(right / total - chance, 1 - chance) * present,
            "brier": part["brier"] / total,
            "calibration_error": np.stack(gaps, axis=1) / total * present,
        }
        reported_classes = self.predictions.reported_classes
        figures = {name: class_mean(values[:, reported_classes]) for name, values in by_class.items()}
        if not self.predictions.multilabel:
            pairs = part["pairs"].reshape(-1, len(self.classes), len(self.classes))
            figures["kappa"] = weighted_kappa(pairs, 0)
            if len(self.classes) > 2:
                figures["brier"] = by_class["brier"].sum(axis=1)
            if self.ordered:
                figures["weighted_kappa"] = weighted_kappa(pairs, 2)
        return figures | {f"{name}/{k}": values[:, k] for name, values in by_class.items() for k in self.classes}


def confusion(predictions: Predictions) -> Ints:
    """Return the confusion matrix, rows are labels; for findings, a matrix of 2×2 for each."""
    if not predictions.multilabel:
        pairs = np.bincount(
            predictions.labels * predictions.classes + predictions.predicted, minlength=predictions.classes**2
        )
        return pairs.reshape(predictions.classes, predictions.classes)
    cells = (2 * predictions.labels + predictions.predicted).T
    return np.stack([np.bincount(finding, minlength=4).reshape(2, 2) for finding in cells])


def weighted_kappa(confusion: Floats, power: int) -> Floats:
    """Return Cohen's kappa of many confusion matrices; errors weigh as the distance of the classes to this power."""
    classes = np.arange(confusion.shape[1])
    weight = np.abs(classes[:, None] - classes) ** power if power else (classes[:, None] != classes).astype(np.int64)
    total = confusion.sum(axis=(1, 2))
    expected = confusion.sum(axis=2)[:, :, None] * confusion.sum(axis=1)[:, None, :]
    by_chance = (expected * weight).sum(axis=(1, 2)) / total
    return np.where(by_chance > 0, 1 - divide((confusion * weight).sum(axis=(1, 2)), by_chance), np.nan)


def equal_weights(predictions: Predictions) -> Floats:
    """Return the weighting in which every patient counts once."""
    return np.ones((1, predictions.number_of_patients))


def _chunks(weights: NDArray[np.uint16]) -> Iterator[Floats]:
    step = max(1, MAX_CELLS // weights.shape[1])
    for start in range(0, len(weights), step):
        yield weights[start : start + step].astype(np.float64)


def resample(figures: Callable[[Floats], dict[str, Floats]], weights: NDArray[np.uint16]) -> dict[str, Floats]:
    """Return the figures for each of many weightings."""
    parts = [figures(chunk) for chunk in _chunks(weights)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def divide(above: Floats, below: Floats) -> Floats:
    """Return the quotient; NaN unless the divisor is positive."""
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0))


def class_mean(by_class: Floats) -> Floats:
    """Return the mean over the classes, ignoring NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no class has a value: NaN is the answer
        return np.asarray(np.nanmean(by_class, axis=1))
