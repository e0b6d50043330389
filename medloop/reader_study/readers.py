"""Reads a run's predictions and a table of what readers said of the same images, and writes the page of the study."""

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
from components.shared.privacy import hash_keys
from components.shared.statistics.curves import curves
from components.shared.statistics.metrics import Predictions
from components.shared.storage.store import Store
from medloop.reader_study.page import page
from medloop.reader_study.study import Locked, Readings, study
from medloop.reader_study.table import Name, read_table
from medloop.runner import explain
from medloop.runner.run import Run
from medloop.settings import Settings, hash_key

TABLE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Done:
    """A study: its figures, and where its page and its figures stand."""

    figures: dict[str, Any]
    page: Path
    record: Path


def readers(settings: Settings, store: Store, run: Run, table: Path, positive: str, cut: float | None) -> Done:
    """Hold a table of readings against the run's test images; writes the page and figures into the run's folder.

    What the store holds stays as it is: a study is told beside the decision, and is no part of it.
    """
    locked = _locked(store, run)
    place = _positive(positive, locked.classes)
    if table.stat().st_size > TABLE_BYTES:
        raise RefusedError(f"{table} is larger than the {TABLE_BYTES // 2**20} MiB that a readers' table may have.")
    found = read_table(
        table.read_bytes(),
        locked.classes,
        {image: number for number, image in enumerate(locked.image_ids)},
        _names(settings, store, run),
        1 if place is None else place,
        _cut(cut, locked.classes),
    )
    readings = Readings.of(found, locked)
    figures = {"run": run.id, **study(readings, locked, place)}
    seen = readings.seen
    scored = Predictions(locked.labels, locked.predicted, locked.probabilities, locked.patients).subset(seen)
    curve = None if place is None else curves(scored, place, locked.confidence)["roc"]
    folder = settings.runs / run.id
    folder.mkdir(parents=True, exist_ok=True)
    done = Done(figures, folder / "readers.html", folder / "readers.json")
    done.record.write_text(json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    done.page.write_text(page(figures, curve), encoding="utf-8")
    return done


def _locked(store: Store, run: Run) -> Locked:
    """The test images on which the last decision of the run was made."""
    step = run.last("evaluate")
    metrics = explain.metrics(store, run)
    if step is None or metrics is None:
        raise RefusedError(
            f"The run {run.id} {run.record['outcome']} before its model was evaluated, so there are no test images to "
            "hold readers against."
        )
    if metrics["task"] == "multilabel":
        raise RefusedError(
            f"The run {run.id} learned to tell {len(metrics['classes'])} findings, of which an image may have several, "
            "and a reader's label names one class. Name a run of a model that tells classes apart."
        )
    manifest = Manifest.decode(store.get(step["outputs"]["report"]), "report")
    rows = parquet_tables.read_table(pa.BufferReader(store.get(manifest.files["predictions.parquet"].digest)))
    labels, predicted = (rows[name].to_numpy().astype(np.int64) for name in ("label", "predicted"))
    return Locked(
        classes=metrics["classes"],
        image_ids=rows["image_id"].to_pylist(),
        labels=labels,
        patients=np.unique(rows["patient_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1],
        predicted=predicted,
        probabilities=np.stack([rows[f"p_{name}"].to_numpy() for name in metrics["classes"]], axis=1),
        confidence=metrics["confidence"],
    )


def _positive(asked: str, classes: list[str]) -> int | None:
    """The class whose sensitivity and specificity are told: of two the second, of more the one asked for."""
    if asked and asked not in classes:
        raise UsageError(f"--positive is {asked!r}, which is no class of the model. It has {', '.join(classes)}.")
    if asked:
        return classes.index(asked)
    return 1 if len(classes) == 2 else None


def _cut(cut: float | None, classes: list[str]) -> float | None:
    if cut is not None and not math.isfinite(cut):
        raise UsageError(f"--cut is {cut:g}, and must be a number. Give the score from which on a reader calls it.")
    if cut is not None and len(classes) > 2:
        raise UsageError(
            f"--cut is {cut:g}, and a score tells two classes apart; the model has {len(classes)}. Give labels instead."
        )
    return cut


def _names(settings: Settings, store: Store, run: Run) -> Name | None:
    """How names become ids with the key that the run's data set was made with; None where there is no key here."""
    text = hash_key(settings, str(run.record["arguments"]["source"]), make=False)
    if not text:
        return None
    key, about = hash_keys.parse(text), explain.dataset(store, run)
    wanted = about["key_id"] if about else key.id
    state = next((each for each in key.earlier() if each.id == wanted), None)
    if state is None:
        raise RefusedError(
            f"The hash key at hand has the id {key.id}, and the run's data set was made with key {wanted}: no name can "
            f"be matched to it. Set {hash_keys.VARIABLE} to that key, or give the column image_id alone."
        )
    return state.image
