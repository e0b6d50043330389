"""Figures of readers for many weightings of the patients at once.

A weighting contains a weight for each patient. A reader's figure is a ratio of sums over patients, so the same code
computes its value (all weights are 1) and its jackknife (one weight is 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.shared.statistics.intervals import UNKNOWN, Figure, Floats, wilson

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """A share of images, such as accuracy or sensitivity: the numbers of images and of right ones per patient."""

    right: Floats
    images: Floats

    @staticmethod
    def of(right: NDArray[np.bool_], counted: NDArray[np.bool_], patients: Ints, number: int) -> Share:
        """Return the sums over the counted images for each of `number` patients."""
        return Share(
            np.bincount(patients, right & counted, number).astype(np.float64),
            np.bincount(patients, counted, number).astype(np.float64),
        )

    def __call__(self, weights: Floats) -> Floats:
        """Return the share for each weighting; NaN without images."""
        return _ratio(weights @ self.right, weights @ self.images)

    @property
    def contributing(self) -> NDArray[np.bool_]:
        """Whether each patient contributes to the figure."""
        return self.images > 0

    @property
    def effective_patients(self) -> float:
        """The effective number of patients of a perfect figure."""
        return float(self.contributing.sum())


@dataclass(frozen=True)
class Area:
    """An AUC: for each pair of patients, the number of image pairs that are ranked correctly."""

    ahead: Floats
    positive: Floats
    negative: Floats

    @staticmethod
    def of(scores: Floats, truth: NDArray[np.bool_], counted: NDArray[np.bool_], patients: Ints, number: int) -> Area:
        """Return the sums over the counted images; ties count half."""
        above, below = np.flatnonzero(truth & counted), np.flatnonzero(~truth & counted)
        wins = np.sign(scores[above][:, None] - scores[below]) / 2 + 0.5
        by_positive = np.zeros((number, len(below)))
        np.add.at(by_positive, patients[above], wins)
        ahead = np.zeros((number, number))
        np.add.at(ahead.T, patients[below], by_positive.T)
        positive, negative = (np.bincount(patients[some], minlength=number).astype(float) for some in (above, below))
        return Area(ahead, positive, negative)

    def __call__(self, weights: Floats) -> Floats:
        """Return the AUC for each weighting; NaN without positive or negative images."""
        return _ratio(((weights @ self.ahead) * weights).sum(1), (weights @ self.positive) * (weights @ self.negative))

    @property
    def contributing(self) -> NDArray[np.bool_]:
        """Whether each patient contributes to the figure."""
        return (self.positive + self.negative) > 0

    @property
    def effective_patients(self) -> float:
        """The effective number of patients of a perfect figure: twice the harmonic mean of both groups' numbers."""
        positive, negative = float((self.positive > 0).sum()), float((self.negative > 0).sum())
        return 4 / (1 / positive + 1 / negative) if positive and negative else 0.0


Sums = Share | Area


def value(sums: Sums) -> float:
    """Return the figure."""
    return float(sums(np.ones((1, len(sums.contributing))))[0])


def with_interval(sums: Sums, confidence: float) -> Figure:
    """Return the figure with Wilson's interval for its effective number of independent patients.

    The lower bound is at most that of a perfect reader of the same patients, and the upper bound at least that of a
    reader who is never right.
    """
    estimate, patients = value(sums), sums.effective_patients
    if np.isnan(estimate):
        return UNKNOWN
    variance = float(covariances(jackknife([sums]))[0, 0])
    if not np.isfinite(variance):  # the figure depends on a single patient
        return {"value": estimate, "low": None, "high": None}
    number = estimate * (1 - estimate) / variance if variance > 1e-15 and 0 < estimate < 1 else patients
    low, high = wilson(estimate, number, confidence)
    best, worst = wilson(1.0, patients, confidence)[0], wilson(0.0, patients, confidence)[1]
    return {"value": estimate, "low": float(min(low, best)), "high": float(max(high, worst))}


def jackknife(figures: list[Sums]) -> Floats:
    """Return each figure without each of the contributing patients: [figures, patients]."""
    contributing = np.flatnonzero(np.any([sums.contributing for sums in figures], axis=0))
    without = np.ones((len(contributing), len(figures[0].contributing)))
    without[np.arange(len(contributing)), contributing] = 0
    return np.stack([sums(without) for sums in figures])


def covariances(left_out: Floats) -> Floats:
    """Return the covariances of figures, from their jackknife over patients."""
    patients = left_out.shape[1]
    apart = left_out - left_out.mean(axis=1, keepdims=True)
    return np.asarray(apart @ apart.T * (patients - 1) / patients)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))
