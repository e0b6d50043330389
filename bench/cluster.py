"""Measures what a cluster sees: how long a package takes to compile, and how much data passes between steps.

`python -m bench.cluster [--images 10000] [--rounds 5]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from bench.loop import clock, medloop
from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.storage.store import Store, open_store

SIDE = 128


def compiling(rounds: int) -> None:
    """The retraining package as a whole command, beside a Python that only imports Kubeflow's compiler."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ours, peer = [], []
        for _ in range(rounds):
            ours.append(clock(medloop("compile", "--output", str(home / "retrain.yaml")), home)[0])
            peer.append(clock([sys.executable, "-c", "import kfp.compiler, kfp.kubernetes"], home)[0])
    print(f"compile the retrain package: {told(ours)}; bar < 3 s; only importing kfp's compiler: {told(peer)}")


def told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def scans(folder: Path, count: int) -> None:
    """That many gray images in two classes, two of each patient: soft noise, with a bright spot where one is ill."""
    chance = np.random.default_rng(7)
    for name in ("NORMAL", "PNEUMONIA"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        patient = number // 2
        ill = patient % 2 == 1
        pixels = chance.integers(60, 120, (SIDE, SIDE), dtype=np.uint8)
        if ill:
            y, x = chance.integers(20, SIDE - 40, 2)
            pixels[y : y + 20, x : x + 20] += 90
        image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(2))
        image.save(folder / ("PNEUMONIA" if ill else "NORMAL") / f"person{patient:05d}_{number % 2 + 1}.png")


def moving(count: int) -> None:
    """What Kubeflow moves between the steps of a whole run, beside the same arrows carrying what they stand for."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        scans(home / "scans", count)
        command = [
            "run",
            "--source",
            str(home / "scans"),
            "--params",
            "workflows/params/smoke.yaml",
            "--set",
            "epochs=1",
        ]
        seconds, printed = clock(medloop(*command, "--json"), home)
        run = json.loads(printed)
        store = open_store(str(home / "store"))
        moved = sum(arrow(store, digest)[0] for digest in arrows(run))
        whole = sum(arrow(store, digest)[1] for digest in arrows(run))
        merge = next(step for step in run["stages"] if step["stage"] == "merge")
        dataset = arrow(store, merge["outputs"]["dataset"])
        print(
            f"a run on {count:,} images of {SIDE} × {SIDE} ({run['outcome']}, {seconds:.0f} s): Kubeflow moves "
            f"{moved:,} bytes between its {len(run['stages'])} steps ({len(arrows(run))} arrows); the data set is "
            f"{dataset[1]:,} bytes, and the same arrows with all they stand for {whole:,}: {moved / dataset[1]:.4%} of "
            f"the data set, {moved / whole:.4%} of the arrows; bar < 1 %"
        )


def arrows(run: dict[str, Any]) -> list[str]:
    """The artifact on each arrow of a run: every output goes up once, every input comes down once."""
    return [digest for step in run["stages"] for side in ("inputs", "outputs") for digest in step[side].values()]


def arrow(store: Store, digest: str) -> tuple[int, int]:
    """The bytes of an artifact as it is passed (a manifest), and of all that it names, shards of pixels included."""
    data = store.get(digest)
    manifest = Manifest.decode(data, digest)
    whole = manifest.bytes
    if about := manifest.files.get("dataset.json"):
        shards = contracts.decode("dataset", store.get(about.digest), "dataset.json")["shards"]
        whole += sum(store.fetch(shard["digest"]).stat().st_size for shard in shards)
    return len(data), whole


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    compiling(asked.rounds)
    moving(asked.images)
