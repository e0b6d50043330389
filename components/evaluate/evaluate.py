"""The evaluate stage: scores a model, and the one in service, on the locked test images, and writes the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.evaluate.curves import curves
from components.evaluate.explain import explanations
from components.evaluate.metrics import Scored
from components.evaluate.page import page
from components.evaluate.population import (
    Settings,
    age_band,
    comparison,
    population,
    probability_difference,
    rounded,
    sorted_into,
    subgroups,
)
from components.evaluate.shortcuts import shortcuts
from components.shared.contracts import Between, In, OneOf, Out, read_record, write_record
from components.shared.dataset import SPLIT, Data, write_table
from components.shared.runtime import PRECISIONS, Model
from components.shared.views import framing
from components.shared.work import Work, progress

Rows = NDArray[np.int64]
DECIDED = ("colour", "window_center", "window_width")
"""What of a data set's decoding changes how an image looks; its size and the number of frames do not."""


def evaluate(
    model: In,
    champion: In,
    dataset: In,
    splits: In,
    report: Out,
    work: Work,
    *,
    precision: Annotated[str, OneOf(("float32", "int8"))] = "float32",
    resamples: Annotated[int, Between(200, 100000)] = 2000,
    confidence: Annotated[float, Between(0.5, 0.999)] = 0.95,
    seed: Annotated[int, Between(0, 2147483647)] = 7,
    explained: Annotated[int, Between(0, 12)] = 3,
) -> dict[str, Any]:
    """Score a model on the locked test images, beside the model in service, with an interval for each figure.

    Intervals come from a bootstrap over patients. Accuracy, AUC and other scores between 0 and 1 get Wilson's interval
    on the effective number of patients, which stays honest near 1; see intervals.py.

      precision: the model's graph to score: float32 as it was trained, or int8 as it may be shipped
      resamples: how many times the patients are drawn anew for the intervals; more gives steadier limits
      confidence: how often such an interval holds the true value
      seed: of the draws
      explained: how many images of a kind (surely right, surely wrong, unsure) the report shows with what the model
          looked at; 0 keeps pictures of patients out of it
    """
    data = Data.open(dataset, work.store)
    rows = locked_rows(data, splits)
    candidate = Model(model, precision)
    same_classes(candidate, data.classes, "model")
    same_decoding(candidate, data, "model")
    rival = in_service(champion, data)
    original = Model(model, "float32") if precision != "float32" else None
    judge = Judge(data, rows, sum(m is not None for m in (candidate, rival, original)))
    ours = judge.scored(candidate, "model")
    theirs = judge.scored(rival, "model in service") if rival else None
    trained = judge.scored(original, "model as trained") if original else None

    settings = Settings(resamples, confidence, seed)
    since = joined(splits, data, rows)
    core = since <= rival.about["fingerprints"]["split_version"] if rival else None
    groups: dict[str, Any] = {"all": np.ones(len(rows), bool), "core": core, "new": None if core is None else ~core}
    groups = {name: group for name, group in groups.items() if group is not None and group.any()}
    about = described(data, rows)
    metrics: dict[str, Any] = {
        "classes": data.classes,
        "positive": data.classes[1] if len(data.classes) == 2 else None,
        "subject": subject(work.inputs, rival is not None, precision, model),
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
        "core": None,
        "new": None,
        **{name: population(ours.only(group), data.classes, settings) for name, group in groups.items()},
        "comparison": None,
        "subgroups": subgroups(ours, about, settings),
        "as_trained": as_trained(ours, trained, model, precision) if trained else None,
    }
    if rival and theirs:
        compared = {name: comparison(ours.only(g), theirs.only(g), settings) for name, g in groups.items()}
        metrics["comparison"] = {
            "champion": work.inputs["champion"],
            "precision": rival.precision,
            "populations": compared,
        }
    views = data.views(*framing(candidate.preprocess))
    sizes = np.stack([data.column(name)[rows] for name in ("height", "width")], axis=1).astype(np.int64)
    metrics["shortcuts"] = shortcuts(candidate, views, rows, ours, sizes, about["site"], metrics["subgroups"], settings)
    ids = data.column("image_id")[rows].tolist()
    shown = explanations(candidate, model, ours, ids, views, rows, explained, seed)
    metrics["explanations"] = [each.record for each in shown]
    metrics = rounded(metrics)
    for each in shown:
        (report / each.record["file"]).parent.mkdir(exist_ok=True)
        (report / each.record["file"]).write_bytes(each.png)
    write_record("metrics", report / "metrics.json", metrics)
    write_table(predictions(data, rows, since, core, ours, theirs), report / "predictions.parquet")
    sources = {"dataset": data.about, "split": read_record("split", splits / "split.json"), "model": candidate.about}
    rival_curves = {name: curves(theirs, k, confidence) for k, name in enumerate(data.classes)} if theirs else {}
    drawn = model / "docs" / "augmentation.png"
    sheet = drawn.read_bytes() if drawn.exists() else None
    pictures = {each.record["file"]: each.png for each in shown}
    (report / "report.html").write_text(page(metrics, sources, about, rival_curves, sheet, pictures), encoding="utf-8")
    figures = metrics["all"]["figures"]
    return {"accuracy": figures["accuracy"]["value"], "auc": figures["auc"]["value"]}


def locked_rows(data: Data, splits: Path) -> Rows:
    """The positions of the test images in the index, or a ValueError that says what is wrong with the test."""
    rows = data.rows(splits, "test")
    if not len(rows):
        raise ValueError(
            "The split has 0 test images, and at least 1 of each of two classes is needed. Give the test a share, or "
            "hand in the split that was made of this dataset."
        )
    present = np.unique(data.labels[rows])
    if len(present) < 2:
        raise ValueError(
            f"All {len(rows)} test images are of one class, {data.classes[present[0]]!r}, and at least two classes are "
            "needed to tell how well they are told apart. Add patients of the other classes and split again."
        )
    return rows


def same_classes(model: Model, classes: list[str], which: str) -> None:
    """Refuse a model of other classes than the dataset's."""
    if model.classes == classes:
        return
    missing = [name for name in classes if name not in model.classes]
    problem = f"lacks {', '.join(missing)}" if missing else "has others, or has them in another order"
    remedy = {
        "model": "Train on this dataset, or map its labels to the model's classes.",
        "model in service": "The two can't be compared on the same images: release the new classes as a new loop, with "
        "a store of its own, or map the dataset's labels to the classes in service.",
    }[which]
    raise ValueError(
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
    raise ValueError(
        f"The {which} was trained on images decoded with {differing} {ours[differing]}; the dataset's are decoded "
        f"with {theirs[differing]}. {remedy}"
    )


def in_service(champion: Path, data: Data) -> Model | None:
    """The model in service, in the precision in which it serves, or None when there is none."""
    if not any(champion.iterdir()):
        return None
    model = Model(champion)
    same_classes(model, data.classes, "model in service")
    same_decoding(model, data, "model in service")
    return Model(champion, "int8") if "int8" in model.about["precisions"] else model


@dataclass
class Judge:
    """Scores models on the test images of a dataset, and tells how far it has come."""

    data: Data
    rows: Rows
    models: int
    done: int = 0

    def scored(self, model: Model, which: str) -> Scored:
        """What this model says of each image."""
        views = self.data.views(*framing(model.preprocess))
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
            raise ValueError(
                f"The {which} ({model.precision}) gives no number for {bad} of {len(logits)} test images, and 0 are "
                "allowed. Its weights or its quantization are broken: train or quantize it again."
            )
        probabilities = model.probabilities(logits)
        patients = np.unique(self.data.column("patient_id")[self.rows], return_inverse=True)[1]
        labels = self.data.labels[self.rows]
        return Scored(labels, model.decide(probabilities), probabilities, patients)


def joined(splits: Path, data: Data, rows: Rows) -> Rows:
    """In which version of the split each test image came to the test."""
    table = pq.read_table(splits / "splits.parquet", schema=SPLIT)
    since = dict(zip(table["image_id"].to_pylist(), table["since"].to_pylist(), strict=True))
    return np.array([since[name] for name in data.column("image_id")[rows]], np.int64)


def described(data: Data, rows: Rows) -> dict[str, list[str]]:
    """What is known of each test image, for the subgroups: sex, age band, site, view."""
    texts = {name: [value or "unknown" for value in data.column(name)[rows]] for name in ("sex", "site", "view")}
    ages = [age_band(int(age)) for age in data.column("age")[rows]]
    return {"sex": texts["sex"], "age": ages, "site": texts["site"], "view": texts["view"]}


def subject(inputs: Mapping[str, str], rival: bool, precision: str, model: Path) -> dict[str, Any]:
    """What exactly was judged: digests, precision, runtime, size."""
    return {
        "model": inputs["model"],
        "champion": inputs["champion"] if rival else "",
        "dataset": inputs["dataset"],
        "split": inputs["splits"],
        "precision": precision,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "model_bytes": (model / PRECISIONS[precision]).stat().st_size,
    }


def as_trained(ours: Scored, trained: Scored, model: Path, precision: str) -> dict[str, Any]:
    """How far the graph that is shipped departs from the one that was trained."""
    return {
        "agreement": float((ours.predicted == trained.predicted).mean()),
        "largest_probability_difference": probability_difference(ours.probabilities, trained.probabilities),
        "accuracy": float((ours.predicted == ours.labels).mean()),
        "accuracy_float32": float((trained.predicted == trained.labels).mean()),
        "bytes": (model / PRECISIONS[precision]).stat().st_size,
        "bytes_float32": (model / PRECISIONS["float32"]).stat().st_size,
    }


def predictions(
    data: Data, rows: Rows, since: Rows, core: NDArray[np.bool_] | None, ours: Scored, theirs: Scored | None
) -> pa.Table:
    """One row a test image: what is true, what the model says, and what the model in service says."""
    columns: dict[str, Any] = {
        "image_id": data.column("image_id")[rows].tolist(),
        "patient_id": data.column("patient_id")[rows].tolist(),
        "label": ours.labels.astype(np.int32),
        "predicted": ours.predicted.astype(np.int32),
        **{f"p_{name}": ours.probabilities[:, k] for k, name in enumerate(data.classes)},
        "since": since.astype(np.int32),
        "population": sorted_into(core, len(rows)),
    }
    if theirs:
        columns["champion_predicted"] = theirs.predicted.astype(np.int32)
        columns |= {f"champion_p_{name}": theirs.probabilities[:, k] for k, name in enumerate(data.classes)}
    return pa.table(columns)
