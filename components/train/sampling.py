"""Order and batches of training images: each once per epoch, or sampled so that all classes are equally frequent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw_order(count: int, seed: int, epoch: int, weights: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """Return the positions of an epoch's images; with weights, sampled with replacement."""
    rng = np.random.default_rng([seed, epoch, 1])
    if weights is None:
        return rng.permutation(count).astype(np.int64)
    return rng.choice(count, size=count, p=weights / weights.sum()).astype(np.int64)


def sampling_weights(targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the weight of each image for equally frequent labels; the rarest label of an image counts."""
    shares = targets.mean(axis=0)
    rarity = np.where(targets > 0, 1 / np.maximum(shares, 1e-12), 0.0)
    without = 1 / max(float((targets.sum(axis=1) == 0).mean()), 1e-12)
    return np.asarray(np.where(targets.sum(axis=1) > 0, rarity.max(axis=1), without), dtype=np.float64)


def make_batches(positions: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Split positions into batches of nearly equal size, at most `size`: a small last batch would weigh too much.

    No batch has a single image, for which batch norm fails, unless there is only one.
    """
    return np.array_split(positions, min(-(-len(positions) // size), max(1, len(positions) // 2)))
