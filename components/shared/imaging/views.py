"""Turn masters into a model's input, in the same way for training and for the service, without decoding files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.shared.errors import RefusedError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

NEIGHBOURHOOD_DIVISOR = 8
"""The neighbourhood of a pixel reaches 1/8 of the image's longer side in each direction."""
NOISE_SPREAD = 8.0
"""Spread of gray values added everywhere, so that noise in flat areas is not amplified."""
GRAY_LEVELS_PER_SPREAD = 40.0
"""Gray levels per spread in an equalised image, whose mean is 128."""
VIEW_ALGORITHM = 1
"""Increased with each change of `view` that changes pixels; part of every view's key."""


def view_parameters(preprocess: dict[str, Any]) -> tuple[int, str, float, str]:
    """Return size, fit, crop and shades for `view`; older models use defaults."""
    return preprocess["size"], preprocess["fit"], preprocess.get("crop", 0.0), preprocess.get("shades", "given")


def view(pixels: Pixels, size: int, fit: str, crop: float = 0.0, shades: str = "given") -> NDArray[np.uint8]:
    """Return a model's input of `size`×`size` bytes, padded or stretched.

    First, `crop` is the share of height and width that is cut off at each edge; last, with `shades` "local" gray values
    are equalised locally.
    """
    adjust = equalise_locally if shades == "local" else np.asarray
    if crop:
        top, left = (min(round(length * crop), (length - 1) // 2) for length in pixels.shape[:2])
        pixels = pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]
    height, width, *channels = pixels.shape
    if fit == "stretch":
        return adjust(to_bytes(resize(pixels, (size, size))))
    scale = size / max(height, width)
    inner = adjust(to_bytes(resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale))))))
    square = np.zeros((size, size, *channels), np.uint8)
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return square


def equalise_locally(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale pixels by mean and spread of their neighbourhood."""
    values = pixels.reshape(*pixels.shape[:2], -1).astype(np.int64)
    gray = values.sum(2)  # integer sums give the same bytes on all machines
    reach = max(1, max(gray.shape) // NEIGHBOURHOOD_DIVISOR)
    count = values.shape[2] * (2 * reach + 1) ** 2
    mean = _sums_around(gray, reach) / count
    squares = _sums_around(gray * gray, reach) / (values.shape[2] * count)
    spread = np.sqrt(np.maximum(squares - mean * mean, 0) + NOISE_SPREAD * NOISE_SPREAD)
    steps = (values - mean[..., None]) / spread[..., None]
    return np.asarray(
        np.rint((128 + GRAY_LEVELS_PER_SPREAD * steps).clip(0, 255)).reshape(pixels.shape), dtype=np.uint8
    )


def _sums_around(values: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """Return the sum of the square around each pixel; edges are repeated."""
    width = 2 * reach + 1
    sums = np.pad(np.pad(values, reach, mode="edge").cumsum(0).cumsum(1), (1, 0))
    return np.asarray(sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width])


def blank_views(count: int, preprocess: dict[str, Any]) -> NDArray[np.uint8]:
    """Return `count` black views in the shape for this preprocessing."""
    size, colours = preprocess["size"], (3,) if preprocess["decoding"]["colour"] == "rgb" else ()
    return np.zeros((count, size, size, *colours), np.uint8)


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize an image to (width, height), with antialiasing."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    # Pillow resizes 16-bit integers without antialiasing, but not floats.
    floats = Image.fromarray(pixels.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(np.rint(np.asarray(floats)).clip(0, 65535), dtype=np.uint16)


def to_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    """Return the pixels with 8 bits."""
    return np.asarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257), dtype=np.uint8)


def normalise(views: NDArray[np.uint8], preprocess: dict[str, Any]) -> NDArray[np.float32]:
    """Return the model's float batch [N, channels, H, W] of these views."""
    channels = preprocess["channels"]
    if views.ndim == 4 and channels != 3:
        raise RefusedError(f"The views have 3 channels, but the model takes {channels}. Use gray images.")
    scaled = (views.astype(np.float32) / np.float32(255) - np.float32(preprocess["mean"])) / np.float32(
        preprocess["std"]
    )
    if views.ndim == 4:
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
    return np.repeat(scaled[:, None], channels, axis=1)
