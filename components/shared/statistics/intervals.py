"""Confidence intervals, from the contributions of patients to a figure, and from a bootstrap of patients.

Images of one patient resemble each other, so the unit of analysis is the patient with all their images. There are three
kinds of figures:

A *share* (accuracy, sensitivity, precision, F1, …) is a proportion between 0 and 1. Its variance v is computed from the
contributions of the patients, without resampling. The interval is symmetric on the log-odds scale, which stays valid
near 1, where a plain one collapses. Its quantile is between the normal one (one image per patient: v follows from the
proportion) and Student's (several: v is estimated from the patients). If v is 0, Wilson's interval on the patients is
used.

An *area* (AUC) has DeLong's variance, clustered by patient (Obuchowski). It rests on the few patients whom the model
misranks. With e of them, the variance is the weighted mean of the observed one (weight e) and of the one that two
normal distributions with this area would give if images of a patient had a correlation of 0.3 (weight 1; used only if
it is larger).

If few patients have most of the images, all wrong answers may be on patients with a single image, which does not show
how the images of the others correlate. The variance of a share is then a weighted mean of the observed one and the one
of perfectly correlated images, and the number of patients is reduced (see `uneven_variance`).

For both kinds, no lower bound is higher than a flawless result on the same patients would give.

Other figures (kappa, Brier score, calibration error) get the middle part of the bootstrap distribution, corrected for
bias: few images per bin make any model look less calibrated, and each draw adds to that.

`docs/benchmarks.md` lists how often these intervals contain the true value, and where they do not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, owens_t, stdtrit

Floats = NDArray[np.float64]
Figure = dict[str, float | None]

UNKNOWN: Figure = {"value": None, "low": None, "high": None}
"""A figure that cannot be computed from these images."""
ASSUMED_CORRELATION = 0.3
"""Assumed correlation of a patient's images, if there are too few errors to estimate it."""
EVEN_RATIO = 1.25
"""Ratio of the mean cluster size to the images per patient, up to which all patients count as having equally many."""
CHANCE_LOSS = 0.5
"""Loss of a figure on a patient for whom the model only guesses."""


class Share(NamedTuple):
    """A proportion: its variance by patients, the number of patients, and the mean cluster size.

    `images` is the mean over the images of the number of images of the same patient. `uneven` is the number of patients
    that count as one in an interval. Each field can be an array, with an entry for each of many proportions.
    """

    value: Any
    variance: Any
    patients: Any
    images: Any
    uneven: Any = 1.0


class Area(NamedTuple):
    """An AUC: its variance in three parts (images with and without the class, and covariance), and the patients.

    `assumed` is the variance that two normal distributions with this area would give. Each field can be an array, with
    an entry for each of many areas.
    """

    value: Any
    variance_with: Any
    variance_without: Any
    covariance: Any
    patients_with: Any
    patients_without: Any
    assumed: Any


def draw(patients: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    """Return how often each patient is drawn in each resample: [resamples, patients]."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, patients), np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(patients, size=patients), minlength=patients)
    return counts


def quantile(error: Any, patients: Any, images: Any) -> Floats:
    """Return the distance of a bound with this error rate, in standard errors.

    It is the normal quantile if every patient has one image, and approaches Student's with more images per patient.
    """
    normal, exact = -ndtri(error), -stdtrit(np.asarray(patients) - 1, error)
    return np.asarray(normal + (exact - normal) * (1 - 1 / np.maximum(images, 1)))


def wilson(share: Any, number: Any, confidence: float, z: Any = None) -> tuple[Any, Any]:
    """Return Wilson's interval of a proportion of `number` independent cases."""
    z = ndtri((1 + confidence) / 2) if z is None else z
    weight = z * z / number
    centre = (share + weight / 2) / (1 + weight)
    half = z * (share * (1 - share) / number + weight / number / 4) ** 0.5 / (1 + weight)
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def share_interval(share: Share, confidence: float) -> tuple[Floats, Floats]:
    """Return the interval of a share, or of many; NaN if it rests on fewer than two patients."""
    p, v, patients, images, as_one = (np.asarray(field, float) for field in share)
    enough = (patients >= 2) & ~np.isnan(p)
    patients = np.where(enough, np.maximum(patients / as_one, 2), 2)
    z = quantile((1 - confidence) / 2, patients, images)
    p = np.where(enough, p, 0.5)
    flat = (v < 1e-15) | (p <= 0) | (p >= 1)
    low, high = _log_odds(np.where(flat, 0.5, p), np.where(flat, 0.0, v), z)
    best, worst = wilson(1.0, patients, confidence, z)[0], wilson(0.0, patients, confidence, z)[1]
    plain = wilson(p, patients, confidence, z)
    low, high = np.where(flat, plain[0], low), np.where(flat, plain[1], high)
    unknown = np.where(enough, 0.0, np.nan)
    return np.asarray(np.minimum(low, best) + unknown), np.asarray(np.maximum(high, worst) + unknown)


def uneven_variance(value: Any, variance: Any, patients: Any, images: Any, total: Any) -> tuple[Floats, Floats]:
    """Return the variance to use for a share of `total` images, and how many patients count as one.

    If all patients have about equally many images, these are the observed variance and 1. Otherwise `weight` additional
    images are assumed that correlate perfectly with the others of their patient: they outweigh the observed variance if
    there are few errors, not if there are many.
    """
    p, v, n, cluster_size, total = (np.asarray(field, float) for field in (value, variance, patients, images, total))
    beyond_even = np.maximum(cluster_size * n / np.maximum(total, 1) / EVEN_RATIO, 1)
    alone = p * (1 - p) / np.maximum(total, 1)
    known = alone > 0
    effect = np.where(known, v / np.where(known, alone, 1), cluster_size)
    errors, weight = total * np.minimum(p, 1 - p), (beyond_even - 1) * cluster_size
    met = (errors * effect + weight * np.maximum(effect, cluster_size)) / np.where(
        errors + weight > 0, errors + weight, 1
    )
    return np.where(known, alone * met, v), beyond_even


def area_interval(area: Area, confidence: float) -> tuple[Floats, Floats]:
    """Return the interval of an area, or of many; NaN if fewer than two patients are with or without the class."""
    value, few = np.asarray(area.value, float), np.minimum(area.patients_with, area.patients_without)
    enough = (few >= 2) & ~np.isnan(value)
    few, value = np.where(enough, few, 2), np.where(enough, value, 0.5)
    error = (1 - confidence) / 2
    seen = area_variance(area)
    misplaced = few * (1 - np.maximum(value, 1 - value))
    weight = misplaced / (misplaced + 1)
    variance = weight * seen + (1 - weight) * np.maximum(seen, area.assumed)
    normal = -ndtri(error)
    z = normal + weight * (-stdtrit(area_freedom(area), error) - normal)
    flat = (value <= 0) | (value >= 1)
    low, high = _log_odds(np.where(flat, 0.5, value), np.where(flat, 0.0, np.where(enough, variance, 0.0)), z)
    missed = unseen_loss(error, few)
    low, high = np.where(flat, value, low), np.where(flat, value, high)
    unknown = np.where(enough, 0.0, np.nan)
    return np.clip(np.minimum(low, 1 - missed), 0, 1) + unknown, np.clip(np.maximum(high, missed), 0, 1) + unknown


def area_variance(area: Area) -> Floats:
    """Return DeLong's variance by patients."""
    total = np.asarray(area.variance_with + area.variance_without + area.covariance, np.float64)
    return np.asarray(np.maximum(total, 0))


def area_freedom(area: Area) -> Floats:
    """Return the degrees of freedom of a variance in two parts (Satterthwaite)."""
    parts = [np.asarray(part, float) for part in (area.variance_with, area.variance_without)]
    free = [np.maximum(np.asarray(n, float) - 1, 1) for n in (area.patients_with, area.patients_without)]
    below = parts[0] ** 2 / free[0] + parts[1] ** 2 / free[1]
    total = (parts[0] + parts[1]) ** 2
    return np.asarray(np.where(below > 0, total / np.where(below > 0, below, 1), np.minimum(*free)))


def binormal_variance(value: Any, positives: Any, negatives: Any) -> Floats:
    """Return the variance of an AUC of independent images with normal scores of equal variance in both groups."""
    value = np.clip(np.maximum(value, 1 - np.asarray(value, float)), 0.5, 1 - 1e-9)
    x = ndtri(value)
    both = ndtr(x) - 2 * owens_t(x, 3**-0.5)  # of two pairs that share an image
    alone = value * (1 - value) + (positives + negatives - 2) * (both - value**2)
    return np.asarray(np.maximum(alone, 0) / (positives * negatives))


def unseen_loss(error: Any, patients: Any) -> Floats:
    """Return how much patients of a kind that is absent among those tested can lower a figure, at this error rate.

    If a share s of all patients is of that kind, none of n tested patients is with the probability (1-s)^n.
    """
    return np.asarray(CHANCE_LOSS * (1 - np.asarray(error, float) ** (1 / np.maximum(patients, 1))))


def correlation(one: Floats, other: Floats) -> float:
    """Return the correlation of two figures from the contributions of the same patients."""
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale > 0 else 0.0


def combined_distance(one: Any, other: Any, correlation: Any) -> Floats:
    """Return the distance of a difference's bound, from those of both values (variance estimates recovery)."""
    return np.asarray(np.sqrt(np.maximum(one**2 + other**2 - 2 * np.asarray(correlation) * one * other, 0)))


def share_figure(share: Share, confidence: float) -> Figure:
    """Return a share with its interval."""
    return _figure(float(share.value), *share_interval(share, confidence))


def area_figure(area: Area, confidence: float) -> Figure:
    """Return an area with its interval."""
    return _figure(float(area.value), *area_interval(area, confidence))


def bootstrap_figure(value: float, draws: Floats, confidence: float, lowest: float, highest: float) -> Figure:
    """Return a figure with its bootstrap interval, limited to the figure's range."""
    sample = draws[~np.isnan(draws)]
    if np.isnan(value):
        return UNKNOWN
    if 2 * len(sample) < len(draws) or not len(sample):  # most draws cannot give the figure: no interval
        return {"value": value, "low": None, "high": None}
    tail = (1 - confidence) / 2
    low, high = np.quantile(sample, [tail, 1 - tail])
    bias = sample.mean() - value
    return {"value": value, "low": float(max(low - bias, lowest)), "high": float(min(high - bias, highest))}


def _figure(value: float, low: Any, high: Any) -> Figure:
    if np.isnan(value):
        return UNKNOWN
    if np.isnan(low) or np.isnan(high):
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": float(low), "high": float(high)}


def _log_odds(p: Any, variance: Any, z: Any) -> tuple[Floats, Floats]:
    """Return the interval of z standard errors in each direction on the log-odds scale."""
    centre, half = np.log(p / (1 - p)), z * np.sqrt(variance) / (p * (1 - p))
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
