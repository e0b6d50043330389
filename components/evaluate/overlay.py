"""Pictures of what a model looked at: the image, and beside it the same image under the map of its explanation."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 224
"""How many pixels a picture is high; it is twice as wide, and the gap."""
GAP = 6
COLOUR = 0.55
"""How much of an overlay is the map's colour; the rest is the image."""
LINE = 0.5
"""A line goes round what has at least this part of the highest value, so that the map can be read without colours."""


def overlay(view: NDArray[np.uint8], heat: NDArray[np.float64]) -> bytes:
    """A PNG of the view, and beside it the view under the map in colours from dark (0) to bright (1)."""
    image = Image.fromarray(view).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values = enlarged(heat, SIDE)
    colours = mpl.colormaps["viridis"](values)[..., :3] * 255
    gray = np.asarray(image.convert("L"), np.float64)[..., None]
    under = COLOUR * colours + (1 - COLOUR) * gray
    line = _edge(values >= LINE)
    under[_edge(~line) & ~line] = 0  # dark beside bright: seen on any ground
    under[line] = 255
    both = np.full((SIDE, 2 * SIDE + GAP, 3), 255, np.uint8)
    both[:, :SIDE] = np.asarray(image)
    both[:, SIDE + GAP :] = np.rint(under).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(both).quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def enlarged(heat: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """The map with so many pixels a side, between 0 and 1, without steps."""
    floats = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(np.asarray(floats, np.float64).clip(0, 1))


def _edge(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of these pixels have a neighbour that is none of them."""
    padded = np.pad(inside, 1, mode="edge")
    kept = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return np.asarray(inside & ~kept)
