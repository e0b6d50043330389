"""Pictures of a data set's masters, small enough to stand in a page, and how bright they are."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.shared.datasets.dataset import Data, read_shard
from components.shared.imaging.views import view

SIZE = 128
"""The side of a picture, in pixels."""
QUALITY = 78
LEVELS = 256
"""Brightness is counted in so many levels, whatever the bits."""
GRID = 256
"""About how many points of each side of an image are measured."""
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


class Pictures:
    """The masters in some of a data set's shards, fetched once."""

    def __init__(self, data: Data, shards: Sequence[int]) -> None:
        digests = [data.about["shards"][shard]["digest"] for shard in shards]
        paths = data.store.fetch_all(digests)
        self._masters = {shard: read_shard(path) for shard, path in zip(shards, paths, strict=True)}
        self._shard, self._row = data.column("shard"), data.column("row")

    def master(self, row: int) -> NDArray[Any]:
        """The master of a row of the index."""
        return self._masters[int(self._shard[row])][int(self._row[row])]

    def thumbnails(self, rows: Sequence[int]) -> dict[int, str]:
        """Each row's picture, as an address that holds it."""
        with ThreadPoolExecutor(4) as pool:
            return dict(zip(rows, pool.map(self._thumbnail, rows), strict=True))

    def _thumbnail(self, row: int) -> str:
        return as_address(view(self.master(row), SIZE, "pad"))

    def brightness(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """For each row the share of its points that have each of 256 levels."""
        return np.stack([brightness(self.master(row)) for row in rows]) if len(rows) else np.zeros((0, LEVELS))


def as_address(pixels: NDArray[np.uint8]) -> str:
    """A gray or colour picture as a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"


def brightness(master: NDArray[Any]) -> NDArray[np.float64]:
    """The share of an image's points that have each of 256 levels; colours count by their luminance."""
    height, width = master.shape[:2]
    points = master[:: max(1, height // GRID), :: max(1, width // GRID)]
    if points.dtype == np.uint16:
        points = points >> 8
    if points.ndim == 3:
        points = np.rint(points.astype(np.float32) @ LUMINANCE).astype(np.uint8)
    counts = np.bincount(points.ravel(), minlength=LEVELS)
    return np.asarray(counts / counts.sum())
