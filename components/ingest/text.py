"""Finds what looks like writing burned into a picture: a name, a date or a number, in a border or over the anatomy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from components.shared.imaging.views import Pixels

Bytes = NDArray[np.uint8]

SCALES = (1, 2, 4)
"""Writing is looked for in the picture and in every second and fourth row and column of it, so large letters count."""
STEP = 4
"""Every so many rows are looked at first."""
EDGE = 48
"""The least difference, of 255 levels, between two pixels on both sides of a stroke's edge."""
CELL = 32
"""The width of a cell in which edges are counted."""
BUSY = 18
"""The least number of edges in two cells side by side."""
LETTERS = 4
"""The least number of letters in a line."""
HEIGHTS = (7, 34)
"""The heights of letters that are looked for, in pixels of the scale."""


def text_like(pixels: Pixels) -> str | None:
    """A sentence that says where something looks like a line of writing; None where nothing does.

    A sign of it: at least 4 letters or digits in a row, upright, about 9 to 130 pixels high, brighter or darker than
    what is around them by a fifth of the range; an R or an L alone is none. It is a hint, not a proof. Handwriting,
    slanted lines, faint or shorter writing and letters that touch are missed, and clips or cables may look like
    writing. It reads nothing: what the writing says is not known here.
    """
    height, width = pixels.shape[:2]
    rows = _bytes(pixels[::STEP])
    for scale in SCALES:
        if min(height, width) < 2 * CELL * scale:
            break
        for top, bottom, left, right in _busy(rows[::scale, ::scale]):
            letters = _letters(_bytes(pixels[::scale, ::scale][top:bottom, left:right]))
            if letters >= LETTERS:
                where = _where((top + bottom) / 2 * scale / height, (left + right) / 2 * scale / width)
                return f"{letters} signs in a row look like writing {where} of the image"
    return None


def _bytes(part: NDArray[Any]) -> Bytes:
    """A part of a picture as gray bytes; of a coloured one the brightest channel, since letters may have any colour."""
    if part.dtype == np.uint16:
        part = (part >> 8).astype(np.uint8)
    if part.ndim == 3:
        part = np.maximum(np.maximum(part[..., 0], part[..., 1]), part[..., 2])
    return np.ascontiguousarray(part, dtype=np.uint8)


def _busy(rows: Bytes) -> Iterator[tuple[int, int, int, int]]:
    """The places with as many upright edges as letters have: top, bottom, left and right in pixels of the scale."""
    flat = np.ascontiguousarray(rows[:, : rows.shape[1] // CELL * CELL])
    before, after = flat.ravel()[:-2], flat.ravel()[2:]
    edges = np.zeros(flat.size, dtype=bool)
    np.greater_equal(np.maximum(before, after) - np.minimum(before, after), EDGE, out=edges[1:-1])
    cells = np.bitwise_count(np.packbits(edges).view(np.uint32)).reshape(len(flat), -1)
    busy = cells[:, :-1] + cells[:, 1:] >= BUSY
    busy[:-1] &= busy[1:]
    busy[-1] = False
    if not busy.any():
        return
    lines = busy.any(axis=1)
    ends = np.flatnonzero(np.diff(np.concatenate([[False], lines, [False]]).astype(np.int8)))
    for first, last in ends.reshape(-1, 2):
        places = np.flatnonzero(busy[first:last].any(axis=0))
        for run in np.split(places, np.flatnonzero(np.diff(places) > 2) + 1):
            top, bottom = max(0, (first - 2) * STEP), (last + 3) * STEP
            yield int(top), int(bottom), max(0, int(run[0] - 1) * CELL), int(run[-1] + 3) * CELL


def _letters(part: Bytes) -> int:
    """The most signs that stand in a row like letters in this part of a picture."""
    picture = Image.fromarray(part)
    low, high = ImageFilter.MinFilter(9), ImageFilter.MaxFilter(9)
    bright = part - np.asarray(picture.filter(low).filter(high))
    dark = np.asarray(picture.filter(high).filter(low)) - part
    return max(_count(bright), _count(dark))


def _count(strokes: Bytes) -> int:
    """The most signs in one line, when strokes stand out this much."""
    ink = strokes >= max(EDGE // 2, int(strokes.max()) // 2)
    most = 0
    for top, bottom in _spans(np.asarray(ink.sum(axis=1) >= 3)):
        if HEIGHTS[0] <= bottom - top <= HEIGHTS[1]:
            most = max(most, _signs(ink[top:bottom]))
    return most


def _signs(line: NDArray[np.bool_]) -> int:
    """The number of signs in a line: pieces as wide as letters, most of them as high as the line, near one another."""
    height = len(line)
    best = run = 0
    end = -height
    for left, right in _spans(np.asarray(line.any(axis=0))):
        piece = line[:, left:right]
        tall = int(np.ptp(np.flatnonzero(piece.any(axis=1)))) + 1
        if left - end > 1.5 * height:
            run = 0
        end = right
        if tall < 0.55 * height or not 0.08 <= piece.mean() <= 0.95:
            continue
        run += max(1, round((right - left) / (0.75 * height))) if right - left <= 8 * height else 0
        best = max(best, run)
    return best


def _spans(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The starts and ends of the runs that are marked."""
    return np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]]).astype(np.int8))).reshape(-1, 2)


def _where(down: float, across: float) -> str:
    """A place in words, from its shares of the height and the width."""
    rows, columns = (min(2, int(share * 3)) for share in (down, across))
    return f"at the {('top', 'middle', 'bottom')[rows]} {('left', 'centre', 'right')[columns]}"
