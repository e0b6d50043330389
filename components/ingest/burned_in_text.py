"""Detect text burned into an image: a name, a date or a number, in a border or over the anatomy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from components.shared.imaging.views import Pixels

Bytes = NDArray[np.uint8]

SCALES = (1, 2, 4)
"""Subsampling factors at which text is searched for, so that large letters are found too."""
STEP = 4
"""Distance of the rows in which edges are counted."""
MIN_CONTRAST = 48
"""Minimum difference, of 255 levels, between the pixels on both sides of a stroke's edge."""
CELL = 32
"""Width of a cell in which edges are counted."""
MIN_EDGES = 18
"""Minimum number of edges in two neighbouring cells."""
MIN_LETTERS = 4
"""Minimum number of letters in a line."""
HEIGHTS = (7, 34)
"""Minimum and maximum height of letters, in pixels after subsampling."""


def find_text(pixels: Pixels) -> str | None:
    """Describe where a line of text seems to be in the image, or return None.

    A line has at least 4 upright letters or digits, about 9 to 130 pixels high, brighter or darker than their
    surroundings by a fifth of the range; a single R or L does not count. The result is a hint: handwriting, slanted,
    faint or shorter text and touching letters are missed, and clips or cables may be mistaken for text. The text is
    not recognised.
    """
    height, width = pixels.shape[:2]
    rows = _bytes(pixels[::STEP])
    for scale in SCALES:
        if min(height, width) < 2 * CELL * scale:
            break
        for top, bottom, left, right in _areas_with_edges(rows[::scale, ::scale]):
            letters = _count_letters(_bytes(pixels[::scale, ::scale][top:bottom, left:right]))
            if letters >= MIN_LETTERS:
                where = _describe_position((top + bottom) / 2 * scale / height, (left + right) / 2 * scale / width)
                return f"{letters} characters in a row look like text {where} of the image"
    return None


def _bytes(patch: NDArray[Any]) -> Bytes:
    """Return a patch as gray bytes, of colours the brightest channel."""
    if patch.dtype == np.uint16:
        patch = (patch >> 8).astype(np.uint8)
    if patch.ndim == 3:
        patch = np.maximum(np.maximum(patch[..., 0], patch[..., 1]), patch[..., 2])
    return np.ascontiguousarray(patch, dtype=np.uint8)


def _areas_with_edges(rows: Bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield areas (top, bottom, left, right) with as many edges as text has."""
    flat = np.ascontiguousarray(rows[:, : rows.shape[1] // CELL * CELL])
    before, after = flat.ravel()[:-2], flat.ravel()[2:]
    edges = np.zeros(flat.size, dtype=bool)
    np.greater_equal(np.maximum(before, after) - np.minimum(before, after), MIN_CONTRAST, out=edges[1:-1])
    cells = np.bitwise_count(np.packbits(edges).view(np.uint32)).reshape(len(flat), -1)
    dense = cells[:, :-1] + cells[:, 1:] >= MIN_EDGES
    dense[:-1] &= dense[1:]
    dense[-1] = False
    if not dense.any():
        return
    dense_rows = dense.any(axis=1)
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], dense_rows, [False]]).astype(np.int8)))
    for first, last in bounds.reshape(-1, 2):
        columns_with_edges = np.flatnonzero(dense[first:last].any(axis=0))
        for run in np.split(columns_with_edges, np.flatnonzero(np.diff(columns_with_edges) > 2) + 1):
            top, bottom = max(0, (first - 2) * STEP), (last + 3) * STEP
            yield int(top), int(bottom), max(0, int(run[0] - 1) * CELL), int(run[-1] + 3) * CELL


def _count_letters(patch: Bytes) -> int:
    image = Image.fromarray(patch)
    low, high = ImageFilter.MinFilter(9), ImageFilter.MaxFilter(9)
    bright = patch - np.asarray(image.filter(low).filter(high))
    dark = np.asarray(image.filter(high).filter(low)) - patch
    return max(_longest_line(bright), _longest_line(dark))


def _longest_line(strokes: Bytes) -> int:
    """Return the largest number of letters in a line, given the contrast."""
    ink = strokes >= max(MIN_CONTRAST // 2, int(strokes.max()) // 2)
    longest = 0
    for top, bottom in _spans(np.asarray(ink.sum(axis=1) >= 3)):
        if HEIGHTS[0] <= bottom - top <= HEIGHTS[1]:
            longest = max(longest, _count_in_line(ink[top:bottom]))
    return longest


def _count_in_line(line: NDArray[np.bool_]) -> int:
    """Count neighbouring shapes as wide as letters and as high as the line."""
    height = len(line)
    best = run = 0
    end = -height
    for left, right in _spans(np.asarray(line.any(axis=0))):
        shape = line[:, left:right]
        shape_height = int(np.ptp(np.flatnonzero(shape.any(axis=1)))) + 1
        if left - end > 1.5 * height:
            run = 0
        end = right
        if shape_height < 0.55 * height or not 0.08 <= shape.mean() <= 0.95:
            continue
        run += max(1, round((right - left) / (0.75 * height))) if right - left <= 8 * height else 0
        best = max(best, run)
    return best


def _spans(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the start and end of each run of true values."""
    return np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))).reshape(-1, 2)


def _describe_position(down: float, across: float) -> str:
    """Describe a position, given as fractions of height and width."""
    rows, columns = (min(2, int(share * 3)) for share in (down, across))
    return f"at the {('top', 'middle', 'bottom')[rows]} {('left', 'centre', 'right')[columns]}"
