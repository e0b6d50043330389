"""Decode JPEG files into arrays, faster than Pillow and to the same pixels."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

_START = b"\xff\xd8\xff"
_CHANNELS = {"Gray": "GRAY", "YCbCr": "RGBX"}
"""Pixel format to request, by the colour space of the file; the fourth byte of RGBX is undefined."""
_EXIF_WITHIN = 2**17
"""Number of bytes at the start of a file in which to search for EXIF data."""


def read_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a plain gray or YCbCr JPEG; None for other files."""
    if not data.startswith(_START) or data.find(b"Exif\0\0", 0, _EXIF_WITHIN) >= 0:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in _CHANNELS else None


def decode_jpeg(data: bytes, factor: int) -> NDArray[np.uint8] | None:
    """Return the pixels at 1/`factor` of the size; None if the file is damaged."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, _CHANNELS[colours], min_height=-(-height // factor), min_width=-(-width // factor), min_factor=factor
        )
    except ValueError:
        return None
    return pixels[..., 0] if colours == "Gray" else pixels
