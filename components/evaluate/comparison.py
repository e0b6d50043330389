"""Comparison of two models on the same images: differences, intervals, p values, and bounds at several error rates.

The patient is the unit of analysis. Shares of right answers among the same images (accuracy; sensitivity and
specificity of two classes) are compared with McNemar's test, generalised to several images per patient: each patient
contributes the images that only our model got right minus those that only the other model got right. If the models
were equally good, each sum could as well have the opposite sign. The test enumerates all signs (with one image per
patient this is McNemar's exact test), or uses the normal distribution if very many patients differ. Bounds are Tango's
score bounds, with McNemar's continuity correction of one image, on the number of independent images that would give the
same variance.

AUCs are compared with DeLong's test, with Obuchowski's variance for several images per patient and Student's t. Their
bounds combine the intervals of both areas, which extend further down than up, and the correlation from DeLong's
covariance (method of variance estimates recovery): a symmetric bound is too optimistic if few patients are misranked.
All other figures are compared with a bootstrap of patients.

If two models never disagree, that does not prove that they never will. Tango's bound does not collapse to 0 then, and
no other bound is better than the loss that patients unlike all tested ones could cause (`intervals.unseen_loss`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit

from components.evaluate.point_metrics import Estimate
from components.shared.statistics.bootstrapped_metrics import Bools, Predictions
from components.shared.statistics.intervals import (
    Area,
    Floats,
    area_freedom,
    area_interval,
    area_variance,
    combined_distance,
    correlation,
    quantile,
    unseen_loss,
)

LEVELS = (0.05, 0.025, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
"""Error rates of the lower bounds."""
CONTINUITY = 1.0
"""Continuity correction in images, since a difference of counts is discrete."""
EXACT_LIMIT = 4000
"""Maximum number of patients on whom two models differ for the exact test."""

Comparison = dict[str, Any]


def compare_shares(ours: Bools, theirs: Bools, predictions: Predictions, confidence: float) -> Comparison:
    """Compare two shares of right answers among the same images or decisions: [images, …] each."""
    shape = (len(ours), -1)
    sums = [part.reshape(shape).sum(axis=1) for part in (ours & ~theirs, theirs & ~ours, ours, theirs)]
    sums.append(np.full(len(ours), ours.reshape(shape).shape[1]))
    won, lost, our, their, images = (predictions.by_patient(values) for values in sums)
    total = images.sum()
    errors = np.array([*LEVELS, (1 - confidence) / 2])
    bounds = share_bounds(won, lost, images, errors)
    above = -share_bounds(lost, won, images, errors[-1:])
    pair = {"ours": our.sum() / total, "theirs": their.sum() / total, "difference": (won - lost).sum() / total}
    return _record(pair, bounds, above[0], sign_test(won - lost), "mcnemar")


def share_bounds(won: Floats, lost: Floats, images: Floats, errors: Floats) -> Floats:
    """Return lower bounds of a paired difference, [error rates], from the contributions of patients, [patients].

    Accepts many data sets at once, with patients on the last axis, and returns [data sets, error rates].
    """
    total, patients = images.sum(axis=-1), np.count_nonzero(images, axis=-1)
    difference = (won - lost).sum(axis=-1) / total
    left = won - lost - difference[..., None] * images
    variance = (left**2).sum(axis=-1) / total**2 * patients / np.maximum(patients - 1, 1)
    cluster_size = (images**2).sum(axis=-1) / total
    independent = ((won + lost).sum(axis=-1) / total - difference**2) / total
    known = independent > 1e-15
    effect = np.where(known, np.maximum(variance / np.where(known, independent, 1), 1), cluster_size)
    # If few patients have most of the images, all patients who differ may have a single image, which does not show how
    # the images of the others correlate. Therefore one more patient is assumed, with an average cluster of images that
    # all differ.
    differ = (won + lost).sum(axis=-1)
    effect = (differ * effect + cluster_size * np.maximum(effect, cluster_size)) / (differ + cluster_size)
    z = quantile(errors, np.maximum(patients, 2)[..., None], cluster_size[..., None])
    sums = [count.sum(axis=-1) / effect for count in (won, lost)]
    return score_bound(sums[0][..., None], sums[1][..., None], (total / effect)[..., None], z)


def score_bound(won: Any, lost: Any, number: Any, z: Any) -> Floats:
    """Return Tango's lower bound of a paired difference: the lowest one that the score test does not reject."""
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


def sign_test(sums: Floats) -> float:
    """Return the probability that these sums of patients, with random signs, add up to as much or more."""
    sizes = np.abs(np.rint(sums[sums != 0])).astype(np.int64)
    observed = abs(int(np.rint(sums).sum()))
    if not len(sizes):
        return 1.0
    if len(sizes) > EXACT_LIMIT:
        return float(2 * ndtr(-observed / np.sqrt((sizes.astype(np.float64) ** 2).sum())))
    chances = np.ones(1)
    for size, number in zip(*np.unique(sizes, return_counts=True), strict=True):
        spread = np.zeros(2 * number * size + 1)
        spread[:: 2 * size] = _binomial(int(number))
        chances = np.convolve(chances, spread)
    middle = len(chances) // 2
    further = chances[middle + observed :].sum() + chances[: middle - observed + 1].sum()
    return float(min(1.0, further)) if observed else 1.0


def _binomial(number: int) -> Floats:
    """Return the binomial distribution of `number` trials with probability one half."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, number + 1)))])
    return np.asarray(np.exp(logs[-1] - logs - logs[::-1] - number * np.log(2)))


def compare_areas(ours: Estimate, theirs: Estimate, confidence: float) -> Comparison:
    """Compare two AUCs on the same images."""
    difference = ours.value - theirs.value
    pair = {"ours": ours.value, "theirs": theirs.value, "difference": difference}
    if np.isnan(difference) or ours.patients < 2:
        return _without_bounds(pair, "delong")
    assert isinstance(ours.spread, Area)
    assert isinstance(theirs.spread, Area)
    error, freedom = area_difference(ours, theirs)
    alike = correlation(ours.by_patient, theirs.by_patient)
    errors = [*LEVELS, (1 - confidence) / 2]
    bounds = np.array([float(area_bound(ours.spread, theirs.spread, alike, level)) for level in errors])
    above = -float(area_bound(theirs.spread, ours.spread, alike, errors[-1]))
    p = float(2 * stdtr(freedom, -abs(difference) / error)) if error > 0 else 1.0
    return _record(pair, bounds, above, p, "delong")


def area_difference(ours: Estimate, theirs: Estimate) -> tuple[float, float]:
    """Return the standard error of the difference of two AUCs, and its degrees of freedom.

    The degrees of freedom follow from the two groups of patients (Satterthwaite); they are lower if a few patients
    account for most of the variance.
    """
    assert isinstance(ours.spread, Area)
    parts = ours.parts - theirs.parts
    squares, both = (parts**2).sum(axis=0), 2 * float((parts[:, 0] * parts[:, 1]).sum())
    area = ours.spread._replace(variance_with=squares[0], variance_without=squares[1], covariance=both)
    variances = parts.sum(axis=1) ** 2
    excess = (variances**2).sum() - variances.sum() ** 2 / len(variances)
    effective = 2 * float(variances.sum()) ** 2 / excess if excess > 0 else np.inf
    return float(np.sqrt(area_variance(area))), min(float(area_freedom(area)), effective)


def area_bound(ours: Area, theirs: Area, alike: Any, error: float) -> Floats:
    """Return the lower bound of the difference of two areas, or of many, at this error rate."""
    down = ours.value - area_interval(ours, 1 - 2 * error)[0]
    up = area_interval(theirs, 1 - 2 * error)[1] - theirs.value
    distance = combined_distance(down, up, alike)
    patients = np.minimum(ours.patients_with, ours.patients_without)
    return np.asarray(ours.value - theirs.value - np.maximum(distance, unseen_loss(error, patients)))


def compare_draws(
    ours: float,
    theirs: float,
    draws: Floats,
    patients: float,
    confidence: float,
    less_is_better: bool = False,
    widest: float = 1.0,
) -> Comparison:
    """Compare two figures that rest on this many patients, from the differences in bootstrap draws.

    An interval that reaches further than `widest`, the largest possible difference, is left out.
    """
    pair = {"ours": ours, "theirs": theirs, "difference": ours - theirs}
    sample = draws[~np.isnan(draws)]
    if np.isnan(ours - theirs) or 2 * len(sample) < len(draws) or patients < 2:
        return _without_bounds(pair, "bootstrap")
    errors = np.array([*LEVELS, (1 - confidence) / 2])
    freedom, error = patients - 1, float(sample.std()) * np.sqrt(patients / (patients - 1))
    distance = np.maximum(-stdtrit(freedom, errors) * error, unseen_loss(errors, patients))
    p = float(2 * stdtr(freedom, -abs(ours - theirs) / error)) if error > 1e-15 else 1.0
    gain = theirs - ours if less_is_better else ours - theirs
    record = _record(pair, gain - distance, 0.0, p, "bootstrap")
    width = float(distance[-1])
    if width > widest:
        return record | {"low": None, "high": None}
    return record | {"low": ours - theirs - width, "high": ours - theirs + width}


def _record(pair: Comparison, bounds: Floats, high: float, p: float, test: str) -> Comparison:
    lower = [[error, float(bound)] for error, bound in zip(LEVELS, bounds, strict=False)]
    known = {name: float(value) for name, value in pair.items()}
    return {**known, "low": float(bounds[-1]), "high": float(high), "p": p, "test": test, "lower": lower}


def _without_bounds(pair: Comparison, test: str) -> Comparison:
    """Return the record of figures that rest on too few patients, or cannot be computed."""
    return {**pair, "low": None, "high": None, "p": None, "test": test, "lower": [[error, None] for error in LEVELS]}
