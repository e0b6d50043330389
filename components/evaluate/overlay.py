"""Pictures of explanations: the image, and the same image with the map overlaid."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 224
"""Height of a picture in pixels; its width is twice that, plus the gap."""
GAP = 6
MAP_OPACITY = 0.55
"""Opacity of the map."""
LINE = 0.5
"""Level of the contour line, as a share of the highest value; it makes the map readable without colours."""


def overlay(view: NDArray[np.uint8], heat: NDArray[np.float64]) -> bytes:
    """Return a PNG of the view, and beside it the view with the map in colours from dark (0) to bright (1)."""
    image = Image.fromarray(view).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = enlarged(heat, SIDE)
    colours = mpl.colormaps["viridis"](values)[..., :3] * 255
    gray = np.asarray(image.convert("L"), np.float64)[..., None]
    under = MAP_OPACITY * colours + (1 - MAP_OPACITY) * gray
    line = _edge(values >= LINE)
    under[_edge(~line) & ~line] = 0  # a dark line beside the bright one is visible on any background
    under[line] = 255
    both = np.full((SIDE, 2 * SIDE + GAP, 3), 255, np.uint8)
    both[:, :SIDE] = np.asarray(image)
    both[:, SIDE + GAP :] = np.rint(under).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(both).quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def enlarged(heat: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return the map enlarged to `side` pixels by interpolation, clipped to 0..1."""
    floats = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(np.asarray(floats, np.float64).clip(0, 1))


def _edge(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that have a neighbour outside it."""
    padded = np.pad(inside, 1, mode="edge")
    kept = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return np.asarray(inside & ~kept)
