"""Compute a perceptual hash of 256 bits, nearly equal for two files of the same image."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.imaging.views import Pixels

WAVES = 16
"""Number of cosine waves per direction; 16 by 16 patterns give 256 bits."""
SAMPLES = 112
"""Approximate number of rows and columns of an image that are sampled."""
MIN_SIDE = 32
"""Minimum length of the shorter side, in pixels; smaller images have too few patterns."""
ZERO, FAINT = 1e-3, 1e-2
"""Strengths up to which a pattern counts as absent, and as weak, in levels of 8 bits."""


def perceptual_hash(pixels: Pixels) -> str:
    """Return the 64 digits of a master's perceptual hash, "" if it is too uniform.

    Each bit is the sign of one cosine coefficient, low frequencies first. The patterns fade out towards the edges, so
    markers and borders matter little. The hash is insensitive to brightness, contrast, size, bit depth, colour, aspect
    ratio and JPEG quality, but not to rotation and mirroring.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        return ""
    down, across = (max(1, round(length / SAMPLES)) for length in (height, width))
    sample = np.asarray(pixels[down // 2 :: down, across // 2 :: across], dtype=np.float32)
    if sample.ndim == 3:
        sample = sample @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    if pixels.dtype == np.uint16:
        sample /= np.float32(257)
    sample = sample - sample.mean()
    (rows, row_sums), (columns, column_sums) = _waves(height, down), _waves(width, across)
    strengths = rows @ sample @ columns.T
    middle = strengths[0, 0] / (row_sums[0] * column_sums[0])
    strengths = (strengths - middle * np.multiply.outer(row_sums, column_sums)).ravel()[_coarse_first()]
    if (np.abs(strengths) > FAINT).sum() < strengths.size // 2:
        return ""
    return np.packbits(strengths > ZERO).tobytes().hex()


@lru_cache(1024)
def _waves(length: int, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the waves along one direction at the sampled positions, and their sums."""
    positions = (np.arange(step // 2, length, step) + 0.5) / length
    waves = np.sin(np.pi * positions) * np.cos(np.pi * np.arange(WAVES)[:, None] * positions) / len(positions)
    return waves.astype(np.float32), waves.sum(axis=1).astype(np.float32)


@lru_cache(1)
def _coarse_first() -> NDArray[Any]:
    down, across = np.mgrid[:WAVES, :WAVES]
    return np.argsort((down**2 + across**2).ravel(), kind="stable")
