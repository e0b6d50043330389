"""The evaluate stage: scores a model, and the one in service, on the locked test images, and writes the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import onnxruntime
import pyarrow as pa
from numpy.typing import NDArray

from components.evaluate.explain import explanations
from components.evaluate.mistakes import mistakes
from components.evaluate.operating import operating_points
from components.evaluate.page import page
from components.evaluate.population import (
    Settings,
    comparison,
    population,
    probability_difference,
    rounded,
    sorted_into,
)
from components.evaluate.scoring import Judge, Rows, beside, in_service, same_classes, same_decoding
from components.evaluate.shortcuts import shortcuts
from components.evaluate.subgroups import UNKNOWN, age_band, divided, gaps
from components.shared.contracts import Between, In, OneOf, Out, read_record, write_record
from components.shared.datasets.dataset import Data, Views
from components.shared.datasets.parquet_tables import SPLIT, read_table, write_table
from components.shared.errors import RefusedError
from components.shared.figures import SUMMARY
from components.shared.inference import PRECISIONS, Model
from components.shared.runtime.threads import count_threads
from components.shared.statistics.curves import curves
from components.shared.statistics.metrics import Scored

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

TIMED, WARMED = 40, 4
"""How many images are timed one by one, and how many before them are not counted."""


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
    """Score a model on the locked test images, beside the model in service, with an interval for each figure.

    All intervals are by patients. Accuracy, AUC and other scores between 0 and 1 get intervals from what each patient
    adds to them, which stay honest near 1; kappa, Brier score and calibration error are drawn anew. See intervals.py.

      precision: the model's graph to score: float32 as it was trained, or int8 as it may be shipped
      explained: how many images of a kind (surely right, surely wrong, unsure) the report shows with what the model
          looked at; 0 keeps pictures of patients out of it
    """
    data = Data.open(dataset, work.store)
    rows = locked_rows(data, splits)
    confidence = settings.confidence
    if settings.ordered and data.about["task"] == "multilabel":
        raise RefusedError(
            f"ordered is true, and the {len(data.classes)} findings of this data set are not classes that could be "
            "ordered. Set ordered to false."
        )
    candidate = Model(model, precision)
    same_classes(candidate, data, "model")
    same_decoding(candidate, data, "model")
    service = in_service(champion, work.inputs["champion"], data)
    original = Model(model, "float32") if precision != "float32" else None
    judge = Judge(data, rows, sum(m is not None for m in (candidate, service.model, original)))
    ours = judge.scored(candidate, "model")
    service, theirs = beside(service, judge)
    rival = service.model
    trained = judge.scored(original, "model as trained") if original else None

    since = joined(splits, data, rows)
    core = since <= rival.about["fingerprints"]["split_version"] if rival else None
    groups: dict[str, Any] = {"all": np.ones(len(rows), bool), "core": core, "new": None if core is None else ~core}
    groups = {name: group for name, group in groups.items() if group is not None and group.any()}
    about = described(data, rows)
    divisions = divided(ours, about)
    metrics: dict[str, Any] = {
        "task": data.about["task"],
        "classes": data.classes,
        "positive": data.classes[1] if ours.ranked == [1] else None,
        "subject": subject(work.inputs, service.digest, precision, model),
        "confidence": confidence,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "core": None,
        "new": None,
        **{name: population(ours.only(group), data.classes, settings) for name, group in groups.items()},
        "operating_points": operating_points(ours, data.classes, thresholds(candidate), confidence),
        "comparison": None,
        "service_error": service.error or None,
        "subgroups": [group.record(confidence) for group in divisions],
        "gaps": gaps(divisions, confidence, ours.number_of_patients),
        "latency": latency(candidate, judge.views(candidate), rows),
        "data": condition(data, splits),
        "as_trained": as_trained(ours, trained, model, precision) if trained else None,
    }
    if rival and theirs:
        compared = {name: comparison(ours.only(g), theirs.only(g), settings) for name, g in groups.items()}
        metrics["comparison"] = {
            "champion": service.digest,
            "precision": rival.precision,
            "populations": compared,
        }
    views = judge.views(candidate)
    sizes = np.stack([data.column(name)[rows] for name in ("height", "width")], axis=1).astype(np.int64)
    metrics["shortcuts"] = shortcuts(candidate, views, rows, ours, sizes, about["site"], metrics["subgroups"], settings)
    ids = data.column("image_id")[rows].tolist()
    shown = explanations(candidate, model, ours, ids, views, rows, explained, settings.seed)
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
    wrong = mistakes(ours, theirs, data.classes, ids, candidate.about["threshold"])
    text = page(metrics, sources, about, rival_curves, wrong, sheet, pictures)
    (report / "report.html").write_text(text, encoding="utf-8")
    figures = metrics["all"]["figures"]
    return {name: figures[name]["value"] for name in SUMMARY}


def locked_rows(data: Data, splits: Path) -> Rows:
    """The positions of the test images in the index, or a ValueError that says what is wrong with the test."""
    rows = data.rows(splits, "test")
    if not len(rows):
        raise RefusedError(
            "The split has 0 test images, and at least 1 of each of two classes is needed. Give the test a share, or "
            "hand in the split that was made of this dataset."
        )
    made_of, ours = read_record("split", splits / "split.json")["dataset"], data.about["fingerprint"]
    if made_of != ours:
        raise RefusedError(
            f"The split was made of a dataset with the fingerprint {made_of[:12]}, and this one has {ours[:12]}: some "
            "of its test images may have been learned from. Hand in the split that was made of this dataset."
        )
    if data.about["task"] == "multilabel":
        found = data.targets[rows].sum(axis=0)
        if not ((found > 0) & (found < len(rows))).any():
            raise RefusedError(
                f"None of the {len(data.classes)} findings is there on some of the {len(rows)} test images and not on "
                "others, and at least one has to be, to tell how well it is found. Add patients with findings and "
                "without, and split again."
            )
        return rows
    present = np.unique(data.labels[rows])
    if len(present) < 2:
        raise RefusedError(
            f"All {len(rows)} test images are of one class, {data.classes[present[0]]!r}, and at least two classes are "
            "needed to tell how well they are told apart. Add patients of the other classes and split again."
        )
    return rows


def joined(splits: Path, data: Data, rows: Rows) -> Rows:
    """In which version of the split each test image came to the test."""
    table = read_table(splits / "splits.parquet", schema=SPLIT)
    since = dict(zip(table["image_id"].to_pylist(), table["since"].to_pylist(), strict=True))
    return np.array([since[name] for name in data.column("image_id")[rows]], np.int64)


def described(data: Data, rows: Rows) -> dict[str, list[str]]:
    """What is known of each test image, for the subgroups: sex, age band, site, view, and where its label comes from.

    The last is left out where nobody says it of any image, as most sources do.
    """
    found = {name: [value or UNKNOWN for value in data.column(name)[rows]] for name in ("sex", "site", "view")}
    ages = [age_band(int(age)) for age in data.column("age")[rows]]
    labellers = [value or UNKNOWN for value in data.column("label_source")[rows]]
    told = {"label_source": labellers} if set(labellers) != {UNKNOWN} else {}
    return {"sex": found["sex"], "age": ages, "site": found["site"], "view": found["view"], **told}


def thresholds(model: Model) -> Sequence[float] | None:
    """The thresholds found on validation: of the positive class, or of each finding; None where there is none."""
    found = model.about["threshold"]
    return found if found is None or isinstance(found, list) else [found]


def latency(model: Model, views: Views, rows: Rows) -> dict[str, Any]:
    """How long the graph that was judged takes for one image, alone, on this machine; milliseconds."""
    chosen = np.resize(rows, WARMED + min(TIMED, len(rows)))
    spent = []
    for row in chosen:
        image = views[np.array([row])]
        begun = time.perf_counter()
        model(image)
        spent.append(1000 * (time.perf_counter() - begun))
    counted = np.array(spent[WARMED:])
    return {
        "milliseconds": round(float(np.median(counted)), 3),
        "p95": round(float(np.quantile(counted, 0.95)), 3),
        "threads": count_threads(),
        "images": len(counted),
    }


def condition(data: Data, splits: Path) -> dict[str, Any]:
    """What the records of data set and split say of their soundness, each null where they do not say it.

    A split in which anything leaks is never written; so where there is one, the number of its leaks is 0.
    """
    counts = data.about["counts"]
    about = read_record("split", splits / "split.json")
    return {
        "images": counts.get("images"),
        "quarantined": counts.get("quarantined"),
        "warnings": counts.get("warnings", {}),
        "leakage": about.get("leakage", 0),
    }


def subject(inputs: Mapping[str, str], champion: str, precision: str, model: Path) -> dict[str, Any]:
    """What exactly was judged: digests, precision, runtime, size."""
    return {
        "model": inputs["model"],
        "champion": champion,
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
        **named("label", ours.labels, data.classes),
        **named("predicted", ours.predicted, data.classes),
        **{f"p_{name}": ours.probabilities[:, k] for k, name in enumerate(data.classes)},
        "since": since.astype(np.int32),
        "population": sorted_into(core, len(rows)),
    }
    if theirs:
        columns |= named("champion_predicted", theirs.predicted, data.classes)
        columns |= {f"champion_p_{name}": theirs.probabilities[:, k] for k, name in enumerate(data.classes)}
    return pa.table(columns)


def named(name: str, values: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """A column of classes, or one for each finding."""
    if values.ndim == 1:
        return {name: values.astype(np.int32)}
    return {f"{name}_{each}": values[:, k].astype(np.int32) for k, each in enumerate(classes)}
