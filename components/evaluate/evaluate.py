"""The evaluate stage: scores a model and the model in service on the locked test images, and writes the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import onnxruntime
import pyarrow as pa
from numpy.typing import NDArray

from components.evaluate.explanations import explanations
from components.evaluate.metrics_record import (
    Settings,
    compare,
    population,
    population_names,
    probability_difference,
    rounded,
)
from components.evaluate.mistakes import mistakes
from components.evaluate.operating_points import operating_points
from components.evaluate.page import page
from components.evaluate.scoring import Rows, Scorer, check_classes, check_decoding, load_in_service, score_in_service
from components.evaluate.shortcuts import shortcuts
from components.evaluate.subgroups import UNKNOWN, age_band, gaps, make_subgroups
from components.shared.contracts import Between, In, OneOf, Out, read_record, write_record
from components.shared.datasets.dataset import Data, Views
from components.shared.datasets.parquet_tables import SPLIT, read_table, write_table
from components.shared.errors import RefusedError
from components.shared.inference import PRECISIONS, Model
from components.shared.metric_catalogue import SUMMARY
from components.shared.runtime.threads import count_threads
from components.shared.statistics.bootstrapped_metrics import Predictions
from components.shared.statistics.curves import curves

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

TIMED, WARMED = 40, 4
"""Images that are timed one at a time, and images before them that are not counted."""


def evaluate(
    model: In,
    champion: In,
    dataset: In,
    splits: In,
    report: Out,
    work: Work,
    *,
    precision: Annotated[str, OneOf(("float32", "int8"))] = "float32",
    settings: Settings,
    explained: Annotated[int, Between(0, 12)] = 3,
) -> dict[str, Any]:
    """Score a model and the model in service on the locked test images, with an interval for each figure.

    The patient is the unit of all intervals. Accuracy, AUC and other proportions get intervals from the contribution of
    each patient, which stay valid near 1; kappa, Brier score and calibration error are bootstrapped. See intervals.py.

      precision: graph to score: float32 as trained, or int8 as shipped
      explained: images with an explanation map in the report, for each kind (confident right, confident wrong,
          uncertain); 0 keeps pictures of patients out of the report
    """
    data = Data.open(dataset, work.store)
    rows = locked_rows(data, splits)
    confidence = settings.confidence
    if settings.ordered and data.about["task"] == "multilabel":
        raise RefusedError(
            f"ordered is true, but this data set has {len(data.classes)} findings, which have no order. Set ordered to "
            "false."
        )
    candidate = Model(model, precision)
    check_classes(candidate, data, "model")
    check_decoding(candidate, data, "model")
    service = load_in_service(champion, work.inputs["champion"], data)
    original = Model(model, "float32") if precision != "float32" else None
    scorer = Scorer(data, rows, sum(m is not None for m in (candidate, service.model, original)))
    ours = scorer.predict(candidate, "model")
    service, theirs = score_in_service(service, scorer)
    rival = service.model
    trained = scorer.predict(original, "model as trained") if original else None

    since = added_in_version(splits, data, rows)
    core = since <= rival.about["fingerprints"]["split_version"] if rival else None
    groups: dict[str, Any] = {"all": np.ones(len(rows), bool), "core": core, "new": None if core is None else ~core}
    groups = {name: group for name, group in groups.items() if group is not None and group.any()}
    about = describe_images(data, rows)
    views = scorer.views(candidate)
    divisions = make_subgroups(ours, about)
    metrics: dict[str, Any] = {
        "task": data.about["task"],
        "classes": data.classes,
        "positive": data.classes[1] if ours.reported_classes == [1] else None,
        "subject": subject(work.inputs, service.digest, precision, model),
        "confidence": confidence,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "core": None,
        "new": None,
        **{name: population(ours.subset(group), data.classes, settings) for name, group in groups.items()},
        "operating_points": operating_points(ours, data.classes, thresholds(candidate), confidence),
        "comparison": None,
        "service_error": service.error or None,
        "subgroups": [group.record(confidence) for group in divisions],
        "gaps": gaps(divisions, confidence, ours.number_of_patients),
        "latency": measure_latency(candidate, views, rows),
        "data": data_quality(data, splits),
        "as_trained": compare_with_trained(ours, trained, model, precision) if trained else None,
    }
    if rival and theirs:
        compared = {name: compare(ours.subset(g), theirs.subset(g), settings) for name, g in groups.items()}
        metrics["comparison"] = {
            "champion": service.digest,
            "precision": rival.precision,
            "populations": compared,
        }
    sizes = np.stack([data.column(name)[rows] for name in ("height", "width")], axis=1).astype(np.int64)
    metrics["shortcuts"] = shortcuts(candidate, views, rows, ours, sizes, about["site"], metrics["subgroups"], settings)
    ids = data.column("image_id")[rows].tolist()
    shown = explanations(candidate, model, ours, ids, views, rows, explained, settings.seed)
    pictures = {explanation.record["file"]: explanation.png for explanation in shown}
    metrics["explanations"] = [explanation.record for explanation in shown]
    metrics = rounded(metrics)
    for file, png in pictures.items():
        (report / file).parent.mkdir(exist_ok=True)
        (report / file).write_bytes(png)
    write_record("metrics", report / "metrics.json", metrics)
    write_table(predictions(data, rows, since, core, ours, theirs), report / "predictions.parquet")
    sources = {"dataset": data.about, "split": read_record("split", splits / "split.json"), "model": candidate.about}
    rival_curves = {name: curves(theirs, k, confidence) for k, name in enumerate(data.classes)} if theirs else {}
    sheet_path = model / "docs" / "augmentation.png"
    sheet = sheet_path.read_bytes() if sheet_path.exists() else None
    wrong = mistakes(ours, theirs, data.classes, ids, candidate.about["threshold"])
    text = page(metrics, sources, about, rival_curves, wrong, sheet, pictures)
    (report / "report.html").write_text(text, encoding="utf-8")
    figures = metrics["all"]["figures"]
    return {name: figures[name]["value"] for name in SUMMARY}


def locked_rows(data: Data, splits: Path) -> Rows:
    """Return the positions of the test images in the index; raise RefusedError if they cannot be used as a test."""
    rows = data.rows(splits, "test")
    if not len(rows):
        raise RefusedError(
            "The split has 0 test images; at least 1 of each of two classes is needed. Set a test share, or use the "
            "split that was made from this dataset."
        )
    source, ours = read_record("split", splits / "split.json")["dataset"], data.about["fingerprint"]
    if source != ours:
        raise RefusedError(
            f"The split was made from a dataset with the fingerprint {source[:12]}; this one has {ours[:12]}. Some "
            "test images may have been used for training. Use the split that was made from this dataset."
        )
    if data.about["task"] == "multilabel":
        counts = data.targets[rows].sum(axis=0)
        if not ((counts > 0) & (counts < len(rows))).any():
            raise RefusedError(
                f"Each of the {len(data.classes)} findings is on all or on none of the {len(rows)} test images; at "
                "least one must be on some of them only. Add patients with and without findings, and split again."
            )
        return rows
    present = np.unique(data.labels[rows])
    if len(present) < 2:
        raise RefusedError(
            f"All {len(rows)} test images are of one class, {data.classes[present[0]]!r}; at least two classes are "
            "needed. Add patients of the other classes and split again."
        )
    return rows


def added_in_version(splits: Path, data: Data, rows: Rows) -> Rows:
    """Return the version of the split in which each test image was added to the test."""
    table = read_table(splits / "splits.parquet", schema=SPLIT)
    since = dict(zip(table["image_id"].to_pylist(), table["since"].to_pylist(), strict=True))
    return np.array([since[name] for name in data.column("image_id")[rows]], np.int64)


def describe_images(data: Data, rows: Rows) -> dict[str, list[str]]:
    """Return the subgroup of each test image by field: sex, age band, site, view, and label source if any is known."""
    fields = ("sex", "age", "site", "view", "label_source")
    values = {name: data.column(name)[rows] for name in fields}
    described = {
        name: [age_band(int(age)) for age in column] if name == "age" else [value or UNKNOWN for value in column]
        for name, column in values.items()
    }
    if set(described["label_source"]) == {UNKNOWN}:
        del described["label_source"]
    return described


def thresholds(model: Model) -> Sequence[float] | None:
    """Return the thresholds from validation: of the positive class, or of each finding; None if there are none."""
    threshold = model.about["threshold"]
    return threshold if threshold is None or isinstance(threshold, list) else [threshold]


def measure_latency(model: Model, views: Views, rows: Rows) -> dict[str, Any]:
    """Return the milliseconds that the graph takes for a single image on this machine."""
    chosen = np.resize(rows, WARMED + min(TIMED, len(rows)))
    durations = []
    for row in chosen:
        image = views[np.array([row])]
        start = time.perf_counter()
        model(image)
        durations.append(1000 * (time.perf_counter() - start))
    timed = np.array(durations[WARMED:])
    return {
        "milliseconds": round(float(np.median(timed)), 3),
        "p95": round(float(np.quantile(timed, 0.95)), 3),
        "threads": count_threads(),
        "images": len(timed),
    }


def data_quality(data: Data, splits: Path) -> dict[str, Any]:
    """Return counts and leakage from the records of data set and split; null where a record lacks them.

    A split with leakage is never written, so a split without this field has 0 leaks.
    """
    counts = data.about["counts"]
    about = read_record("split", splits / "split.json")
    return {
        "images": counts.get("images"),
        "quarantined": counts.get("quarantined"),
        "warnings": counts.get("warnings", {}),
        "guessed": sum(counts.get("guessed", {}).values()),
        "leakage": about.get("leakage", 0),
    }


def subject(inputs: Mapping[str, str], champion: str, precision: str, model: Path) -> dict[str, Any]:
    """Return what was tested: digests, precision, runtime and size."""
    return {
        "model": inputs["model"],
        "champion": champion,
        "dataset": inputs["dataset"],
        "split": inputs["splits"],
        "precision": precision,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "model_bytes": (model / PRECISIONS[precision]).stat().st_size,
    }


def compare_with_trained(ours: Predictions, trained: Predictions, model: Path, precision: str) -> dict[str, Any]:
    """Compare the shipped graph with the trained one."""
    return {
        "agreement": float((ours.predicted == trained.predicted).mean()),
        "largest_probability_difference": probability_difference(ours.probabilities, trained.probabilities),
        "accuracy": float((ours.predicted == ours.labels).mean()),
        "accuracy_float32": float((trained.predicted == trained.labels).mean()),
        "bytes": (model / PRECISIONS[precision]).stat().st_size,
        "bytes_float32": (model / PRECISIONS["float32"]).stat().st_size,
    }


def predictions(
    data: Data, rows: Rows, since: Rows, core: NDArray[np.bool_] | None, ours: Predictions, theirs: Predictions | None
) -> pa.Table:
    """Return a row for each test image: its label, and the predictions of the model and the model in service."""
    columns: dict[str, Any] = {
        "image_id": data.column("image_id")[rows].tolist(),
        "patient_id": data.column("patient_id")[rows].tolist(),
        **class_columns("label", ours.labels, data.classes),
        **class_columns("predicted", ours.predicted, data.classes),
        **{f"p_{name}": ours.probabilities[:, k] for k, name in enumerate(data.classes)},
        "since": since.astype(np.int32),
        "population": population_names(core, len(rows)),
    }
    if theirs:
        columns |= class_columns("champion_predicted", theirs.predicted, data.classes)
        columns |= {f"champion_p_{name}": theirs.probabilities[:, k] for k, name in enumerate(data.classes)}
    return pa.table(columns)


def class_columns(name: str, values: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """Return a column of classes, or one for each finding."""
    if values.ndim == 1:
        return {name: values.astype(np.int32)}
    return {f"{name}_{finding}": values[:, k].astype(np.int32) for k, finding in enumerate(classes)}
