"""How a picture looks, in 256 bits: the same picture in another file has nearly the same bits, another one has not."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.imaging.views import Pixels

WAVES = 16
"""How many waves fit along each side of the finest pattern, in halves: 16 by 16 patterns are 256 bits."""
SAMPLES = 112
"""About how many rows and columns of a picture are looked at."""
SMALLEST = 32
"""Below this many pixels along the shorter side a picture has too few of the patterns."""
TINY, FAINT = 1e-3, 1e-2
"""What counts as nothing, and as hardly anything, in levels of 8 bits."""


def look(pixels: Pixels) -> str:
    """The perceptual hash of a master, as 64 hexadecimal digits; "" for one too small or too plain to have a look.

    Each bit says whether one pattern of light and dark waves is in the picture or its negative, coarse ones first. The
    patterns fade out towards the edges, so that a marker or a border weighs little. Brightness and contrast do not
    matter, nor do size, bits, colour, shape of the pixels and the quality of a JPEG; turning and mirroring do.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST:
        return ""
    down, across = (max(1, round(side / SAMPLES)) for side in (height, width))
    seen = np.asarray(pixels[down // 2 :: down, across // 2 :: across], dtype=np.float32)
    if seen.ndim == 3:
        seen = seen @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    if pixels.dtype == np.uint16:
        seen /= np.float32(257)
    seen = seen - seen.mean()
    (rows, row_sums), (columns, column_sums) = _waves(height, down), _waves(width, across)
    strengths = rows @ seen @ columns.T
    middle = strengths[0, 0] / (row_sums[0] * column_sums[0])
    strengths = (strengths - middle * np.multiply.outer(row_sums, column_sums)).ravel()[_coarse_first()]
    if (np.abs(strengths) > FAINT).sum() < strengths.size // 2:
        return ""
    return np.packbits(strengths > TINY).tobytes().hex()


@lru_cache(1024)
def _waves(side: int, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The waves along one side at the places that are looked at, and their sums there."""
    places = (np.arange(step // 2, side, step) + 0.5) / side
    waves = np.sin(np.pi * places) * np.cos(np.pi * np.arange(WAVES)[:, None] * places) / len(places)
    return waves.astype(np.float32), waves.sum(axis=1).astype(np.float32)


@lru_cache(1)
def _coarse_first() -> NDArray[Any]:
    down, across = np.mgrid[:WAVES, :WAVES]
    return np.argsort((down**2 + across**2).ravel(), kind="stable")
