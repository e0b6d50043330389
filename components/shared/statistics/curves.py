"""The points of the curves in a report: ROC, precision-recall and calibration, for one class against the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.statistics.intervals import Floats, wilson
from components.shared.statistics.metrics import Ints, Scored, calibration_bins

POINTS = 200
"""A curve has at most this many points; longer ones are thinned."""


def curves(scored: Scored, k: int, confidence: float) -> dict[str, Any]:
    """All curves of class k: `roc` and `pr` are null where one side is missing."""
    truth, probability = scored.truth[:, k], scored.probabilities[:, k]
    both = bool(truth.any() and not truth.all())
    return {
        "roc": _roc(truth, probability) if both else None,
        "pr": _precision_recall(truth, probability) if both else None,
        "calibration": _calibration(truth, probability, scored.patients, confidence),
    }


def steps(truth: NDArray[np.bool_], probability: Floats) -> tuple[Floats, Ints, Ints]:
    """From the highest threshold down: how many images with and without the class reach it."""
    order = np.argsort(-probability, kind="stable")
    ranked, found = probability[order], np.cumsum(truth[order], dtype=np.int64)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)).astype(np.int64)
    return ranked[ends], found[ends], ends + 1 - found[ends]


def _roc(truth: NDArray[np.bool_], probability: Floats) -> dict[str, list[float]]:
    threshold, found, wrong = steps(truth, probability)
    # The first point calls nothing positive. Its threshold would be infinite; 1 is the nearest number with a meaning.
    tpr = np.append(0.0, found / found[-1])
    fpr = np.append(0.0, wrong / wrong[-1])
    bends = (np.diff(found, 2, prepend=0) != 0) | (
        np.diff(wrong, 2, prepend=0) != 0
    )  # of every point but first and last
    kept = _thinned(np.flatnonzero(np.concatenate([[True], bends, [True]])))
    return {
        "fpr": fpr[kept].tolist(),
        "tpr": tpr[kept].tolist(),
        "threshold": np.append(1.0, threshold)[kept].tolist(),
    }


def _precision_recall(truth: NDArray[np.bool_], probability: Floats) -> dict[str, list[float]]:
    threshold, found, wrong = steps(truth, probability)
    last = int(np.argmax(found == found[-1]))  # lower thresholds find nothing more
    kept = _thinned(np.arange(last + 1))
    precision = found / (found + wrong)
    return {
        "recall": (found / found[-1])[kept].tolist(),
        "precision": precision[kept].tolist(),
        "threshold": threshold[kept].tolist(),
    }


def _thinned(places: Ints) -> Ints:
    if len(places) <= POINTS:
        return places
    return places[np.linspace(0, len(places) - 1, POINTS).round().astype(np.int64)]


def _calibration(
    truth: NDArray[np.bool_], probability: Floats, patients: Ints, confidence: float
) -> list[dict[str, float]]:
    """What was said and what came true, by bin; the interval is Wilson's on the bin's patients."""
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
