"""Operating points: the threshold from validation, and thresholds for a given specificity on the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from components.evaluate.point_metrics import Estimate, share, variance_inflation
from components.shared.statistics.bootstrapped_metrics import Bools, Predictions
from components.shared.statistics.curves import steps
from components.shared.statistics.intervals import Share

SPECIFICITIES = (0.9, 0.95)
"""Specificities for which the sensitivity is reported."""


def operating_points(
    predictions: Predictions, classes: Sequence[str], thresholds: Sequence[float] | None, confidence: float
) -> list[dict[str, Any]]:
    """Return threshold, sensitivity and specificity, with intervals, for the positive class or each class or finding.

    `thresholds` were chosen on validation, one for each of `predictions.reported_classes`; None if there are none.
    """
    points = []
    for number, k in enumerate(predictions.reported_classes):
        truth, probability = predictions.truth[:, k], predictions.probabilities[:, k]
        if truth.all() or not truth.any():
            continue
        if thresholds is not None:
            sensitivity, specificity = _rates(predictions, truth, probability >= thresholds[number])
            at = "threshold from validation"
            points.append(_point(at, classes[k], thresholds[number], sensitivity, specificity, confidence))
        for target in SPECIFICITIES:
            threshold, slope = _threshold_at(truth, probability, target, predictions.patients_of(~truth))
            positive = np.zeros(len(truth), bool) if threshold is None else probability >= threshold
            sensitivity, specificity = _rates(predictions, truth, positive)
            sensitivity = _along_curve(sensitivity, specificity, slope)
            at = f"specificity {target:.2f}"
            points.append(_point(at, classes[k], threshold, sensitivity, specificity, confidence))
    return points


def _point(
    at: str, name: str, threshold: float | None, sensitivity: Estimate, specificity: Estimate, confidence: float
) -> dict[str, Any]:
    figures = {"sensitivity": sensitivity.figure(confidence), "specificity": specificity.figure(confidence)}
    return {"at": at, "class": name, "threshold": None if threshold is None else float(threshold), **figures}


def _rates(predictions: Predictions, truth: Bools, positive: Bools) -> tuple[Estimate, Estimate]:
    """Return sensitivity and specificity."""
    sensitivity = share(predictions.by_patient(truth & positive), predictions.by_patient(truth))
    return sensitivity, share(predictions.by_patient(~truth & ~positive), predictions.by_patient(~truth))


def _threshold_at(truth: Bools, probability: Any, specificity: float, negatives: int) -> tuple[float | None, float]:
    """Return the lowest threshold with this specificity, or None, and the slope of the ROC curve there.

    The slope is measured over one standard error of the specificity in each direction; `negatives` are patients.
    """
    threshold, tp, fp = steps(truth, probability)
    fpr, tpr = fp / fp[-1], tp / tp[-1]
    allowed = np.flatnonzero(fpr <= 1 - specificity + 1e-12)
    error = float(np.sqrt(specificity * (1 - specificity) / negatives))
    around = np.clip([1 - specificity - error, 1 - specificity + error], 0, 1)
    last = np.append(fpr[1:] != fpr[:-1], True)  # of points with the same false positive rate, the highest
    low, high = np.interp(around, np.append(0.0, fpr[last]), np.append(0.0, tpr[last]))
    slope = float((high - low) / (around[1] - around[0]))
    return (float(threshold[allowed[-1]]) if len(allowed) else None), slope


def _along_curve(sensitivity: Estimate, specificity: Estimate, slope: float) -> Estimate:
    """Return the sensitivity with the variance of a threshold that is chosen for a specificity on the same test."""
    parts = sensitivity.parts + slope * specificity.parts
    assert isinstance(sensitivity.spread, Share)
    variance = float((parts**2).sum()) * variance_inflation(sensitivity)
    return replace(sensitivity, spread=sensitivity.spread._replace(variance=variance), parts=parts)
