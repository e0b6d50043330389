"""How sure a figure is: intervals from what each patient adds to it, and from a bootstrap over patients.

Images of one patient resemble each other, so the patient counts, with all its images. Three kinds of figures:

A *share* (accuracy, sensitivity, precision, F1, …) lies between 0 and 1. What each patient adds to its deviation gives
its variance v, without any draw. The interval is symmetric on the scale of log odds, which holds near 1 where a plain
one collapses, with a quantile between the normal one (one image a patient: v follows from the share itself) and
Student's (several: v is estimated from so many patients). Where v is 0, Wilson's interval on the patients is taken.

An *area* (AUC) has DeLong's variance by patients, as Obuchowski gave it. It rests on the few patients whom the model
misplaces: with e of them the variance is a mean of what was seen (e parts) and of what two normal distributions with
that area would give, if images of one patient had a correlation of 0.3 (1 part; only where that is larger).

Where few patients have most of the images, those who were judged wrongly may all have one, and show nothing of the
others. Then a share's variance is a mean of what was seen and of what images that always go together would give, and
fewer patients count (see `uneven`).

Of both, no lower bound is higher than what a flawless result on the same patients would show.

Other figures (kappa, Brier score, calibration error) get the middle part of the bootstrap's distribution, moved by its
bias: few images in a bin make any model look less calibrated, and each draw makes it look so once more.

`docs/benchmarks.md` says how often these intervals hold the truth, and where they cannot.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, owens_t, stdtrit

Floats = NDArray[np.float64]
Figure = dict[str, float | None]

UNKNOWN: Figure = {"value": None, "low": None, "high": None}
"""A figure that these images cannot give."""
ALIKE = 0.3
"""The correlation of a patient's images that is assumed where too few errors were seen to tell."""
EVEN = 1.25
"""Up to so many times as many images beside an image as on average, patients count as having equally many."""
LOST = 0.5
"""What of a figure a patient costs of whom the model knows nothing, so that its answer is chance."""


class Share(NamedTuple):
    """A share as seen: its variance by patients, how many patients it rests on, and the images beside an image.

    `images` is the mean number of images of an image's own patient, 1 where each patient has one. Each field may be an
    array, with an entry for each of many shares. So many patients count as one in an interval as `uneven` says.
    """

    value: Any
    variance: Any
    patients: Any
    images: Any
    uneven: Any = 1.0


class Area(NamedTuple):
    """An AUC as seen: its variance in three parts (images with, without, both of one patient), and what it rests on.

    Each field may be an array, with an entry for each of many areas. `assumed` is the variance that two normal
    distributions with this area would give.
    """

    value: Any
    variance_with: Any
    variance_without: Any
    covariance: Any
    patients_with: Any
    patients_without: Any
    assumed: Any


def draw(patients: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    """How often each patient is drawn in each resample: [resamples, patients]."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, patients), np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(patients, size=patients), minlength=patients)
    return counts


def quantile(error: Any, patients: Any, images: Any) -> Floats:
    """How many standard errors a bound lies away that may be wrong with this chance.

    The normal quantile where every patient has one image, nearer to Student's the more images share a patient.
    """
    normal, exact = -ndtri(error), -stdtrit(np.asarray(patients) - 1, error)
    return np.asarray(normal + (exact - normal) * (1 - 1 / np.maximum(images, 1)))


def wilson(share: Any, number: Any, confidence: float, z: Any = None) -> tuple[Any, Any]:
    """Wilson's interval for a share seen in so many independent cases."""
    z = ndtri((1 + confidence) / 2) if z is None else z
    weight = z * z / number
    centre = (share + weight / 2) / (1 + weight)
    half = z * (share * (1 - share) / number + weight / number / 4) ** 0.5 / (1 + weight)
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def share_interval(share: Share, confidence: float) -> tuple[Floats, Floats]:
    """The interval of a share, or of many; NaN where no patient or only one is behind it."""
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


def uneven(value: Any, variance: Any, patients: Any, images: Any, total: Any) -> tuple[Floats, Floats]:
    """The variance that a share of so many images in all counts with, and how many patients count as one.

    As seen, and 1, where all have about as many images. Else `weight` images more are taken to have been seen, each of
    which goes together with all beside it: they outweigh few errors, and many errors tell by themselves.
    """
    p, v, n, crowd, total = (np.asarray(field, float) for field in (value, variance, patients, images, total))
    beyond_even = np.maximum(crowd * n / np.maximum(total, 1) / EVEN, 1)
    alone = p * (1 - p) / np.maximum(total, 1)
    known = alone > 0
    effect = np.where(known, v / np.where(known, alone, 1), crowd)
    errors, weight = total * np.minimum(p, 1 - p), (beyond_even - 1) * crowd
    met = (errors * effect + weight * np.maximum(effect, crowd)) / np.where(errors + weight > 0, errors + weight, 1)
    return np.where(known, alone * met, v), beyond_even


def area_interval(area: Area, confidence: float) -> tuple[Floats, Floats]:
    """The interval of an area, or of many; NaN where only one patient has, or lacks, what is sought."""
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
    missed = unseen(error, few)
    low, high = np.where(flat, value, low), np.where(flat, value, high)
    unknown = np.where(enough, 0.0, np.nan)
    return np.clip(np.minimum(low, 1 - missed), 0, 1) + unknown, np.clip(np.maximum(high, missed), 0, 1) + unknown


def area_variance(area: Area) -> Floats:
    """DeLong's variance by patients."""
    total = np.asarray(area.variance_with + area.variance_without + area.covariance, np.float64)
    return np.asarray(np.maximum(total, 0))


def area_freedom(area: Area) -> Floats:
    """The degrees of freedom of a variance in two parts (Satterthwaite)."""
    parts = [np.asarray(part, float) for part in (area.variance_with, area.variance_without)]
    free = [np.maximum(np.asarray(n, float) - 1, 1) for n in (area.patients_with, area.patients_without)]
    below = parts[0] ** 2 / free[0] + parts[1] ** 2 / free[1]
    total = (parts[0] + parts[1]) ** 2
    return np.asarray(np.where(below > 0, total / np.where(below > 0, below, 1), np.minimum(*free)))


def binormal_variance(value: Any, positives: Any, negatives: Any) -> Floats:
    """The variance of an AUC of independent images whose scores are normal, with one spread, in both groups."""
    value = np.clip(np.maximum(value, 1 - np.asarray(value, float)), 0.5, 1 - 1e-9)
    x = ndtri(value)
    both = ndtr(x) - 2 * owens_t(x, 3**-0.5)  # of two pairs that share an image
    alone = value * (1 - value) + (positives + negatives - 2) * (both - value**2)
    return np.asarray(np.maximum(alone, 0) / (positives * negatives))


def unseen(error: Any, patients: Any) -> Floats:
    """What a figure may lose by patients of a kind that none of so many was, but with this chance.

    If a share s of all patients is of that kind, none of n is with the chance (1-s)^n.
    """
    return np.asarray(LOST * (1 - np.asarray(error, float) ** (1 / np.maximum(patients, 1))))


def of_share(share: Share, confidence: float) -> Figure:
    """A share with its interval, as it is written down."""
    return _figure(float(share.value), *share_interval(share, confidence))


def of_area(area: Area, confidence: float) -> Figure:
    """An area with its interval, as it is written down."""
    return _figure(float(area.value), *area_interval(area, confidence))


def of_figure(value: float, draws: Floats, confidence: float, lowest: float, highest: float) -> Figure:
    """Any other figure with its interval, within the range that such a figure can have."""
    sample = draws[~np.isnan(draws)]
    if np.isnan(value):
        return UNKNOWN
    if 2 * len(sample) < len(draws) or not len(sample):  # what hardly any draw can give has no interval
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
    """The interval of so many standard errors to each side on the scale of log odds."""
    centre, half = np.log(p / (1 - p)), z * np.sqrt(variance) / (p * (1 - p))
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
