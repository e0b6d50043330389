"""From master pixels to what a model sees: the same in training and in service, and without a reader of image files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.shared.errors import RefusedError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

AROUND = 8
"""The surroundings of a pixel reach this part of the picture's longer side in each direction."""
FLAT = 8.0
"""A spread of gray values that is added everywhere: what spreads less is noise, and stays small."""
STEP = 40.0
"""Of how many gray values one spread is made in an evened picture, whose middle is 128."""
VIEW_ALGORITHM = 1
"""Counts the changes of `view` that give other pixels; part of every view's key."""


def framing(preprocess: dict[str, Any]) -> tuple[int, str, float, str]:
    """Size, fit, crop and shades, as `view` takes them; models of before there were the last two have the usual."""
    return preprocess["size"], preprocess["fit"], preprocess.get("crop", 0.0), preprocess.get("shades", "given")


def view(pixels: Pixels, size: int, fit: str, crop: float = 0.0, shades: str = "given") -> NDArray[np.uint8]:
    """What a model of this size sees: `size`×`size` bytes, gray or of three channels, padded or stretched to it.

    Before that, `crop` is the share of the height and of the width that is cut off on each side; in the end, `shades`
    are those given or local (`evened`).
    """
    finish = evened if shades == "local" else np.asarray
    if crop:
        top, left = (min(round(side * crop), (side - 1) // 2) for side in pixels.shape[:2])
        pixels = pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]
    height, width, *channels = pixels.shape
    if fit == "stretch":
        return finish(to_bytes(resize(pixels, (size, size))))
    scale = size / max(height, width)
    inner = finish(to_bytes(resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale))))))
    square = np.zeros((size, size, *channels), np.uint8)
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return square


def evened(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each pixel as its distance from the mean of those around it, in their spread: exposure tells nothing any more."""
    values = pixels.reshape(*pixels.shape[:2], -1).astype(np.int64)
    gray = values.sum(2)  # the sums are of whole numbers, so that all machines give the same bytes
    reach = max(1, max(gray.shape) // AROUND)
    count = values.shape[2] * (2 * reach + 1) ** 2
    mean = _sums_around(gray, reach) / count
    squares = _sums_around(gray * gray, reach) / (values.shape[2] * count)
    spread = np.sqrt(np.maximum(squares - mean * mean, 0) + FLAT * FLAT)
    steps = (values - mean[..., None]) / spread[..., None]
    return np.asarray(np.rint((128 + STEP * steps).clip(0, 255)).reshape(pixels.shape), dtype=np.uint8)


def _sums_around(values: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """For each place the sum of the square around it; at the edge the picture goes on as it ends."""
    side = 2 * reach + 1
    sums = np.pad(np.pad(values, reach, mode="edge").cumsum(0).cumsum(1), (1, 0))
    return np.asarray(sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side])


def blank_views(count: int, preprocess: dict[str, Any]) -> NDArray[np.uint8]:
    """So many views, all black, in the shape that a model with this preprocessing takes."""
    size, colours = preprocess["size"], (3,) if preprocess["decoding"]["colour"] == "rgb" else ()
    return np.zeros((count, size, size, *colours), np.uint8)


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The picture, gray or with three channels, in another (width, height), smoothed; 16 bits are treated like 8."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    # Pillow resizes 16-bit integers without smoothing; as floats they are treated like 8-bit ones.
    floats = Image.fromarray(pixels.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(np.rint(np.asarray(floats)).clip(0, 65535), dtype=np.uint16)


def to_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    """The pixels with 8 bits."""
    return np.asarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257), dtype=np.uint8)


def normalise(views: NDArray[np.uint8], preprocess: dict[str, Any]) -> NDArray[np.float32]:
    """The float batch [N, channels, H, W] that a model's graph takes, of views [N, H, W] or [N, H, W, 3]."""
    channels = preprocess["channels"]
    if views.ndim == 4 and channels != 3:
        raise RefusedError(
            f"The views have three colours, and the model takes {channels} channels. Give it gray images."
        )
    scaled = (views.astype(np.float32) / np.float32(255) - np.float32(preprocess["mean"])) / np.float32(
        preprocess["std"]
    )
    if views.ndim == 4:
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
    return np.repeat(scaled[:, None], channels, axis=1)
