"""The dataset contract: an index of images, shards of master pixels, and the views that are derived from them once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.shared.contracts import decode, encode, fingerprint, read_record
from components.shared.store import Store
from components.shared.tables import INDEX, SPLIT, write_table
from components.shared.views import VIEW_ALGORITHM, Pixels, view

__all__ = [
    "INDEX",
    "SHARD",
    "SPLIT",
    "Data",
    "ShardWriter",
    "Views",
    "pixel_digest",
    "read_shard",
    "write_shard",
    "write_table",
]

SHARD = pa.schema([("height", pa.int32()), ("width", pa.int32()), ("bits", pa.int32()), ("pixels", pa.large_binary())])


class ShardWriter:
    """Writes masters, each in its own size, one after the other, to a file that can be mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._sink = pa.OSFile(str(path), "wb")
        self._file = pa.ipc.new_file(self._sink, SHARD)

    def add(self, pixels: Pixels) -> int:
        """Write one master; gives its row. None is kept in memory."""
        content = np.ascontiguousarray(pixels)
        ends = np.array([0, pixels.nbytes], np.int64)
        stored = pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(content)])
        shape = (*pixels.shape[:2], pixels.dtype.itemsize * 8)
        columns = [pa.array([number], pa.int32()) for number in shape]
        self._file.write_batch(pa.record_batch([*columns, stored], schema=SHARD))
        self.rows += 1
        return self.rows - 1

    def close(self) -> None:
        """End the file; without this it cannot be read."""
        self._file.close()
        self._sink.close()


def pixel_digest(pixels: Pixels) -> str:
    """The digest of an image as pixels, whatever file it came in."""
    content = hashlib.sha256(f"{pixels.dtype.itemsize} {pixels.shape}".encode())
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()


def write_shard(images: Iterable[Pixels], path: Path) -> None:
    """Write masters, each in its own size, to one file that can be mapped into memory."""
    writer = ShardWriter(path)
    for pixels in images:
        writer.add(pixels)
    writer.close()


def read_shard(path: Path) -> list[Pixels]:
    """The masters of a shard, mapped, not copied: gray [H, W], or colours [H, W, 3]."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    masters: list[Pixels] = []
    for number in range(file.num_record_batches):
        batch = file.get_batch(number)
        height, width, bits = (batch.column(name)[0].as_py() for name in ("height", "width", "bits"))
        flat = np.frombuffer(batch.column("pixels").buffers()[2], np.uint8 if bits == 8 else np.uint16)
        gray = len(flat) == height * width
        masters.append(flat.reshape((height, width) if gray else (height, width, 3)))
    return masters


@dataclass(frozen=True)
class Data:
    """A dataset opened for reading: its description and index, with the store that holds its shards."""

    about: dict[str, Any]
    index: pa.Table
    store: Store

    @staticmethod
    def open(folder: Path, store: Store) -> Data:
        """The dataset in this directory."""
        about = read_record("dataset", folder / "dataset.json")
        return Data(about, pq.read_table(folder / "index.parquet", schema=INDEX), store)

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return list(self.about["classes"])

    def column(self, name: str) -> NDArray[Any]:
        """One column of the index."""
        return np.asarray(self.index[name].to_numpy(zero_copy_only=False))

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each image; a ValueError where images have any number of findings instead."""
        if self.about["task"] != "classification":
            raise ValueError(
                f"The data set's task is {self.about['task']}, and one class an image is needed here. Choose one "
                "finding with ingest_options label_map."
            )
        return np.asarray(self.index["labels"].combine_chunks().flatten().to_numpy(), np.int64)

    def rows(self, splits: Path, *sides: str) -> NDArray[np.int64]:
        """The positions, in the index, of the images on these sides of the split in directory `splits`."""
        table = pq.read_table(splits / "splits.parquet", schema=SPLIT)
        side_of = dict(zip(table["image_id"].to_pylist(), table["side"].to_pylist(), strict=True))
        of_each = [side_of.get(image_id, "") for image_id in self.index["image_id"].to_pylist()]
        return np.flatnonzero(np.isin(of_each, sides)).astype(np.int64)

    def views(self, size: int, fit: str) -> Views:
        """All images as a model of this size sees them; made from the masters where the store has none yet."""
        spec = {"size": size, "fit": fit, "algorithm": VIEW_ALGORITHM}
        with ThreadPoolExecutor(4) as pool:
            arrays = list(pool.map(lambda shard: _view_of(self.store, shard["digest"], spec), self.about["shards"]))
        return Views(arrays, self.column("shard"), self.column("row"))


@dataclass(frozen=True)
class Views:
    """Every image of a dataset in one size: uint8, mapped into memory, a file a shard."""

    arrays: Sequence[NDArray[np.uint8]]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The views [N, size, size] of these rows of the index."""
        batch = np.empty((len(rows), *self.arrays[0].shape[1:]), np.uint8)
        for place, row in enumerate(rows):
            batch[place] = self.arrays[self.shard[row]][self.row[row]]
        return batch


def _view_of(store: Store, shard: str, spec: dict[str, Any]) -> NDArray[np.uint8]:
    name = f"views/{fingerprint([shard, spec])}.json"
    known = store.read(name)
    if known is not None:
        digest = decode("view", known, name)["digest"]
        if store.has(digest):
            return np.asarray(np.load(store.fetch(digest), mmap_mode="r"))
    masters = read_shard(store.fetch(shard))
    shape = (len(masters), spec["size"], spec["size"], *masters[0].shape[2:])
    with store.making() as path:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        for row, pixels in enumerate(masters):
            array[row] = view(pixels, spec["size"], spec["fit"])
        array.flush()
        del array
        blob = store.put_file(path)
    store.write(name, encode("view", {"digest": blob.digest, "shard": shard, "spec": spec}))
    return np.asarray(np.load(store.fetch(blob.digest), mmap_mode="r"))
