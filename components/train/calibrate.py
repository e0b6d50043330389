"""What is chosen on validation after training: the temperature, and for two classes the threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature under which the probabilities of these labels are likeliest, between 0.2 and 10."""

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]).mean())

    low, high = np.log(0.2), np.log(10.0)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(60):  # the loss has one valley in the temperature
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return round(float(np.exp((low + high) / 2)), 6)


def best_threshold(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """For two classes the probability from which on an image counts as positive; None for more classes.

    It maximises balanced accuracy. Among equally good ones the nearest to one half is taken.
    """
    if logits.shape[1] != 2:
        return None
    positive = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    values = np.unique(positive)
    candidates = np.concatenate([[0.5], (values[1:] + values[:-1]) / 2])
    missed, passed = (
        np.searchsorted(np.sort(positive[labels == label]), candidates) / (labels == label).sum() for label in (1, 0)
    )
    balanced = 1 - missed + passed
    good = candidates[np.isclose(balanced, balanced.max())]
    return round(float(good[np.abs(good - 0.5).argmin()]), 6)
