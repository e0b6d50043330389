"""What is chosen on validation after training: the temperature, and for two classes the threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.train.judge import judge


def fit_temperature(logits: NDArray[np.float64], targets: NDArray[np.float32], task: str) -> float:
    """The temperature under which the probabilities of these targets are likeliest, between 0.2 and 10."""

    def loss(log_temperature: float) -> float:
        return judge(logits / np.exp(log_temperature), targets, task)["val_loss"]

    low, high = np.log(0.2), np.log(10.0)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(60):  # the loss has one valley in the temperature
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return round(float(np.exp((low + high) / 2)), 6)


def best_threshold(logits: NDArray[np.float64], targets: NDArray[np.float32], task: str) -> float | list[float] | None:
    """For two classes the probability from which on an image counts as positive; for findings one each.

    None for more classes, of which the likeliest is taken.
    """
    if task == "multilabel":
        columns = range(logits.shape[1])
        return [_threshold(1 / (1 + np.exp(-logits[:, each])), targets[:, each] > 0.5) for each in columns]
    if logits.shape[1] != 2:
        return None
    return _threshold(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), targets[:, 1] > 0.5)


def _threshold(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The threshold of the greatest balanced accuracy; of equally good ones the nearest to one half."""
    if positive.all() or not positive.any():
        return 0.5
    values = np.unique(probability)
    candidates = np.concatenate([[0.5], (values[1:] + values[:-1]) / 2])
    missed, passed = (
        np.searchsorted(np.sort(probability[positive == there]), candidates) / (positive == there).sum()
        for there in (True, False)
    )
    balanced = 1 - missed + passed
    good = candidates[np.isclose(balanced, balanced.max())]
    return round(float(good[np.abs(good - 0.5).argmin()]), 12)
