"""From master pixels to what a model sees: the same in training and in service, and without a reader of image files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

VIEW_ALGORITHM = 1
"""Counts the changes of `view` that give other pixels; part of every view's key."""


def view(pixels: Pixels, size: int, fit: str) -> NDArray[np.uint8]:
    """What a model of this size sees: `size`×`size` gray bytes, the picture padded to a square or stretched to it."""
    height, width = pixels.shape
    if fit == "stretch":
        return _to_bytes(resize(pixels, (size, size)))
    scale = size / max(height, width)
    inner = _to_bytes(resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale)))))
    square = np.zeros((size, size), np.uint8)
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return square


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The picture in another (width, height), smoothed; 16 bits are treated like 8."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    # Pillow resizes 16-bit integers without smoothing; as floats they are treated like 8-bit ones.
    floats = Image.fromarray(pixels.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(np.rint(np.asarray(floats)).clip(0, 65535), dtype=np.uint16)


def _to_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    return np.asarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257), dtype=np.uint8)


def normalise(views: NDArray[np.uint8], preprocess: dict[str, Any]) -> NDArray[np.float32]:
    """The float batch [N, channels, H, W] that a model's graph takes, from uint8 views [N, H, W]."""
    scaled = (views.astype(np.float32) / np.float32(255) - np.float32(preprocess["mean"])) / np.float32(
        preprocess["std"]
    )
    return np.repeat(scaled[:, None], preprocess["channels"], axis=1)
