"""Trains on the chest X-rays and scores on their official test: every score is a line in bench/ledger.csv, good or bad.

`python -m bench.kermany [--home DIR] [--params kermany|kermany-three] [--seeds 1 2 3] [--set NAME=VALUE …] [--blind]`

The official test is looked at as seldom as can be: what works is found out on validation (`--blind` stops before the
test and writes no line). A home that is kept decodes the images once.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import fcntl
import json
import math
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from bench.batches import data_set
from bench.scans import KERMANY
from components.shared.contracts import Manifest
from components.shared.metric_catalogue import KEY, SUMMARY
from components.shared.privacy.keyed_hash import SYNTHETIC
from components.shared.runtime.work import step
from components.shared.storage.store import Store, open_store

ROOT = Path(__file__).resolve().parents[1]
LEDGER = Path(__file__).parent / "ledger.csv"
COLUMNS = ("date", "commit", "task", "seed", "parameters", *KEY, "epoch_seconds", "images_per_second")
RECIPE: dict[str, Any] = {
    "architecture": "resnet18",
    "image_size": 96,
    "fit": "stretch",
    "epochs": 20,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "clip": 1.0,
    "dropout": 0.0,
    "class_weights": "none",
    "average": 0.998,
    "augmentations": "rotate=20,shift=0.12,zoom=0.3,shear=8,contrast=0.6,gamma=0.8,erase=0.3",
    "precision": "bf16",
    "keep": "last",
    "threads": 1,
}
"""The best on validation of those that were tried; the ledger has what each of them gave on the official test."""


def score(store: Store, inputs: dict[str, Path], model: Path) -> dict[str, float]:
    """The figures of a model on the official test."""
    nothing = store.fetch(store.put_bytes(Manifest().encode()).digest)
    given = {**inputs, "model": model, "champion": nothing}
    done = step("evaluate", store.uri, given, {"precision": "float32"})
    found = json.loads(store.get(done.outputs["report"].files["metrics.json"].digest))["all"]["figures"]
    return {name: figure["value"] for name, figure in found.items()}


def pace(seconds: float, about: dict[str, Any]) -> dict[str, str]:
    """Seconds an epoch with its look at validation, and images learned from a second."""
    epochs, images = len(about["history"]), about["images"]["train"]
    return {"epoch_seconds": f"{seconds / epochs:.1f}", "images_per_second": f"{images * epochs / seconds:.0f}"}


def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "components", "bench/kermany.py", "workflows/params")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def write_down(line: dict[str, Any], found: dict[str, str] | None = None) -> None:
    """Add a line to the ledger; or what was found to the line that stands there already."""
    with LEDGER.open("r+", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another scoring may be at work
        lines = list(csv.DictReader(file))
        if found:
            plain = {name: str(value) for name, value in line.items()}
            place = max(at for at, other in enumerate(lines) if plain.items() <= other.items() and not other["auc"])
            lines[place] |= found
        else:
            lines.append(line)
        file.seek(0)
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        file.truncate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=None)
    parser.add_argument("--params", default="kermany", choices=("kermany", "kermany-three"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--blind", action="store_true", help="stop before the official test")
    asked = parser.parse_args()
    changes = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in asked.set)}
    with tempfile.TemporaryDirectory(prefix="medloop-bench-") as scratch:
        home = (asked.home or Path(scratch)).absolute()
        home.mkdir(parents=True, exist_ok=True)
        options = yaml.safe_load((ROOT / "workflows" / "params" / f"{asked.params}.yaml").read_text())["ingest_options"]
        data_set(KERMANY, home, options)
        store = open_store(str(home / "store"))
        nothing = store.fetch(store.put_bytes(Manifest().encode()).digest)
        split = step("split", store.uri, {"dataset": home / "dataset", "previous": nothing}, {"seed": 7})
        inputs = {"dataset": home / "dataset", "splits": store.fetch(split.outputs["splits"].digest)}
        lines = []
        for seed in asked.seeds:
            parameters = {**RECIPE, **changes, "seed": seed}
            done = step("train", store.uri, inputs, parameters)
            model = done.outputs["model"]
            about = json.loads(store.get(model.files["configs/metadata.json"].digest))["medloop"]
            print(f"seed {seed}: validation AUC {done.values['val_auc']:.4f}, {done.seconds:.0f} s", flush=True)
            if asked.blind:
                continue
            line: dict[str, Any] = {
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "commit": commit(),
                "task": asked.params,
                "seed": seed,
                "parameters": json.dumps({**RECIPE, **changes}, sort_keys=True),
                **pace(done.spent["device_seconds"], about),
            }
            write_down(line)  # before the look, so that none goes without
            found = score(store, inputs, store.fetch(model.digest))
            shown = {name: f"{found.get(name, math.nan):.4f}" for name in KEY}
            write_down(line, shown)
            lines.append(line | shown)
            print({name: lines[-1][name] for name in COLUMNS[5:]}, flush=True)
        for name in SUMMARY if lines else ():
            values = [float(line[name]) for line in lines]
            print(f"{name}: mean {statistics.mean(values):.4f}, {min(values):.4f} to {max(values):.4f}", flush=True)


if __name__ == "__main__":
    os.environ.update(MEDLOOP_HASH_KEY=SYNTHETIC)
    main()
