"""Times training against the same network on tensors in memory, and against a plain torchvision script; kills it, too.

`python -m bench.training [--rounds 3] [--only memory|plain|killed] [--device cpu]`
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from bench.batches import data_set, split
from bench.ingest import told
from bench.scans import KERMANY, make, repeated
from components.shared.contracts import Manifest
from components.shared.datasets.dataset import Data
from components.shared.privacy.keyed_hash import SYNTHETIC
from components.shared.storage.artifacts import lay_out
from components.shared.storage.store import open_store
from components.train import models
from components.train.augmentation import Augmentation
from components.train.interruption import Interruption
from components.train.parameters import TrainParameters
from components.train.split_images import SplitImages
from components.train.training_loop import Training

PLAIN: dict[str, Any] = {
    "epochs": 1,
    "accumulate": 1,
    "learning_rate": 1e-3,
    "backbone_rate": 1.0,
    "warmup": 0.1,
    "weight_decay": 0.02,
    "clip": 5.0,
    "loss": "cross_entropy",
    "focal_gamma": 2.0,
    "label_smoothing": 0.0,
    "class_weights": "balanced",
    "sampling": "each_once",
    "mixup": 0.0,
    "average": 0.0,
    "frozen_epochs": 0,
    "unfreezing": "at_once",
    "patience": 0,
    "keep": "last",
    "seed": 1,
}


class Silent:
    """Watches nothing."""

    def started(self, *_: Any) -> None: ...
    def epoch_started(self) -> None: ...
    def report(self, *_: Any) -> None: ...
    def epoch_finished(self, *_: Any) -> None: ...
    def step(self, *_: Any) -> bool:
        return False

    def before_checkpoint(self) -> float:
        return 0.0


def side_of(home: Path, size: int, count: int) -> SplitImages:
    """The first images of a home's train side."""
    store = open_store(str(home / "store"))
    data = Data.open(home / "data", store)
    lay_out(store, Manifest.decode(split(home).read_bytes(), "splits"), home / "sides", copy=True)
    rows = data.rows(home / "sides", "train")[:count]
    preprocess = {"size": size, "fit": "stretch", "channels": 1, "mean": 0.5, "std": 0.25}
    return SplitImages(data.views(size, "stretch"), rows, data.targets[rows], preprocess)


def ours(
    side: SplitImages, architecture: str, size: int, precision: str, batch: int, device: str, changes: str
) -> float:
    """Images a second of our training: gathered, changed, normalised, learned from."""
    torch.manual_seed(1)
    network = models.build(architecture, 1, side.targets.shape[1], size).to(memory_format=torch.channels_last)
    network = network.to(device)
    parameters = TrainParameters(batch_size=batch, precision=precision, **PLAIN)
    sides = {"train": side, "val": side}
    training = Training(
        network, models.stages(network), sides, "classification", parameters, Augmentation.parse(changes)
    )
    begun = time.perf_counter()
    torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
    training._epoch(Never(), Interruption(), Silent())  # type: ignore[arg-type]  # nothing is kept
    torch.use_deterministic_algorithms(False)  # peers are as fast as they can be
    if device == "cuda":
        torch.cuda.synchronize()
    return len(side) / (time.perf_counter() - begun)


class Never:
    """Keeps no checkpoint."""

    def due(self) -> bool:
        return False


def bare(side: SplitImages, architecture: str, size: int, precision: str, batch: int, device: str) -> float:
    """Images a second of the same network, loss and optimizer on tensors that are in memory, ready to be used."""
    torch.manual_seed(1)
    network = models.build(architecture, 1, side.targets.shape[1], size).to(memory_format=torch.channels_last)
    network = network.to(device).train()
    place = torch.device(device)
    batches = [np.arange(start, min(start + batch, len(side))) for start in range(0, len(side), batch)]
    ready = [
        (side.normalise(images).contiguous(memory_format=torch.channels_last), targets)
        for images, targets in side.batches(batches, place)
    ]
    moving = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss = nn.CrossEntropyLoss()
    kind = {"bf16": torch.bfloat16}.get(precision)
    begun = time.perf_counter()
    for images, targets in ready:
        with torch.autocast(device, kind, enabled=kind is not None):
            lost = loss(network(images)[0].float(), targets)
        torch.autograd.backward(lost)
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        moving.step()
        moving.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    return len(side) / (time.perf_counter() - begun)


def plain(source: Path, size: int, batch: int, count: int, device: str) -> float:
    """Images a second of the script that everyone writes first."""
    changes = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.RandomAffine(15, (0.1, 0.1), (0.85, 1.15), 5),
            transforms.ColorJitter(0.1, 0.25),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    images = torch.utils.data.Subset(ImageFolder(str(source), changes), range(count))
    loader = DataLoader(images, batch, shuffle=True, num_workers=2)
    network = resnet18(num_classes=2).to(device).train()
    moving = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss = nn.CrossEntropyLoss()
    begun = time.perf_counter()
    for pictures, labels in loader:
        lost = loss(network(pictures.to(device)), labels.to(device))
        moving.zero_grad()
        lost.backward()
        moving.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - begun)


def in_turn(name: str, one: Any, two: Any, rounds: int, bar: str) -> None:
    """Both in turn; the first round warms up."""
    pairs = [(one(), two()) for _ in range(rounds + 1)][1:]
    we, they = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"| {name} | {they:,.1f} | {we:,.1f} | {told([a / b for a, b in pairs])} | {bar} |", flush=True)


def killed(home: Path, times: int) -> None:
    """A training that is killed at random moments: is it the same in the end, and how much work was lost?"""
    command = [sys.executable, "-m", "components", "train", "--dataset", str(home / "dataset"), "--splits"]
    command += [str(split(home)), "--architecture=resnet18", "--image-size=64", "--epochs=6", "--batch-size=32"]
    command += ["--precision=bf16", "--average=0.998"]
    environment = {**os.environ, "MEDLOOP_HASH_KEY": SYNTHETIC}
    quiet, restless = home / "undisturbed", home / "killed"
    for place in (quiet, restless):
        subprocess.run(["cp", "-r", str(home / "store"), str(place)], check=True)

    def begin(place: Path) -> subprocess.Popen[str]:
        given = [*command, "--store", str(place), "--model", str(place / "model")]
        return subprocess.Popen(given, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    with begin(quiet) as process:
        _, err = process.communicate()
    whole = spent(quiet, err)
    chance, lost, kills = random.Random(1), 0.0, 0
    while kills < times:
        with begin(restless) as process:
            began = None
            assert process.stderr is not None
            for line in process.stderr:
                if '"progress"' in line:
                    began = time.time()
                    break
            time.sleep(chance.uniform(0, whole / times) if began else 0.0)
            process.send_signal(signal.SIGKILL)
            ended = time.time()
        if process.returncode == 0 or began is None:
            break  # it was over before
        kills += 1
        kept = max((p.stat().st_mtime for p in (restless / "work").glob("*/checkpoint-*")), default=began)
        lost += ended - max(kept, began)
    with begin(restless) as process:
        process.communicate()
    same = (quiet / "model").read_bytes() == (restless / "model").read_bytes()
    print(
        f"killed {kills} times at random in a training of {whole:.0f} s (ResNet-18 at 64 pixels, the default "
        f"interval): the same weights: {same}; lost {lost:.1f} s in all, {lost / kills / whole:.2%} of the training "
        f"each time, {lost / whole:.1%} together; bar < 5 %",
        flush=True,
    )


def spent(place: Path, err: str) -> float:
    """The seconds that a training took, by its own record."""
    finished = [json.loads(line) for line in err.splitlines() if json.loads(line)["event"] == "finished"]
    record = json.loads(next((place / "work").glob(f"{finished[0]['key']}/result.json")).read_bytes())
    return float(record["spent"]["device_seconds"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=640)
    asked = parser.parse_args()
    os.environ.update(MEDLOOP_HASH_KEY=SYNTHETIC)
    with tempfile.TemporaryDirectory(prefix="medloop-bench-") as scratch:
        home = Path(scratch)
        (home / "scans").mkdir()
        scans = repeated(KERMANY, home / "scans", 1) if KERMANY.exists() else make(home / "scans", 2000, 224)
        data_set(scans, home)
        if asked.only in ("", "memory", "plain"):
            print("| training | peer, images/s | ours, images/s | ratio (median, range) | bar |\n|---|---|---|---|---|")
        if asked.only in ("", "memory"):
            for architecture, size, precision, count in (
                ("resnet18", 128, "bf16", asked.images),
                ("resnet18", 128, "float32", asked.images // 2),
                ("small", 96, "float32", 4 * asked.images),
            ):
                side = side_of(home, size, count)
                given = (architecture, size, precision, 32, asked.device)
                bar = "≥ 0.95" if asked.device == "cpu" else "≥ 0.90"
                name = f"{architecture} at {size}², {precision}, against tensors in memory"
                peer = partial(bare, side, *given)
                for kind, changes in (("unchanged", "none"), ("changed", "radiograph")):
                    in_turn(f"{name}, {kind} images", partial(ours, side, *given, changes), peer, asked.rounds, bar)
        if asked.only in ("", "plain"):
            side = side_of(home, 224, asked.images // 2)
            for precision in ("float32", "bf16"):
                in_turn(
                    f"resnet18 at 224², {precision}, against a plain ImageFolder script in float32",
                    partial(ours, side, "resnet18", 224, precision, 32, asked.device, "radiograph"),
                    partial(plain, scans, 224, 32, asked.images // 2, asked.device),
                    asked.rounds,
                    "≥ 2",
                )
        if asked.only in ("", "killed"):
            killed(home, 20)
