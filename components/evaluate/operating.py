"""Where a model may be operated: at the threshold from validation, and where the test itself gives a specificity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from components.evaluate.estimates import Estimate, counted, share
from components.shared.statistics.curves import steps
from components.shared.statistics.intervals import Share
from components.shared.statistics.metrics import Bools, Scored

SPECIFICITIES = (0.9, 0.95)
"""At which specificities the sensitivity is told."""


def operating_points(
    scored: Scored, classes: Sequence[str], thresholds: Sequence[float] | None, confidence: float
) -> list[dict[str, Any]]:
    """For the positive class of two, or each class or finding: threshold, sensitivity and specificity, with intervals.

    `thresholds` are those found on validation, one for each of `scored.ranked`, where there are any.
    """
    points = []
    for place, k in enumerate(scored.ranked):
        truth, probability = scored.truth[:, k], scored.probabilities[:, k]
        if truth.all() or not truth.any():
            continue
        if thresholds is not None:
            called = probability >= thresholds[place]
            found, passed = _found(scored, truth, called), _passed(scored, truth, called)
            points.append(_point("threshold from validation", classes[k], thresholds[place], found, passed, confidence))
        for wanted in SPECIFICITIES:
            threshold, slope = _at(truth, probability, wanted, scored.patients_of(~truth))
            called = np.zeros(len(truth), bool) if threshold is None else probability >= threshold
            passed = _passed(scored, truth, called)
            found = _moved(_found(scored, truth, called), passed, slope)
            points.append(_point(f"specificity {wanted:.2f}", classes[k], threshold, found, passed, confidence))
    return points


def _point(
    at: str, name: str, threshold: float | None, found: Estimate, passed: Estimate, confidence: float
) -> dict[str, Any]:
    figures = {"sensitivity": found.figure(confidence), "specificity": passed.figure(confidence)}
    return {"at": at, "class": name, "threshold": None if threshold is None else float(threshold), **figures}


def _found(scored: Scored, truth: Bools, called: Bools) -> Estimate:
    return share(scored.by_patient(truth & called), scored.by_patient(truth))


def _passed(scored: Scored, truth: Bools, called: Bools) -> Estimate:
    return share(scored.by_patient(~truth & ~called), scored.by_patient(~truth))


def _at(truth: Bools, probability: Any, wanted: float, without: int) -> tuple[float | None, float]:
    """The lowest threshold that keeps the specificity, and the curve's slope there; None where nothing may be called.

    The slope is taken over one standard error of the specificity to each side.
    """
    threshold, found, wrong = steps(truth, probability)
    alarms, sensitivity = wrong / wrong[-1], found / found[-1]
    kept = np.flatnonzero(alarms <= 1 - wanted + 1e-12)
    reach = float(np.sqrt(wanted * (1 - wanted) / without))
    around = np.clip([1 - wanted - reach, 1 - wanted + reach], 0, 1)
    last = np.append(alarms[1:] != alarms[:-1], True)  # of equal shares of false alarms the one that finds most
    low, high = np.interp(around, np.append(0.0, alarms[last]), np.append(0.0, sensitivity[last]))
    slope = float((high - low) / (around[1] - around[0]))
    return (float(threshold[kept[-1]]) if len(kept) else None), slope


def _moved(found: Estimate, passed: Estimate, slope: float) -> Estimate:
    """The sensitivity where the threshold follows the specificity: a patient who adds to that moves the threshold."""
    parts = found.parts + slope * passed.parts
    assert isinstance(found.spread, Share)
    return replace(found, spread=found.spread._replace(variance=float((parts**2).sum()) * counted(found)), parts=parts)
