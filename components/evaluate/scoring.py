"""Loads the models and scores them on the test images; refuses one that does not fit the data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.contracts import LOST, read_record
from components.shared.datasets.dataset import Data, Views
from components.shared.errors import RefusedError
from components.shared.imaging.views import view_parameters
from components.shared.inference import Model
from components.shared.runtime.events import progress
from components.shared.statistics.metrics import Scored

Rows = NDArray[np.int64]
DECIDED = ("colour", "window_center", "window_width")
"""What of a data set's decoding changes how an image looks; its size and the number of frames do not."""


@dataclass(frozen=True)
class InService:
    """What is in service: the digest of its model, and the model or, where it cannot be had, why; nothing at first."""

    digest: str = ""
    model: Model | None = None
    error: str = ""


def in_service(champion: Path, digest: str, data: Data) -> InService:
    """The model in service, in the precision in which it serves; refuses one of other classes or another decoding."""
    there = [path.name for path in champion.iterdir()]
    if not there:
        return InService()
    if there == [LOST]:  # beside a model it is that model's own file, and no word of resolve's
        record = read_record("lost", champion / LOST)
        return InService(record["model"], error=record["why"])
    try:
        model = _as_served(champion)
    except Exception as error:  # whatever a damaged file makes a library raise: the gate judges what it means
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
            raise  # of the machine, and not of the model
        said = str(error).strip().partition("\n")[0][:300]
        return InService(digest, error=f"{type(error).__name__}: {said}" if said else type(error).__name__)
    same_classes(model, data, "model in service")
    same_decoding(model, data, "model in service")
    return InService(digest, model)


def _as_served(champion: Path) -> Model:
    """The model in the precision in which it serves, or any error where something of it is missing or damaged."""
    model = Model(champion)
    if "int8" in model.about["precisions"]:
        model = Model(champion, "int8")
    # What is asked for later must be there now.
    _ = view_parameters(model.preprocess), model.preprocess["decoding"], model.about["fingerprints"]["split_version"]
    _ = model.about["task"], model.about["temperature"], model.about["threshold"]
    return model


def same_classes(model: Model, data: Data, which: str) -> None:
    """Refuse a model of another task or other classes than the dataset's."""
    classes, task = data.classes, data.about["task"]
    if model.about["task"] != task:
        raise RefusedError(
            f"The task of the {which} is {model.about['task']}; that of the dataset is {task}. Train on this dataset, "
            "or ingest with the task that the model has (ingest_options.task)."
        )
    if model.classes == classes:
        return
    missing = [name for name in classes if name not in model.classes]
    problem = f"lacks {', '.join(missing)}" if missing else "has others, or has them in another order"
    remedy = {
        "model": "Train on this dataset, or map its labels to the model's classes.",
        "model in service": "The two can't be compared on the same images: release the new classes as a new loop, with "
        "a store of its own, or map the dataset's labels to the classes in service.",
    }[which]
    raise RefusedError(
        f"The classes of the {which} are {', '.join(model.classes)}; those of the dataset are {', '.join(classes)}: "
        f"the {which} {problem}. {remedy}"
    )


def same_decoding(model: Model, data: Data, which: str) -> None:
    """Refuse a model that has learned from other colours or another window: its figures here would not hold there."""
    ours, theirs = model.preprocess["decoding"], data.about["decoding"]
    differing = next((name for name in DECIDED if ours[name] != theirs[name]), None)
    if differing is None:
        return
    remedy = {
        "model": "Train on this dataset.",
        "model in service": "The two can't be compared on the same images: ingest as before, or release the new way "
        "as a new loop, with a store of its own.",
    }[which]
    raise RefusedError(
        f"The {which} was trained on images decoded with {differing} {ours[differing]}; the dataset's are decoded "
        f"with {theirs[differing]}. {remedy}"
    )


@dataclass
class Judge:
    """Scores models on the test images of a dataset, and tells how far it has come."""

    data: Data
    rows: Rows
    models: int
    done: int = 0
    _views: dict[tuple[Any, ...], Views] = field(default_factory=dict)

    def views(self, model: Model) -> Views:
        """Return the test images as this model sees them, made anew from the masters once for each framing."""
        frame = view_parameters(model.preprocess)
        if frame not in self._views:
            self._views[frame] = self.data.fresh_views(self.rows, *frame)
        return self._views[frame]

    def scored(self, model: Model, which: str) -> Scored:
        """What this model says of each image."""
        views = self.views(model)
        total, batches = self.models * len(self.rows), []
        for number, answer in enumerate(model.in_batches(views, self.rows)):
            batches.append(answer.logits)
            self.done += len(answer.logits)
            if number % 8 == 7:
                progress("evaluate", self.done, total, which)
        progress("evaluate", self.done, total, which)
        logits = np.concatenate(batches)
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        if bad:
            raise RefusedError(
                f"The {which} ({model.precision}) gives no number for {bad} of {len(logits)} test images, and 0 are "
                "allowed. Its weights or its quantization are broken: train or quantize it again."
            )
        probabilities = model.probabilities(logits)
        patients = np.unique(self.data.column("patient_id")[self.rows], return_inverse=True)[1]
        several = self.data.about["task"] == "multilabel"
        labels = self.data.targets[self.rows].astype(np.int64) if several else self.data.labels[self.rows]
        return Scored(labels, model.decide(probabilities), probabilities, patients)


def beside(service: InService, judge: Judge) -> tuple[InService, Scored | None]:
    """What the model in service says of each image, if it can be had; one that gives no numbers counts as lost."""
    if service.model is None:
        return service, None
    try:
        return service, judge.scored(service.model, "model in service")
    except ValueError as error:
        return replace(service, model=None, error=str(error)), None
