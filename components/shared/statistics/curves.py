"""The points of the curves in a report: ROC, precision-recall and calibration, for one class against the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.statistics.bootstrapped_metrics import Ints, Predictions
from components.shared.statistics.calibration_bins import calibration_bins
from components.shared.statistics.intervals import Floats, wilson

POINTS = 200
"""Maximum number of points of a curve; longer ones are thinned."""


def curves(predictions: Predictions, k: int, confidence: float) -> dict[str, Any]:
    """Return all curves of class k; `roc` and `pr` are None unless there are images with and without the class."""
    truth, probability = predictions.truth[:, k], predictions.probabilities[:, k]
    both = bool(truth.any() and not truth.all())
    return {
        "roc": _roc(truth, probability) if both else None,
        "pr": _precision_recall(truth, probability) if both else None,
        "calibration": _calibration(truth, probability, predictions.patients, confidence),
    }


def steps(truth: NDArray[np.bool_], probability: Floats) -> tuple[Floats, Ints, Ints]:
    """Return all thresholds from the highest down, and the true and false positives at each."""
    order = np.argsort(-probability, kind="stable")
    ranked, tp = probability[order], np.cumsum(truth[order], dtype=np.int64)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)).astype(np.int64)
    return ranked[ends], tp[ends], ends + 1 - tp[ends]


def _roc(truth: NDArray[np.bool_], probability: Floats) -> dict[str, list[float]]:
    threshold, tp, fp = steps(truth, probability)
    # At the first point nothing is predicted positive. Its threshold would be infinite; 1 is used instead.
    tpr = np.append(0.0, tp / tp[-1])
    fpr = np.append(0.0, fp / fp[-1])
    # Points on a straight line between their neighbours are left out.
    bends = (np.diff(tp, 2, prepend=0) != 0) | (np.diff(fp, 2, prepend=0) != 0)
    kept = _thinned(np.flatnonzero(np.concatenate([[True], bends, [True]])))
    return {
        "fpr": fpr[kept].tolist(),
        "tpr": tpr[kept].tolist(),
        "threshold": np.append(1.0, threshold)[kept].tolist(),
    }


def _precision_recall(truth: NDArray[np.bool_], probability: Floats) -> dict[str, list[float]]:
    threshold, tp, fp = steps(truth, probability)
    last = int(np.argmax(tp == tp[-1]))  # the recall is 1 at all lower thresholds
    kept = _thinned(np.arange(last + 1))
    precision = tp / (tp + fp)
    return {
        "recall": (tp / tp[-1])[kept].tolist(),
        "precision": precision[kept].tolist(),
        "threshold": threshold[kept].tolist(),
    }


def _thinned(points: Ints) -> Ints:
    if len(points) <= POINTS:
        return points
    return points[np.linspace(0, len(points) - 1, POINTS).round().astype(np.int64)]


def _calibration(
    truth: NDArray[np.bool_], probability: Floats, patients: Ints, confidence: float
) -> list[dict[str, float]]:
    """Return predicted probability and observed frequency by bin, with Wilson's interval on the bin's patients."""
    bins = calibration_bins(probability)
    points = []
    for number in np.unique(bins):
        inside = bins == number
        observed = float(truth[inside].mean())
        low, high = wilson(observed, len(np.unique(patients[inside])), confidence)
        points.append(
            {
                "predicted": float(probability[inside].mean()),
                "observed": observed,
                "low": low,
                "high": high,
                "images": int(inside.sum()),
            }
        )
    return points
