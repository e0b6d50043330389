"""Compare the readings in a table with a run's predictions, and write the page of the reader study."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.shared.contracts import Manifest
from components.shared.datasets import parquet_tables
from components.shared.errors import RefusedError, UsageError
from components.shared.privacy import keyed_hash
from components.shared.statistics.bootstrapped_metrics import Predictions
from components.shared.statistics.curves import curves
from components.shared.storage.store import Store
from medloop.reader_study.page import page
from medloop.reader_study.study_figures import LockedTest, Readings, study
from medloop.reader_study.table import ImageId, read_table
from medloop.runner import explain
from medloop.runner.run import Run
from medloop.settings import Settings, hash_key

TABLE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Comparison:
    """Figures of a reader study, and the paths of its page and record."""

    figures: dict[str, Any]
    page: Path
    record: Path


def compare_readers(
    settings: Settings, store: Store, run: Run, table: Path, positive: str, cut: float | None
) -> Comparison:
    """Compare the readings in a table with the run's model, and write page and figures into the run's folder.

    The store does not change: the study is not part of the decision.
    """
    locked = _locked_test(store, run)
    index = _positive(positive, locked.classes)
    if table.stat().st_size > TABLE_BYTES:
        raise RefusedError(
            f"{table} has {table.stat().st_size:,} bytes; a readers' table must have at most "
            f"{TABLE_BYTES // 2**20} MiB."
        )
    rows = read_table(
        table.read_bytes(),
        locked.classes,
        {image: number for number, image in enumerate(locked.image_ids)},
        _image_id(settings, store, run),
        1 if index is None else index,
        _cut(cut, locked.classes),
    )
    readings = Readings.of(rows, locked)
    figures = {"run": run.id, **study(readings, locked, index)}
    scored = Predictions(locked.labels, locked.predicted, locked.probabilities, locked.patients).subset(readings.seen)
    curve = None if index is None else curves(scored, index, locked.confidence)["roc"]
    folder = settings.runs / run.id
    folder.mkdir(parents=True, exist_ok=True)
    result = Comparison(figures, folder / "readers.html", folder / "readers.json")
    record = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False)
    result.record.write_text(f"{record}\n", encoding="utf-8")
    result.page.write_text(page(figures, curve), encoding="utf-8")
    return result


def _locked_test(store: Store, run: Run) -> LockedTest:
    """Return the test images of the run's last evaluation."""
    step = run.last("evaluate")
    metrics = explain.metrics(store, run)
    if step is None or metrics is None:
        raise RefusedError(
            f"The run {run.id} has no test images to compare readers on: its outcome is {run.record['outcome']!r}, and "
            "its model was not evaluated. Name another run."
        )
    if metrics["task"] == "multilabel":
        raise RefusedError(
            f"The model of the run {run.id} predicts {len(metrics['classes'])} findings, several per image, but a "
            "reader's label is a single class. Name the run of a model with one class per image."
        )
    manifest = Manifest.decode(store.get(step["outputs"]["report"]), "report")
    rows = parquet_tables.read_table(pa.BufferReader(store.get(manifest.files["predictions.parquet"].digest)))
    labels, predicted = (rows[name].to_numpy().astype(np.int64) for name in ("label", "predicted"))
    return LockedTest(
        classes=metrics["classes"],
        image_ids=rows["image_id"].to_pylist(),
        labels=labels,
        patients=np.unique(rows["patient_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1],
        predicted=predicted,
        probabilities=np.stack([rows[f"p_{name}"].to_numpy() for name in metrics["classes"]], axis=1),
        confidence=metrics["confidence"],
    )


def _positive(name: str, classes: list[str]) -> int | None:
    """Return the index of the positive class; None if there are more than two classes and no name."""
    if name and name not in classes:
        raise UsageError(f"--positive is {name!r}, which is not a class of the model. Classes: {', '.join(classes)}.")
    if name:
        return classes.index(name)
    return 1 if len(classes) == 2 else None


def _cut(cut: float | None, classes: list[str]) -> float | None:
    if cut is not None and not math.isfinite(cut):
        raise UsageError(f"--cut is {cut:g}; it must be a finite number, the lowest score that counts as positive.")
    if cut is not None and len(classes) > 2:
        raise UsageError(
            f"--cut is {cut:g}, but a score distinguishes only two classes, and the model has {len(classes)}. Use "
            "labels instead."
        )
    return cut


def _image_id(settings: Settings, store: Store, run: Run) -> ImageId | None:
    """Return the function from names to ids with the key of the run's data set; None without a key."""
    text = hash_key(settings, str(run.record["arguments"]["source"]), make=False)
    if not text:
        return None
    key, data = keyed_hash.parse(text), explain.dataset(store, run)
    key_id = data["key_id"] if data else key.id
    state = next((state for state in key.earlier_states() if state.id == key_id), None)
    if state is None:
        raise RefusedError(
            f"The current hash key has the id {key.id}, but the run's data set uses the key {key_id}, so file names "
            f"cannot be matched. Set {keyed_hash.VARIABLE} to that key, or use only the column image_id."
        )
    return state.image
