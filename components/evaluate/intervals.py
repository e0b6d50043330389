"""How sure a figure is: bootstrap over patients, and Wilson's interval on the number of patients it is worth.

Images of one patient resemble each other, so it is patients that are drawn with replacement, each with all its images.

A *score* lies between 0 and 1 and would be 1 for a flawless model (accuracy, AUC, sensitivity, …). The plain bootstrap
interval of a score collapses near 1: a model without errors on ten patients would seem certain to make none. So the
bootstrap gives a score's variance v only; the effective number of patients is n = p(1-p)/v, the number of independent
patients for which a proportion would vary as much, and Wilson's interval for p on n is taken. Besides, no lower bound
is higher than what a flawless result on all the patients behind that figure would show (and no upper bound lower than
a result without any success would show); that alone holds where p is 0 or 1.

Other figures (kappa, Brier score, calibration error, differences) get the middle part of the bootstrap's distribution,
moved by its bias: few images in a bin make any model look less calibrated, and each draw makes it look so once more.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Figure = dict[str, float | None]

UNKNOWN: Figure = {"value": None, "low": None, "high": None}
"""A figure that these images cannot give."""


def draw(patients: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    """How often each patient is drawn in each resample: [resamples, patients]."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, patients), np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(patients, size=patients), minlength=patients)
    return counts


def wilson(share: float, number: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval for a share seen in so many independent cases."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    weight = z * z / number
    centre = (share + weight / 2) / (1 + weight)
    half = z * (share * (1 - share) / number + weight / number / 4) ** 0.5 / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def of_score(value: float, draws: Floats, patients: float, confidence: float) -> Figure:
    """A score with its interval; `patients` is how many patients a flawless result would rest on."""
    sample = _defined(value, draws)
    if sample is None or patients < 1:
        return UNKNOWN if np.isnan(value) else {"value": value, "low": None, "high": None}
    best, worst = wilson(1.0, patients, confidence)[0], wilson(0.0, patients, confidence)[1]
    variance = float(sample.var()) * patients / max(patients - 1, 1)
    number = value * (1 - value) / variance if variance > 1e-15 else patients
    low, high = wilson(value, max(number, 1e-9), confidence)
    return {"value": value, "low": min(low, best), "high": max(high, worst)}


def of_figure(value: float, draws: Floats, confidence: float, lowest: float, highest: float) -> Figure:
    """Any other figure with its interval, within the range that such a figure can have."""
    sample = _defined(value, draws)
    if sample is None:
        return UNKNOWN if np.isnan(value) else {"value": value, "low": None, "high": None}
    tail = (1 - confidence) / 2
    low, high = np.quantile(sample, [tail, 1 - tail])
    bias = sample.mean() - value
    return {"value": value, "low": float(max(low - bias, lowest)), "high": float(min(high - bias, highest))}


def _defined(value: float, draws: Floats) -> Floats | None:
    """The resamples in which the figure exists, if they are enough to say something."""
    sample = draws[~np.isnan(draws)]
    return None if np.isnan(value) or 2 * len(sample) < len(draws) else sample
