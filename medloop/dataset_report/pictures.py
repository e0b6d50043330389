"""Thumbnails and brightness of a data set's masters."""

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
"""Width and height of a thumbnail in pixels."""
QUALITY = 78
LEVELS = 256
"""Number of brightness levels, for any bit depth."""
GRID = 256
"""Approximate number of sampled points per row and column of an image."""
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


class Pictures:
    """The masters in some of a data set's shards, fetched once."""

    def __init__(self, data: Data, shards: Sequence[int]) -> None:
        digests = [data.about["shards"][shard]["digest"] for shard in shards]
        paths = data.store.fetch_all(digests)
        self._masters = {shard: read_shard(path) for shard, path in zip(shards, paths, strict=True)}
        self._shard, self._row = data.column("shard"), data.column("row")

    def master(self, row: int) -> NDArray[Any]:
        """Return the master of a row of the index."""
        return self._masters[int(self._shard[row])][int(self._row[row])]

    def thumbnails(self, rows: Sequence[int]) -> dict[int, str]:
        """Return the thumbnail of each row as a `data:` URL."""
        with ThreadPoolExecutor(4) as pool:
            urls = pool.map(lambda row: as_data_url(view(self.master(row), SIZE, "pad")), rows)
            return dict(zip(rows, urls, strict=True))

    def brightness(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """Return the brightness histogram of each row."""
        return np.stack([brightness(self.master(row)) for row in rows]) if len(rows) else np.zeros((0, LEVELS))


def as_data_url(pixels: NDArray[np.uint8]) -> str:
    """Return a gray or colour image as a `data:` URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"


def brightness(master: NDArray[Any]) -> NDArray[np.float64]:
    """Return the share of an image's points at each of 256 levels; colours are converted to luminance."""
    height, width = master.shape[:2]
    points = master[:: max(1, height // GRID), :: max(1, width // GRID)]
    if points.dtype == np.uint16:
        points = points >> 8
    if points.ndim == 3:
        points = np.rint(points.astype(np.float32) @ LUMINANCE).astype(np.uint8)
    counts = np.bincount(points.ravel(), minlength=LEVELS)
    return np.asarray(counts / counts.sum())
