"""Two models on the same images: differences, their intervals, p values, and bounds for any error rate that is spent.

All is by patients. Shares that count right answers among the same images (accuracy; sensitivity and specificity of two
classes) are compared by McNemar's test, in the form that holds for several images a patient: each patient adds the
images that only our model got right less those that only the other got right, and were the models equal, each sum
might as well have the other sign. All signs are gone through, exactly (with one image a patient this is McNemar's exact
test), or by the normal distribution where very many patients differ. Bounds are Tango's, which solve the score equation
at the difference in question, with McNemar's continuity of one image, on the number of images that would give
this variance if they were independent.

AUCs are compared by DeLong's test with Obuchowski's variance for several images a patient and Student's t. Their bounds
are put together from both areas' own intervals, which reach further down than up, and from the correlation that
DeLong's covariance gives (the method of variance estimates recovery): the symmetric bound lets too much pass where few
patients are misplaced. All else is compared by a bootstrap of patients.

A difference of zero between models that never disagree proves no bound of zero: Tango's does not collapse, and no other
bound is better than what is left by patients of a kind that the test has not seen (`intervals.unseen`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit

from components.evaluate.estimates import Estimate
from components.shared.statistics.intervals import (
    Area,
    Floats,
    area_freedom,
    area_interval,
    area_variance,
    quantile,
    unseen,
)
from components.shared.statistics.metrics import Bools, Scored

LEVELS = (0.05, 0.025, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
"""The error rates at which a lower bound is given."""
CONTINUITY = 1.0
"""By how many images a difference of counts is taken to be less than it is: no bound may gain by its jumps."""
EXACT = 4000
"""Up to so many patients on whom two models differ all signs are gone through."""

Paired = dict[str, Any]


def compared_shares(ours: Bools, theirs: Bools, scored: Scored, confidence: float) -> Paired:
    """The difference of two shares of right answers among the same images, or decisions: [images, …] of both."""
    shape = (len(ours), -1)
    sums = [part.reshape(shape).sum(axis=1) for part in (ours & ~theirs, theirs & ~ours, ours, theirs)]
    sums.append(np.full(len(ours), ours.reshape(shape).shape[1]))
    won, lost, our, their, images = (scored.by_patient(each) for each in sums)
    total = images.sum()
    errors = np.array([*LEVELS, (1 - confidence) / 2])
    bounds = share_bounds(won, lost, images, errors)
    above = -share_bounds(lost, won, images, errors[-1:])
    pair = {"ours": our.sum() / total, "theirs": their.sum() / total, "difference": (won - lost).sum() / total}
    return _record(pair, bounds, above[0], signs(won - lost), "mcnemar")


def share_bounds(won: Floats, lost: Floats, images: Floats, errors: Floats) -> Floats:
    """Lower bounds of a paired difference, [error rates], from what each patient adds, [patients].

    For many data sets at once, with patients on the last axis: [data sets, error rates].
    """
    total, patients = images.sum(axis=-1), np.count_nonzero(images, axis=-1)
    difference = (won - lost).sum(axis=-1) / total
    left = won - lost - difference[..., None] * images
    variance = (left**2).sum(axis=-1) / total**2 * patients / np.maximum(patients - 1, 1)
    crowd = (images**2).sum(axis=-1) / total
    independent = ((won + lost).sum(axis=-1) / total - difference**2) / total
    known = independent > 1e-15
    effect = np.where(known, np.maximum(variance / np.where(known, independent, 1), 1), crowd)
    # One patient more counts, with as many images as an image has company, all of which differ: where few patients have
    # most images, those who differ may all have one, and show nothing of how the images of the others go together.
    differ = (won + lost).sum(axis=-1)
    effect = (differ * effect + crowd * np.maximum(effect, crowd)) / (differ + crowd)
    z = quantile(errors, np.maximum(patients, 2)[..., None], crowd[..., None])
    sums = [each.sum(axis=-1) / effect for each in (won, lost)]
    return score_bound(sums[0][..., None], sums[1][..., None], (total / effect)[..., None], z)


def score_bound(won: Any, lost: Any, number: Any, z: Any) -> Floats:
    """Tango's lower bound of a paired difference of shares: the lowest one that the score test does not reject."""
    won, lost, number, z = np.broadcast_arrays(won, lost, number, z)
    low, high = np.full(won.shape, -1.0), (won - lost) / number
    for _ in range(40):
        middle = (low + high) / 2
        linear = (2 * number - won + lost) * middle - won - lost
        root = np.sqrt(np.maximum(linear**2 + 8 * number * lost * middle * (1 - middle), 0))
        nuisance = np.maximum((root - linear) / (4 * number), np.maximum(-middle, 0))
        variance = number * (2 * nuisance + middle * (1 - middle))
        rejected = won - lost - CONTINUITY - number * middle > z * np.sqrt(np.maximum(variance, 0))
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return np.asarray(low)


def signs(sums: Floats) -> float:
    """The chance that these sums of patients, with signs by chance, are together as far from 0 as they are."""
    sizes = np.abs(np.rint(sums[sums != 0])).astype(np.int64)
    seen = abs(int(np.rint(sums).sum()))
    if not len(sizes):
        return 1.0
    if len(sizes) > EXACT:
        return float(2 * ndtr(-seen / np.sqrt((sizes.astype(np.float64) ** 2).sum())))
    chances = np.ones(1)
    for size, number in zip(*np.unique(sizes, return_counts=True), strict=True):
        spread = np.zeros(2 * number * size + 1)
        spread[:: 2 * size] = _tosses(int(number))
        chances = np.convolve(chances, spread)
    middle = len(chances) // 2
    further = chances[middle + seen :].sum() + chances[: middle - seen + 1].sum()
    return float(min(1.0, further)) if seen else 1.0


def _tosses(number: int) -> Floats:
    """The chance of each number of heads in so many tosses."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, number + 1)))])
    return np.asarray(np.exp(logs[-1] - logs - logs[::-1] - number * np.log(2)))


def compared_areas(ours: Estimate, theirs: Estimate, confidence: float) -> Paired:
    """The difference of two AUCs on the same images."""
    difference = ours.value - theirs.value
    pair = {"ours": ours.value, "theirs": theirs.value, "difference": difference}
    if np.isnan(difference) or ours.fewest < 2:
        return _unbounded(pair, "delong")
    assert isinstance(ours.spread, Area)
    assert isinstance(theirs.spread, Area)
    error, freedom = area_difference(ours, theirs)
    alike = likeness(ours, theirs)
    errors = [*LEVELS, (1 - confidence) / 2]
    bounds = np.array([float(area_bound(ours.spread, theirs.spread, alike, level)) for level in errors])
    above = -float(area_bound(theirs.spread, ours.spread, alike, errors[-1]))
    p = float(2 * stdtr(freedom, -abs(difference) / error)) if error > 0 else 1.0
    return _record(pair, bounds, above, p, "delong")


def area_difference(ours: Estimate, theirs: Estimate) -> tuple[float, float]:
    """The standard error of the difference of two AUCs, and its degrees of freedom.

    They are as few as the two groups of patients allow (Satterthwaite), and fewer where few of them carry the variance.
    """
    assert isinstance(ours.spread, Area)
    parts = ours.parts - theirs.parts
    squares, both = (parts**2).sum(axis=0), 2 * float((parts[:, 0] * parts[:, 1]).sum())
    area = ours.spread._replace(variance_with=squares[0], variance_without=squares[1], covariance=both)
    each = parts.sum(axis=1) ** 2
    spare = (each**2).sum() - each.sum() ** 2 / len(each)
    carried = 2 * float(each.sum()) ** 2 / spare if spare > 0 else np.inf
    return float(np.sqrt(area_variance(area))), min(float(area_freedom(area)), carried)


def likeness(ours: Estimate, theirs: Estimate) -> float:
    """The correlation of two figures on the same patients."""
    scale = float(np.sqrt((ours.by_patient**2).sum() * (theirs.by_patient**2).sum()))
    return float((ours.by_patient * theirs.by_patient).sum()) / scale if scale > 0 else 0.0


def area_bound(ours: Area, theirs: Area, alike: Any, error: float) -> Floats:
    """The lower bound of the difference of two areas, or of many, that may be wrong with this chance."""
    down = ours.value - area_interval(ours, 1 - 2 * error)[0]
    up = area_interval(theirs, 1 - 2 * error)[1] - theirs.value
    reach = np.sqrt(np.maximum(down**2 + up**2 - 2 * np.asarray(alike) * down * up, 0))
    few = np.minimum(ours.patients_with, ours.patients_without)
    return np.asarray(ours.value - theirs.value - np.maximum(reach, unseen(error, few)))


def compared_draws(
    ours: float, theirs: float, draws: Floats, fewest: float, confidence: float, less_is_better: bool = False
) -> Paired:
    """The difference of any two figures, from the differences in draws of patients; `fewest` patients are behind it."""
    pair = {"ours": ours, "theirs": theirs, "difference": ours - theirs}
    sample = draws[~np.isnan(draws)]
    if np.isnan(ours - theirs) or 2 * len(sample) < len(draws) or fewest < 2:
        return _unbounded(pair, "bootstrap")
    errors = np.array([*LEVELS, (1 - confidence) / 2])
    freedom, error = fewest - 1, float(sample.std()) * np.sqrt(fewest / (fewest - 1))
    reach = np.maximum(-stdtrit(freedom, errors) * error, unseen(errors, fewest))
    p = float(2 * stdtr(freedom, -abs(ours - theirs) / error)) if error > 1e-15 else 1.0
    gain = theirs - ours if less_is_better else ours - theirs
    record = _record(pair, gain - reach, 0.0, p, "bootstrap")
    return record | {"low": ours - theirs - float(reach[-1]), "high": ours - theirs + float(reach[-1])}


def _record(pair: Paired, bounds: Floats, high: float, p: float, test: str) -> Paired:
    lower = [[error, float(bound)] for error, bound in zip(LEVELS, bounds, strict=False)]
    known = {name: float(value) for name, value in pair.items()}
    return {**known, "low": float(bounds[-1]), "high": float(high), "p": p, "test": test, "lower": lower}


def _unbounded(pair: Paired, test: str) -> Paired:
    """Of figures that exist on too few patients, or not at all: they can tell nothing."""
    return {**pair, "low": None, "high": None, "p": None, "test": test, "lower": [[error, None] for error in LEVELS]}
