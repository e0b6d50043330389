"""Figures of readers for many weightings of the patients at once: the figure itself, and the jackknife.

A weighting says how often each patient counts. A reader's figure is a ratio of sums over patients, so one piece of code
gives its value (each counts once) and its jackknife (all but one).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.shared.statistics.intervals import UNKNOWN, Figure, Floats, wilson

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """A share of images, such as accuracy or sensitivity: of how many images, and how many of them are right."""

    right: Floats
    images: Floats

    @staticmethod
    def of(right: NDArray[np.bool_], counted: NDArray[np.bool_], patients: Ints, number: int) -> Share:
        """Summed over each of so many patients, of the counted images alone."""
        return Share(
            np.bincount(patients, right & counted, number).astype(np.float64),
            np.bincount(patients, counted, number).astype(np.float64),
        )

    def __call__(self, weights: Floats) -> Floats:
        """The share for each weighting; NaN where no image is left."""
        return _ratio(weights @ self.right, weights @ self.images)

    @property
    def behind(self) -> NDArray[np.bool_]:
        """The patients on whom it rests."""
        return self.images > 0

    @property
    def worth(self) -> float:
        """On how many patients a flawless figure would rest."""
        return float(self.behind.sum())


@dataclass(frozen=True)
class Area:
    """An AUC: for each pair of patients how often the one's positive images are ranked before the other's negative."""

    ahead: Floats
    positive: Floats
    negative: Floats

    @staticmethod
    def of(scores: Floats, truth: NDArray[np.bool_], counted: NDArray[np.bool_], patients: Ints, number: int) -> Area:
        """Of the counted images: ties count half."""
        above, below = np.flatnonzero(truth & counted), np.flatnonzero(~truth & counted)
        wins = np.sign(scores[above][:, None] - scores[below]) / 2 + 0.5
        by_positive = np.zeros((number, len(below)))
        np.add.at(by_positive, patients[above], wins)
        ahead = np.zeros((number, number))
        np.add.at(ahead.T, patients[below], by_positive.T)
        positive, negative = (np.bincount(patients[some], minlength=number).astype(float) for some in (above, below))
        return Area(ahead, positive, negative)

    def __call__(self, weights: Floats) -> Floats:
        """The AUC for each weighting; NaN where one side is missing."""
        return _ratio(((weights @ self.ahead) * weights).sum(1), (weights @ self.positive) * (weights @ self.negative))

    @property
    def behind(self) -> NDArray[np.bool_]:
        """The patients on whom it rests."""
        return (self.positive + self.negative) > 0

    @property
    def worth(self) -> float:
        """On how many patients a flawless figure would rest: the smaller side decides (their harmonic mean, twice)."""
        positive, negative = float((self.positive > 0).sum()), float((self.negative > 0).sum())
        return 4 / (1 / positive + 1 / negative) if positive and negative else 0.0


Sums = Share | Area


def value(sums: Sums) -> float:
    """The figure itself."""
    return float(sums(np.ones((1, len(sums.behind))))[0])


def with_interval(sums: Sums, confidence: float) -> Figure:
    """The figure with its interval over patients: Wilson's, for the number of independent patients that it is worth.

    No lower bound is higher than what a flawless reader of the same patients would have, and no upper bound lower than
    what one would have who is never right.
    """
    found, patients = value(sums), sums.worth
    if np.isnan(found):
        return UNKNOWN
    variance = float(covariances(jackknife([sums]))[0, 0])
    if not np.isfinite(variance):  # without one patient there is no such figure
        return {"value": found, "low": None, "high": None}
    number = found * (1 - found) / variance if variance > 1e-15 and 0 < found < 1 else patients
    low, high = wilson(found, number, confidence)
    best, worst = wilson(1.0, patients, confidence)[0], wilson(0.0, patients, confidence)[1]
    return {"value": found, "low": float(min(low, best)), "high": float(max(high, worst))}


def jackknife(several: list[Sums]) -> Floats:
    """Each figure without each of the patients on whom they rest: [figures, patients]."""
    behind = np.flatnonzero(np.any([sums.behind for sums in several], axis=0))
    number = len(several[0].behind)
    without = np.ones((len(behind), number))
    without[np.arange(len(behind)), behind] = 0
    return np.stack([sums(without) for sums in several])


def covariances(left_out: Floats) -> Floats:
    """The covariances of figures, by the jackknife over patients."""
    patients = left_out.shape[1]
    apart = left_out - left_out.mean(axis=1, keepdims=True)
    return np.asarray(apart @ apart.T * (patients - 1) / patients)


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))
