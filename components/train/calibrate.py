"""Calibration on validation after training: the temperature, and the thresholds of two classes or of findings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.train.validation import score


def fit_temperature(logits: NDArray[np.float64], targets: NDArray[np.float32], task: str) -> float:
    """Return the temperature between 0.2 and 10 with the lowest loss."""

    def loss(log_temperature: float) -> float:
        return score(logits / np.exp(log_temperature), targets, task)["val_loss"]

    low, high = np.log(0.2), np.log(10.0)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(60):  # golden-section search: the loss has a single minimum
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return round(float(np.exp((low + high) / 2)), 6)


def best_threshold(logits: NDArray[np.float64], targets: NDArray[np.float32], task: str) -> float | list[float] | None:
    """Return the threshold for two classes, or one for each finding.

    Return None for more classes, of which the most probable one is predicted.
    """
    if task == "multilabel":
        return [_threshold(1 / (1 + np.exp(-logits[:, k])), targets[:, k] > 0.5) for k in range(logits.shape[1])]
    if logits.shape[1] != 2:
        return None
    return _threshold(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), targets[:, 1] > 0.5)


def _threshold(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the threshold with the highest balanced accuracy; of equal ones, the closest to one half."""
    if positive.all() or not positive.any():
        return 0.5
    values = np.unique(probability)
    candidates = np.concatenate([[0.5], (values[1:] + values[:-1]) / 2])
    missed, specificity = (
        np.searchsorted(np.sort(probability[positive == label]), candidates) / (positive == label).sum()
        for label in (True, False)
    )
    balanced = 1 - missed + specificity
    good = candidates[np.isclose(balanced, balanced.max())]
    return round(float(good[np.abs(good - 0.5).argmin()]), 12)
