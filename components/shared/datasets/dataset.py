"""The dataset contract: an index of images, shards of master pixels, and the views that are derived from them once."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.shared.contracts import decode, encode, fingerprint, read_record
from components.shared.datasets.parquet_tables import INDEX, SPLIT, read_table, write_table
from components.shared.errors import RefusedError
from components.shared.imaging.views import VIEW_ALGORITHM, Pixels, view, view_parameters
from components.shared.ledger import stage_keys

if TYPE_CHECKING:
    from components.shared.storage.store import Store

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


BATCH = 2**19
"""Small masters are written together, until they have so many bytes."""


class ShardWriter:
    """Writes masters, each in its own size, one after the other, to a file that can be mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._sink = _Sink(path)
        self._file = pa.ipc.new_file(pa.PythonFile(self._sink, "w"), SHARD)
        self._waiting: list[Pixels] = []
        self._bytes = 0

    def add(self, pixels: Pixels) -> int:
        """Write one master; gives its row. Few are kept in memory."""
        if self._waiting and self._waiting[0].dtype != pixels.dtype:
            self._write()
        self._waiting.append(pixels)
        self._bytes += pixels.nbytes
        self.rows += 1
        if self._bytes >= BATCH:
            self._write()
        return self.rows - 1

    def close(self) -> str:
        """End the file, which cannot be read before; gives its digest."""
        self._write()
        self._file.close()
        self._sink.close()
        return self._sink.digest.hexdigest()

    def abandon(self) -> None:
        """Let go of a file that may not be ended."""
        self._sink.close()

    def _write(self) -> None:
        masters, self._waiting, self._bytes = self._waiting, [], 0
        if not masters:
            return
        flat = [np.ascontiguousarray(each).ravel() for each in masters]
        ends = np.cumsum([0, *(each.nbytes for each in flat)], dtype=np.int64)
        content = flat[0] if len(flat) == 1 else np.concatenate(flat)
        stored = pa.Array.from_buffers(pa.large_binary(), len(flat), [None, pa.py_buffer(ends), pa.py_buffer(content)])
        shapes = np.array([(*each.shape[:2], each.dtype.itemsize * 8) for each in masters], np.int32)
        columns = [pa.array(np.ascontiguousarray(column)) for column in shapes.T]
        self._file.write_batch(pa.record_batch([*columns, stored], schema=SHARD))


class _Sink:
    """A file to write, which takes the digest of its content on the way."""

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._file = path.open("wb", buffering=0)
        self._place = 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, part: Any) -> int:
        content = memoryview(part)
        self.digest.update(content)
        done = 0
        while done < content.nbytes:
            done += self._file.write(content[done:])
        self._place += done
        return done

    def tell(self) -> int:
        return self._place

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self._file.close()


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
        shapes = zip(*(batch.column(name).to_pylist() for name in ("height", "width", "bits")), strict=True)
        _, ends, content = batch.column("pixels").buffers()
        places = np.frombuffer(ends, np.int64).tolist()
        for (height, width, bits), first, last in zip(shapes, places, places[1:], strict=False):
            flat = np.frombuffer(content[first:last], np.uint8 if bits == 8 else np.uint16)
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
        return Data(about, read_table(folder / "index.parquet", schema=INDEX), store)

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
            raise RefusedError(
                f"The data set's task is {self.about['task']}, and one class an image is needed here. Choose one "
                "finding with ingest_options label_map."
            )
        return np.asarray(self.index["labels"].combine_chunks().flatten().to_numpy(), np.int64)

    @property
    def targets(self) -> NDArray[np.float32]:
        """For each image and class whether it is of it, or shows it: [N, classes] of 0 and 1."""
        found = np.zeros((self.index.num_rows, len(self.classes)), np.float32)
        lists = self.index["labels"].combine_chunks()
        counts = np.diff(lists.offsets.to_numpy())
        found[np.repeat(np.arange(len(counts)), counts), lists.flatten().to_numpy()] = 1
        return found

    def rows(self, splits: Path, *sides: str) -> NDArray[np.int64]:
        """The positions, in the index, of the images on these sides of the split in directory `splits`."""
        table = read_table(splits / "splits.parquet", schema=SPLIT)
        side_of = dict(zip(table["image_id"].to_pylist(), table["side"].to_pylist(), strict=True))
        of_each = [side_of.get(image_id, "") for image_id in self.index["image_id"].to_pylist()]
        return np.flatnonzero(np.isin(of_each, sides)).astype(np.int64)

    def views(self, size: int, fit: str, crop: float = 0.0, shades: str = "given") -> Views:
        """All images as a model of this size sees them; made from the masters where the store has none yet."""
        spec = {"size": size, "fit": fit, "algorithm": VIEW_ALGORITHM} | ({"crop": crop} if crop else {})
        spec |= {"shades": shades} if shades != "given" else {}  # what is usual is left out, as it was before
        with ThreadPoolExecutor(4) as pool:
            arrays = list(pool.map(lambda shard: _view_of(self.store, shard["digest"], spec), self.about["shards"]))
        return Views(arrays, self.column("shard"), self.column("row"))

    def fresh_views(self, rows: NDArray[np.int64], size: int, fit: str, crop: float, shades: str) -> Views:
        """These rows alone as a model of this size sees them, made from the masters now and kept for this process.

        What judges a model must not rest on views that the store keeps: whoever trained it may have written them.
        """
        shards, places = self.column("shard"), self.column("row")
        channels = () if self.about["decoding"]["colour"] != "rgb" else (3,)
        with tempfile.TemporaryFile(prefix="medloop-views-") as file:
            made = np.memmap(file, np.uint8, "w+", shape=(len(rows), size, size, *channels))

        def fill(shard: int) -> None:
            masters = read_shard(self.store.fetch(self.about["shards"][shard]["digest"]))
            for place in np.flatnonzero(shards[rows] == shard):
                made[place] = view(masters[places[rows[place]]], size, fit, crop, shades)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fill, np.unique(shards[rows]).tolist()))
        where = np.full(len(shards), -1, np.int32)
        where[rows] = np.arange(len(rows))
        return Views([made], np.zeros(len(shards), np.int32), where)


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
    known = _known_view(store, name, shard, spec)
    if known is not None:
        return known
    masters = read_shard(store.fetch(shard))
    shape = (len(masters), spec["size"], spec["size"], *masters[0].shape[2:])
    with store.making() as path:
        array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        for row, pixels in enumerate(masters):
            array[row] = view(pixels, *view_parameters(spec))
        array.flush()
        del array
        blob = store.put_file(path)
    key, record = stage_keys.held(), {"digest": blob.digest, "shard": shard, "spec": spec}
    store.write(name, encode("view", key.sign("view", record) if key else record))
    return np.asarray(np.load(store.fetch(blob.digest), mmap_mode="r"))


def _known_view(store: Store, name: str, shard: str, spec: dict[str, Any]) -> NDArray[np.uint8] | None:
    """The view of a shard that was made before, or None; where public keys are set, only one that a stage signed."""
    data, trusted = store.read(name), stage_keys.trusted()
    try:
        if data is None:
            return None
        record = stage_keys.check(trusted, "view", data, name) if trusted else decode("view", data, name)
        if (record["shard"], record["spec"]) != (shard, spec) or not store.has(record["digest"]):
            return None
        return np.asarray(np.load(store.fetch(record["digest"]), mmap_mode="r", allow_pickle=False))
    except (PermissionError, ValueError, KeyError):
        return None  # it is made anew
