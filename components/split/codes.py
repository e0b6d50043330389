"""Represent columns of tables as integer codes for fast vectorised computation."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Codes = NDArray[np.int64]

SPLITS = ("test", "val", "train", "")
"""The splits, strictest first: in a conflict the first one takes precedence. The last means that a row is unused."""
TEST, VAL, TRAIN, NONE = range(4)


def positions(values: pa.ChunkedArray, reference: pa.Array) -> Codes:
    """Return the position of each value in `reference`, or -1."""
    indices = pc.index_in(values, value_set=reference).fill_null(-1)
    return np.asarray(indices.to_numpy(zero_copy_only=False), np.int64)


def distinct(values: pa.ChunkedArray) -> pa.Array:
    """Return the distinct values, sorted."""
    unique = pc.unique(values)
    return unique.take(pc.sort_indices(unique))


def split_codes(values: pa.ChunkedArray) -> Codes:
    """Return the codes of split names."""
    return positions(values, pa.array(SPLITS))


def names_of_codes(codes: Codes, names: tuple[str, ...] = SPLITS) -> pa.Array:
    """Return the names of codes."""
    return pa.array(names).take(pa.array(codes))


def group_minimum(groups: Codes, values: Codes, count: int, default: int) -> Codes:
    """Return the minimum value of each of `count` groups; group -1 is none."""
    minimum = np.full(count, default, np.int64)
    np.minimum.at(minimum, groups[groups >= 0], values[groups >= 0])
    return minimum


def sorted_unique(values: Codes) -> Codes:
    """Return the distinct numbers, sorted; much faster than np.unique here."""
    ordered = np.sort(values)
    return np.asarray(ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]], np.int64)
