"""Figures on validation: loss, accuracy and AUC."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def score(logits: NDArray[np.float64], targets: NDArray[np.float32], task: str) -> dict[str, float]:
    """Return loss, accuracy and AUC; of several classes or findings, the mean of the AUCs that can be computed."""
    if task == "multilabel":
        positive = np.logaddexp(0, -logits)
        loss = float((targets * positive + (1 - targets) * (positive + logits)).mean())
        right = float(((logits > 0) == (targets > 0.5)).mean())
        scores, columns = logits, range(logits.shape[1])
    else:
        shifted = logits - logits.max(axis=1, keepdims=True)
        scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        loss = -float((targets * scores).sum(axis=1).mean())
        right = float((logits.argmax(axis=1) == targets.argmax(axis=1)).mean())
        columns = range(1 if logits.shape[1] == 2 else 0, logits.shape[1])
    areas = [auc(scores[:, k], targets[:, k] > 0.5) for k in columns]
    known = [area for area in areas if area is not None]
    return {"val_loss": loss, "val_accuracy": right, "val_auc": float(np.mean(known)) if known else 0.5}


def probabilities(logits: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    """Return the probabilities of classes, which sum to 1, or of findings."""
    if task == "multilabel":
        return np.asarray(1 / (1 + np.exp(-logits)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Return the probability that a positive image scores higher than a negative one; None without both kinds."""
    if positive.all() or not positive.any():
        return None
    ordered = np.sort(scores[~positive])
    below = np.searchsorted(ordered, scores[positive], "left")
    upto = np.searchsorted(ordered, scores[positive], "right")
    return float((below + upto).mean() / 2 / len(ordered))
