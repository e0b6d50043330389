"""Columns of a table as numbers, so that a hundred thousand rows are handled at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Codes = NDArray[np.int64]

SIDES = ("test", "val", "train", "")
"""The sides, the strictest first: where two claim the same thing, the first wins. The last is no side at all."""
TEST, VAL, TRAIN, NONE = range(4)


def positions(values: pa.ChunkedArray, among: pa.Array) -> Codes:
    """The position of each value among others, or -1."""
    found = pc.index_in(values, value_set=among).fill_null(-1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def distinct(values: pa.ChunkedArray) -> pa.Array:
    """The distinct values, sorted, so that they do not depend on the order in which they came."""
    unique = pc.unique(values)
    return unique.take(pc.sort_indices(unique))


def side_codes(values: pa.ChunkedArray) -> Codes:
    """Sides as numbers."""
    return positions(values, pa.array(SIDES))


def named(codes: Codes, names: tuple[str, ...] = SIDES) -> pa.Array:
    """Numbers as the names they stand for."""
    return pa.array(names).take(pa.array(codes))


def least(of: Codes, values: Codes, number: int, otherwise: int) -> Codes:
    """The least value in each of `number` groups; `of` is the group of each value, -1 for none."""
    found = np.full(number, otherwise, np.int64)
    np.minimum.at(found, of[of >= 0], values[of >= 0])
    return found


def once(values: Codes) -> Codes:
    """The distinct numbers, sorted; much faster here than numpy's own."""
    ordered = np.sort(values)
    return np.asarray(ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]], np.int64)
