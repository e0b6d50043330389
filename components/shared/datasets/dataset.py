"""Read and write data sets: an index of images, shards of masters, and the views made from them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.shared.contracts import decode, encode, fingerprint, read_record
from components.shared.datasets.parquet_tables import INDEX, SPLIT, read_table
from components.shared.errors import RefusedError
from components.shared.imaging.views import VIEW_ALGORITHM, Pixels, view, view_parameters
from components.shared.ledger import stage_signing

if TYPE_CHECKING:
    from components.shared.storage.store import Store

SHARD = pa.schema([("height", pa.int32()), ("width", pa.int32()), ("bits", pa.int32()), ("pixels", pa.large_binary())])

BATCH_BYTES = 2**19
"""Number of bytes up to which small masters are written together."""


class ShardWriter:
    """Writes masters of any sizes to a file that can be mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._sink = _Sink(path)
        self._file = pa.ipc.new_file(pa.PythonFile(self._sink, "w"), SHARD)
        self._pending: list[Pixels] = []
        self._bytes = 0

    def add(self, pixels: Pixels) -> int:
        """Write one master and return its row."""
        if self._pending and self._pending[0].dtype != pixels.dtype:
            self._write()
        self._pending.append(pixels)
        self._bytes += pixels.nbytes
        self.rows += 1
        if self._bytes >= BATCH_BYTES:
            self._write()
        return self.rows - 1

    def close(self) -> str:
        """Finish the file, which is unreadable before, and return its digest."""
        self._write()
        self._file.close()
        self._sink.close()
        return self._sink.digest.hexdigest()

    def abandon(self) -> None:
        """Close the file without finishing it."""
        self._sink.close()

    def _write(self) -> None:
        masters, self._pending, self._bytes = self._pending, [], 0
        if not masters:
            return
        values = [np.ascontiguousarray(array).ravel() for array in masters]
        ends = np.cumsum([0, *(array.nbytes for array in values)], dtype=np.int64)
        content = values[0] if len(values) == 1 else np.concatenate(values)
        stored = pa.Array.from_buffers(
            pa.large_binary(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(content)]
        )
        shapes = np.array([(*array.shape[:2], array.dtype.itemsize * 8) for array in masters], np.int32)
        columns = [pa.array(np.ascontiguousarray(column)) for column in shapes.T]
        self._file.write_batch(pa.record_batch([*columns, stored], schema=SHARD))


class _Sink:
    """A writable file that computes the digest of its content."""

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._file = path.open("wb", buffering=0)
        self._position = 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, chunk: Any) -> int:
        content = memoryview(chunk)
        self.digest.update(content)
        done = 0
        while done < content.nbytes:
            done += self._file.write(content[done:])
        self._position += done
        return done

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Do nothing: the file is unbuffered."""

    def close(self) -> None:
        self._file.close()


def pixel_digest(pixels: Pixels) -> str:
    """Return the digest of an image's pixels, which does not depend on its file."""
    content = hashlib.sha256(f"{pixels.dtype.itemsize} {pixels.shape}".encode())
    content.update(np.ascontiguousarray(pixels).data)
    return content.hexdigest()


def read_shard(path: Path) -> list[Pixels]:
    """Return the masters of a shard, [H, W] or [H, W, 3], without a copy."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    masters: list[Pixels] = []
    for number in range(file.num_record_batches):
        batch = file.get_batch(number)
        shapes = zip(*(batch.column(name).to_pylist() for name in ("height", "width", "bits")), strict=True)
        _, ends, content = batch.column("pixels").buffers()
        offsets = np.frombuffer(ends, np.int64).tolist()
        for (height, width, bits), first, last in zip(shapes, offsets, offsets[1:], strict=False):
            values = np.frombuffer(content[first:last], np.uint8 if bits == 8 else np.uint16)
            gray = len(values) == height * width
            masters.append(values.reshape((height, width) if gray else (height, width, 3)))
    return masters


@dataclass(frozen=True)
class Data:
    """A data set: its record and index, with the store that contains its shards."""

    about: dict[str, Any]
    index: pa.Table
    store: Store

    @staticmethod
    def open(folder: Path, store: Store) -> Data:
        """Open the data set in this directory."""
        about = read_record("dataset", folder / "dataset.json")
        return Data(about, read_table(folder / "index.parquet", schema=INDEX), store)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return list(self.about["classes"])

    def column(self, name: str) -> NDArray[Any]:
        """Return one column of the index."""
        return np.asarray(self.index[name].to_numpy(zero_copy_only=False))

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image; raises a ValueError if the task is multilabel."""
        if self.about["task"] != "classification":
            raise RefusedError(
                f"The data set's task is {self.about['task']}, but one class per image is needed here. Select one "
                "finding with ingest_options label_map."
            )
        return np.asarray(self.index["labels"].combine_chunks().flatten().to_numpy(), np.int64)

    @property
    def targets(self) -> NDArray[np.float32]:
        """Array [N, classes] with 1 for each class or finding of an image, else 0."""
        targets = np.zeros((self.index.num_rows, len(self.classes)), np.float32)
        lists = self.index["labels"].combine_chunks()
        counts = np.diff(lists.offsets.to_numpy())
        targets[np.repeat(np.arange(len(counts)), counts), lists.flatten().to_numpy()] = 1
        return targets

    def rows(self, splits: Path, *split_names: str) -> NDArray[np.int64]:
        """Return the positions of images in splits such as "train" and "val"."""
        table = read_table(splits / "splits.parquet", schema=SPLIT)
        split_of_image = dict(zip(table["image_id"].to_pylist(), table["side"].to_pylist(), strict=True))
        split_of_row = [split_of_image.get(image_id, "") for image_id in self.index["image_id"].to_pylist()]
        return np.flatnonzero(np.isin(split_of_row, split_names)).astype(np.int64)

    def views(self, size: int, fit: str, crop: float = 0.0, shades: str = "given") -> Views:
        """Return the views of all images, and store those that are missing."""
        spec = {"size": size, "fit": fit, "algorithm": VIEW_ALGORITHM} | ({"crop": crop} if crop else {})
        spec |= {"shades": shades} if shades != "given" else {}  # defaults are left out, so that old views are found
        with ThreadPoolExecutor(4) as pool:
            arrays = list(pool.map(lambda shard: _load_view(self.store, shard["digest"], spec), self.about["shards"]))
        return Views(arrays, self.column("shard"), self.column("row"))

    def fresh_views(self, rows: NDArray[np.int64], size: int, fit: str, crop: float, shades: str) -> Views:
        """Make the views of these rows from the masters, for this process only.

        Evaluation must not use views from the store: the party that trained the model may have written them.
        """
        shards, offsets = self.column("shard"), self.column("row")
        channels = () if self.about["decoding"]["colour"] != "rgb" else (3,)
        with tempfile.TemporaryFile(prefix="medloop-views-") as file:
            views = np.memmap(file, np.uint8, "w+", shape=(len(rows), size, size, *channels))

        def fill(shard: int) -> None:
            masters = read_shard(self.store.fetch(self.about["shards"][shard]["digest"]))
            for position in np.flatnonzero(shards[rows] == shard):
                views[position] = view(masters[offsets[rows[position]]], size, fit, crop, shades)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fill, np.unique(shards[rows]).tolist()))
        row_of_image = np.full(len(shards), -1, np.int32)
        row_of_image[rows] = np.arange(len(rows))
        return Views([views], np.zeros(len(shards), np.int32), row_of_image)


@dataclass(frozen=True)
class Views:
    """The views of all images in one size, one memory-mapped array per shard."""

    arrays: Sequence[NDArray[np.uint8]]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the views [N, size, size] of these rows of the index."""
        batch = np.empty((len(rows), *self.arrays[0].shape[1:]), np.uint8)
        for position, row in enumerate(rows):
            batch[position] = self.arrays[self.shard[row]][self.row[row]]
        return batch


def _load_view(store: Store, shard: str, spec: dict[str, Any]) -> NDArray[np.uint8]:
    name = f"views/{fingerprint([shard, spec])}.json"
    stored_view = _read_view(store, name, shard, spec)
    if stored_view is not None:
        return stored_view
    masters = read_shard(store.fetch(shard))
    shape = (len(masters), spec["size"], spec["size"], *masters[0].shape[2:])
    with store.making() as path:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        for row, pixels in enumerate(masters):
            array[row] = view(pixels, *view_parameters(spec))
        array.flush()
        del array
        blob = store.put_file(path)
    key, record = stage_signing.held(), {"digest": blob.digest, "shard": shard, "spec": spec}
    store.write(name, encode("view", key.sign("view", record) if key else record))
    return np.asarray(np.load(store.fetch(blob.digest), mmap_mode="r"))


def _read_view(store: Store, name: str, shard: str, spec: dict[str, Any]) -> NDArray[np.uint8] | None:
    """Return a shard's stored view; None if it is missing, damaged or unsigned."""
    data, trusted = store.read(name), stage_signing.trusted()
    try:
        if data is None:
            return None
        record = stage_signing.check(trusted, "view", data, name) if trusted else decode("view", data, name)
        if (record["shard"], record["spec"]) != (shard, spec) or not store.has(record["digest"]):
            return None
        return np.asarray(np.load(store.fetch(record["digest"]), mmap_mode="r", allow_pickle=False))
    except (PermissionError, ValueError, KeyError):
        return None  # invalid: make the view again
