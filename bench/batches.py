"""Times shuffled batches of views against torchvision's ImageFolder and DataLoader, and how long training waits.

`python -m bench.batches [--rounds 3]`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Grayscale, PILToTensor, Resize

from bench.ingest import ingest, merge, quarters, told, watched
from bench.loop import clock
from bench.scans import KERMANY, make, repeated
from components.shared.contracts import Manifest
from components.shared.datasets.dataset import Data, Views
from components.shared.privacy.keyed_hash import SYNTHETIC
from components.shared.runtime.work import step
from components.shared.storage.artifacts import lay_out
from components.shared.storage.store import open_store

SIZE, BATCH = 224, 64


def data_set(source: Path, home: Path, options: dict[str, Any] | None = None) -> Data:
    """The data set of a source."""
    given = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (options or {}).items()}
    ingest(source, home, home / "store", **given)
    merge(home, home / "store")
    store = open_store(str(home / "store"))
    lay_out(store, Manifest.decode((home / "dataset").read_bytes(), "dataset"), home / "data")
    return Data.open(home / "data", store)


def ours(views: Views) -> Iterator[Any]:
    order = np.random.default_rng().permutation(len(views.row))
    for start in range(0, len(order), BATCH):
        yield torch.from_numpy(views[order[start : start + BATCH]])


def theirs(source: Path) -> Iterator[Any]:
    change = Compose([Grayscale(), Resize((SIZE, SIZE)), PILToTensor()])
    yield from DataLoader(ImageFolder(str(source), change), BATCH, shuffle=True, num_workers=2)


def rate(batches: Iterator[Any], count: int) -> float:
    """Images a second over one pass."""
    begun = time.perf_counter()
    seen = sum(len(batch) if isinstance(batch, torch.Tensor) else len(batch[0]) for batch in batches)
    assert seen == count
    return count / (time.perf_counter() - begun)


def forget(folder: Path) -> None:
    """Have the system drop what it holds of these files in memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(name: str, source: Path, home: Path, rounds: int, bar: str) -> None:
    data = data_set(source, home)
    count = len(data.index)
    data.views(SIZE, "pad")  # made once
    cold, warm = [], []
    for _ in range(rounds):
        forget(home)
        forget(source)
        peer = rate(theirs(source), count)
        views = data.views(SIZE, "pad")
        cold.append((rate(ours(views), count), peer))
        peer = rate(theirs(source), count)
        rate(ours(views), count)
        warm.append((rate(ours(views), count), peer))
    for state, pairs in (("cold", cold), ("warm", warm)):
        we, they = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = told([we / they for we, they in pairs], 0)
        print(
            f"| {name}, {state} | {they:,.0f} | {we:,.0f} | {ratio} × | {bar if state == 'warm' else '–'} |", flush=True
        )


def waiting(home: Path) -> None:
    """The share of training's time in which the fastest network waits for its images, in real epochs of it."""
    from components.train.split_images import SplitImages
    from components.train.training_loop import Training

    spent = {"waiting": 0.0, "learning": 0.0, "all": 0.0}
    batches, epoch = SplitImages.batches, Training._epoch

    def timed_batches(side: SplitImages, *arguments: Any) -> Iterator[Any]:
        coming = batches(side, *arguments)
        while True:
            begun = time.perf_counter()
            batch = next(coming, None)
            spent["all"] += time.perf_counter() - begun
            if batch is None:
                return
            yield batch

    def timed_epoch(training: Training, *arguments: Any) -> None:
        before, begun = spent["all"], time.perf_counter()
        epoch(training, *arguments)
        spent["learning"] += time.perf_counter() - begun
        spent["waiting"] += spent["all"] - before  # what validation waited is no part of it

    with mock.patch.object(Training, "_epoch", timed_epoch), mock.patch.object(SplitImages, "batches", timed_batches):
        shares = []
        for size, batch in ((48, 64), (96, 16), (224, 32)):
            spent.update(waiting=0.0, learning=0.0)
            train(home, epochs=2, image_size=size, batch_size=batch)
            shares.append(f"{size} pixels, {batch} images a step: {spent['waiting'] / spent['learning']:.2%}")
    print(f"share of training spent waiting for images, the small network: {'; '.join(shares)}; bar < 2 %", flush=True)


def train(home: Path, **parameters: Any) -> None:
    """Train on the data set of a home, in this process."""
    store = open_store(str(home / "store"))
    inputs = {"dataset": home / "dataset", "splits": split(home)}
    step("train", store.uri, inputs, parameters)


def split(home: Path) -> Path:
    store = open_store(str(home / "store"))
    nothing = store.fetch(store.put_bytes(Manifest().encode()).digest)
    done = step("split", store.uri, {"dataset": home / "dataset", "previous": nothing}, {})
    return store.fetch(done.outputs["splits"].digest)


def memory(home: Path, count: int) -> None:
    """The anonymous memory of a training on many images, above what its imports take."""
    code = "import components.train.train\nprint(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])"
    imports = int(clock([sys.executable, "-c", code], home)[1]) / 1024
    data_set(make(home / "scans", count, 96), home)
    command = [sys.executable, "-m", "components", "train", "--store", str(home / "store"), "--dataset"]
    command += [str(home / "dataset"), "--splits", str(split(home)), "--model", str(home / "model")]
    with watched() as samples:
        clock([*command, "--epochs=1", "--image-size=48", "--batch-size=64"], home, MEDLOOP_HASH_KEY=SYNTHETIC)
    print(f"training on {count:,} images: {quarters(samples, 'the step', imports)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100_000, help="for the memory of training")
    asked = parser.parse_args()
    os.environ.update(MEDLOOP_HASH_KEY=SYNTHETIC, MLFLOW_TRACKING_URI=f"sqlite:///{tempfile.gettempdir()}/bench.db")
    print("| files | ImageFolder, images/s | ours, images/s | ratio (median, range) | bar |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="medloop-bench-") as scratch:
        place = Path(scratch) / "small"
        (place / "scans").mkdir(parents=True)
        small = repeated(KERMANY, place / "scans", 1) if KERMANY.exists() else make(place / "scans", 5000, SIZE)
        compare(f"{SIZE}²", small, place, asked.rounds, "≥ 40 ×")
        waiting(place)
        place = Path(scratch) / "large"
        compare("2,000²", make(place / "scans", 1500, 2000), place, asked.rounds, "≥ 300 ×")
        memory(Path(scratch) / "many", asked.images)
