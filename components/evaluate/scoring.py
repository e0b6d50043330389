"""Loading and scoring of the models on the test images; a model that does not fit the data is refused."""

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
from components.shared.statistics.bootstrapped_metrics import Predictions

Rows = NDArray[np.int64]
APPEARANCE = ("colour", "window_center", "window_width")
"""Decoding options that change how an image looks, unlike its size and the number of frames."""


@dataclass(frozen=True)
class ServiceModel:
    """The model in service: its digest, and the model, or the error if it cannot be loaded; empty if there is none."""

    digest: str = ""
    model: Model | None = None
    error: str = ""


def load_in_service(champion: Path, digest: str, data: Data) -> ServiceModel:
    """Load the model in service in its service precision; refuse other classes or another decoding."""
    names = [path.name for path in champion.iterdir()]
    if not names:
        return ServiceModel()
    if names == [LOST]:  # resolve writes this record alone; beside a model, the file belongs to the model
        record = read_record("lost", champion / LOST)
        return ServiceModel(record["model"], error=record["why"])
    try:
        model = _as_served(champion)
    except Exception as error:  # libraries raise various errors for a damaged file; the gate decides what follows
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
            raise  # the cause is the machine, not the model
        message = str(error).strip().partition("\n")[0][:300]
        return ServiceModel(digest, error=f"{type(error).__name__}: {message}" if message else type(error).__name__)
    check_classes(model, data, "model in service")
    check_decoding(model, data, "model in service")
    return ServiceModel(digest, model)


def _as_served(champion: Path) -> Model:
    """Return the model in its service precision; raise any error if something is missing or damaged."""
    model = Model(champion)
    if "int8" in model.about["precisions"]:
        model = Model(champion, "int8")
    # Fail now if a field that is needed later is missing.
    _ = view_parameters(model.preprocess), model.preprocess["decoding"], model.about["fingerprints"]["split_version"]
    _ = model.about["task"], model.about["temperature"], model.about["threshold"]
    return model


def check_classes(model: Model, data: Data, which: str) -> None:
    """Refuse a model of another task or other classes than the dataset's."""
    classes, task = data.classes, data.about["task"]
    if model.about["task"] != task:
        raise RefusedError(
            f"The task of the {which} is {model.about['task']}; that of the dataset is {task}. Train on this dataset, "
            "or ingest with the model's task (ingest_options.task)."
        )
    if model.classes == classes:
        return
    missing = [name for name in classes if name not in model.classes]
    problem = f"lacks {', '.join(missing)}" if missing else "has others, or has them in another order"
    remedy = {
        "model": "Train on this dataset, or map its labels to the model's classes.",
        "model in service": "The two can't be compared on the same images: start a new loop with a store of its own, "
        "or map the dataset's labels to the classes in service.",
    }[which]
    raise RefusedError(
        f"The classes of the {which} are {', '.join(model.classes)}; those of the dataset are {', '.join(classes)}: "
        f"the {which} {problem}. {remedy}"
    )


def check_decoding(model: Model, data: Data, which: str) -> None:
    """Refuse a model that was trained on images decoded with other colours or another window."""
    ours, theirs = model.preprocess["decoding"], data.about["decoding"]
    differing = next((name for name in APPEARANCE if ours[name] != theirs[name]), None)
    if differing is None:
        return
    remedy = {
        "model": "Train on this dataset.",
        "model in service": "The two can't be compared on the same images: ingest with the previous decoding, or start "
        "a new loop with a store of its own.",
    }[which]
    raise RefusedError(
        f"The {which} was trained on images decoded with {differing} {ours[differing]}; the dataset's are decoded "
        f"with {theirs[differing]}. {remedy}"
    )


@dataclass
class Scorer:
    """Scores models on the test images of a dataset, and reports progress."""

    data: Data
    rows: Rows
    models: int
    done: int = 0
    _views: dict[tuple[Any, ...], Views] = field(default_factory=dict)

    def views(self, model: Model) -> Views:
        """Return the test images preprocessed for this model, made from the masters once for each framing."""
        frame = view_parameters(model.preprocess)
        if frame not in self._views:
            self._views[frame] = self.data.fresh_views(self.rows, *frame)
        return self._views[frame]

    def predict(self, model: Model, which: str) -> Predictions:
        """Return the model's predictions for all test images."""
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
                f"The {which} ({model.precision}) returns NaN or infinity for {bad} of {len(logits)} test images; none "
                "is allowed. Its weights or its quantization are broken: train or quantize it again."
            )
        probabilities = model.probabilities(logits)
        patients = np.unique(self.data.column("patient_id")[self.rows], return_inverse=True)[1]
        multilabel = self.data.about["task"] == "multilabel"
        labels = self.data.targets[self.rows].astype(np.int64) if multilabel else self.data.labels[self.rows]
        return Predictions(labels, model.decide(probabilities), probabilities, patients)


def score_in_service(service: ServiceModel, scorer: Scorer) -> tuple[ServiceModel, Predictions | None]:
    """Return the predictions of the model in service; if it returns NaN or infinity, an error and None."""
    if service.model is None:
        return service, None
    try:
        return service, scorer.predict(service.model, "model in service")
    except ValueError as error:
        return replace(service, model=None, error=str(error)), None
