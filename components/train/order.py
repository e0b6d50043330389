"""Which training images come when: all of them once an epoch, or drawn so that rare classes come as often as others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def order(count: int, seed: int, epoch: int, weights: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """The places of an epoch's images, from the seed and the epoch alone; with weights, drawn by them with repeats."""
    chance = np.random.default_rng([seed, epoch, 1])
    if weights is None:
        return chance.permutation(count).astype(np.int64)
    return chance.choice(count, size=count, p=weights / weights.sum()).astype(np.int64)


def weights_of(targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """How often each image is to be drawn for its labels to come equally often; the rarest label of an image counts."""
    shares = targets.mean(axis=0)
    rarity = np.where(targets > 0, 1 / np.maximum(shares, 1e-12), 0.0)
    without = 1 / max(float((targets.sum(axis=1) == 0).mean()), 1e-12)
    return np.asarray(np.where(targets.sum(axis=1) > 0, rarity.max(axis=1), without), dtype=np.float64)


def batches(places: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """The epoch's batches of this size or a little less, so that none is a small rest, which would weigh too much.

    None is a single image, which batch norm cannot take, unless there is no other.
    """
    return np.array_split(places, min(-(-len(places) // size), max(1, len(places) // 2)))
