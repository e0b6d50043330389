"""The report as one self-contained page, for people who decide about patients."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.evaluate import plots
from components.evaluate.explain import KINDS, verdict
from components.evaluate.shortcuts import COPIES
from components.evaluate.subgroups import SMALL
from components.evaluate.wording import NAMES, NONE, count, difference, meaning, number, size, written
from components.shared.tables import AGES

HEADLINE = ("accuracy", "auc", "sensitivity", "specificity")
FURTHER = ("balanced_accuracy", "precision", "f1", "pr_auc", "kappa", "brier", "calibration_error")
PER_CLASS = ("sensitivity", "specificity", "precision", "f1", "auc")
POPULATIONS = {"core": "locked core", "new": "new patients", "all": "all test images"}
FIELDS = {"sex": "Sex", "age": "Age", "site": "Site", "view": "View", "label_source": "Label from"}
WORDS = {"F": "female", "M": "male"}

Metrics = Mapping[str, Any]


def page(
    metrics: Metrics,
    sources: Mapping[str, Any],
    described: Mapping[str, Sequence[str]],
    rival_curves: Mapping[str, Any],
    sheet: bytes | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> str:
    """The whole page. `sources` are the records of dataset, split and model; `described` says what each image shows.

    `sheet` is a PNG of training images as the network saw them, where the model has one; `pictures` are the PNGs of the
    explanations, by their file.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    everything = metrics["all"]
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        all=everything,
        dataset=sources["dataset"]["name"],
        architecture=sources["model"]["architecture"],
        task=" or ".join(metrics["classes"]) if metrics["positive"] else ", ".join(metrics["classes"]),
        percent=f"{100 * metrics['confidence']:g}",
        tested=f"{count(everything['images'], 'image')} of {count(everything['patients'], 'patient')}",
        headline=[_explained(name, metrics) for name in HEADLINE],
        further=[_explained(name, metrics) for name in FURTHER],
        whom=_whom(everything, described),
        drawings=_drawings(metrics, rival_curves),
        confusion=_confusions(everything, metrics["classes"]),
        per_class=_per_class(metrics),
        figure_names=[NAMES[name] for name in PER_CLASS],
        subgroups=_subgroups(metrics["subgroups"]),
        small=SMALL,
        compared=_compared(metrics),
        populations=_populations(metrics),
        shipped=_shipped(metrics["as_trained"], metrics["subject"]["precision"]),
        shortcuts=_shortcuts(metrics["shortcuts"]),
        explained=_explained_images(metrics["explanations"], pictures or {}),
        seen=_seen(sources["model"], sheet),
        lineage=_lineage(metrics, sources),
        parameters=_flat(sources["model"].get("parameters", {})),
    )


def _explained(name: str, metrics: Metrics) -> dict[str, Any]:
    return {**written(name, metrics["all"]["figures"][name]), "meaning": meaning(name, metrics)}


def _whom(everything: Metrics, described: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Who was tested: for class, sex, age, site and view, how many images have each value."""
    total = everything["images"]
    tables = [("Class", list(everything["by_class"].items()))]
    for field, values in described.items():
        found = Counter(values)
        order = [*AGES, "unknown"] if field == "age" else sorted(found, key=lambda value: (value == "unknown", value))
        tables.append((FIELDS[field], [(WORDS.get(v, v), found[v]) for v in order if found[v]]))
    return [
        {"title": title, "rows": [(value, n, f"{100 * n / total:.0f} %") for value, n in rows]}
        for title, rows in tables
    ]


def _drawings(metrics: Metrics, rival_curves: Mapping[str, Any]) -> dict[str, str]:
    everything, positive = metrics["all"], metrics["positive"]
    shares = {name: images / everything["images"] for name, images in everything["by_class"].items()}
    if positive:
        figures, rival = everything["figures"], rival_curves.get(positive, {})
        point = (1 - figures["specificity"]["value"], figures["sensitivity"]["value"])
        name = "this model" if rival else positive
        return {
            "roc": plots.roc({name: everything["roc"]}, rival.get("roc"), point),
            "pr": plots.precision_recall({name: everything["pr"]}, rival.get("pr"), {name: shares[positive]}),
            "calibration": plots.calibration({positive: everything["calibration"]}),
        }
    roc = {name: line for name, line in everything["roc_by_class"].items() if line}
    recall = {name: line for name, line in everything["pr_by_class"].items() if line}
    return {
        "roc": plots.roc(roc, None, None),
        "pr": plots.precision_recall(recall, None, shares),
        "calibration": plots.calibration(everything["calibration_by_class"]),
    }


def _confusions(everything: Metrics, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A table for all classes, or one for each finding."""
    if everything["confusion"]:
        return [{"title": "", "classes": classes, "rows": _confusion(everything["confusion"], classes)}]
    names = ("not there", "there")
    return [
        {"title": name, "classes": names, "rows": _confusion(everything["confusion_by_class"][name], names)}
        for name in classes
    ]


def _confusion(table: Sequence[Sequence[int]], classes: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for place, (name, row) in enumerate(zip(classes, table, strict=True)):
        total = sum(row)
        cells = [
            {
                "images": images,
                "share": f"{100 * images / total:.0f} %" if total else NONE,
                "shade": round(0.04 + 0.26 * images / total, 3) if total and images else 0,
                "right": place == column,
            }
            for column, images in enumerate(row)
        ]
        rows.append({"name": name, "cells": cells, "total": total})
    return rows


def _per_class(metrics: Metrics) -> list[dict[str, Any]]:
    return [
        {"name": name, "images": entry["images"], "figures": [written(figure, entry[figure]) for figure in PER_CLASS]}
        for name, entry in metrics["all"]["per_class"].items()
    ]


def _subgroups(rows: Sequence[Metrics]) -> list[dict[str, Any]]:
    return [
        {
            "field": FIELDS[row["field"]],
            "first": place == 0 or rows[place - 1]["field"] != row["field"],
            "value": WORDS.get(row["value"], row["value"]),
            "images": row["images"],
            "patients": row["patients"],
            "accuracy": written("accuracy", row["figures"]["accuracy"]),
            "auc": written("auc", row["figures"]["auc"]),
            "too_small": row["too_small"],
        }
        for place, row in enumerate(rows)
    ]


def _compared(metrics: Metrics) -> list[dict[str, Any]]:
    """For each population: both models' figures, and in how many images they name another class."""
    if not metrics["comparison"]:
        return []
    groups = metrics["comparison"]["populations"]
    names = list(POPULATIONS) if {"core", "new"} <= set(groups) else ["all"]  # one alone is all there is
    return [
        {
            "title": POPULATIONS[name].capitalize(),
            "who": f"{count(groups[name]['images'], 'image')} of {count(groups[name]['patients'], 'patient')}",
            "disagree": groups[name]["disagree"],
            "figures": [
                _difference(figure, groups[name]) for figure in ("accuracy", "balanced_accuracy", "auc", "brier")
            ],
        }
        for name in names
    ]


def _difference(figure: str, group: dict[str, Any]) -> dict[str, str]:
    words = difference(figure, group[figure])
    return words | {"verdict": "too few patients"} if group["patients"] < SMALL else words


def _populations(metrics: Metrics) -> list[dict[str, Any]]:
    """Accuracy and AUC on the locked core, on what is new, and on all; nothing where all is one."""
    if not metrics["new"] or not metrics["core"]:
        return []
    return [
        {
            "name": words,
            "images": metrics[name]["images"],
            "patients": metrics[name]["patients"],
            "accuracy": written("accuracy", metrics[name]["figures"]["accuracy"]),
            "auc": written("auc", metrics[name]["figures"]["auc"]),
        }
        for name, words in POPULATIONS.items()
    ]


def _shipped(facts: Metrics | None, precision: str) -> dict[str, str] | None:
    if facts is None:
        return None
    return {
        "precision": precision,
        "agreement": f"{100 * facts['agreement']:.1f} %",
        "moved": f"{facts['largest_probability_difference']:.3f}",
        "accuracy": number("accuracy", facts["accuracy"]),
        "accuracy_trained": number("accuracy", facts["accuracy_float32"]),
        "size": size(facts["bytes"]),
        "size_trained": size(facts["bytes_float32"]),
        "share": f"{facts['bytes'] / facts['bytes_float32']:.2f}",
    }


def _shortcuts(found: Metrics) -> dict[str, Any]:
    """The figures on copies of the images and by site, as they are written."""
    tested = f"{count(found['images'], 'image')} of {count(found['patients'], 'patient')}"
    drawn = found["images"] < found["of_images"]
    return {
        "sentence": found["sentence"],
        "who": f"{tested}, drawn at random from the {found['of_images']:,} of the test" if drawn else f"all {tested}",
        "copies": [
            {"name": words.capitalize(), **{name: written(name, found[copy][name]) for name in ("accuracy", "auc")}}
            for copy, words in COPIES.items()
        ],
        "sites": [
            {
                **site,
                "accuracy": written("accuracy", site["accuracy"]),
                "auc": written("auc", site["auc"]),
                "shares": ", ".join(f"{name} {100 * n / site['images']:.0f} %" for name, n in site["by_class"].items()),
            }
            for site in found["sites"]
        ],
    }


def _explained_images(entries: Sequence[Metrics], pictures: Mapping[str, bytes]) -> dict[str, Any] | None:
    """The explained images by kind, each with its picture and what the model said of it."""
    if not entries:
        return None
    shown = [
        {
            **entry,
            "png": base64.b64encode(pictures[entry["file"]]).decode(),
            "said": f"{100 * entry['probability']:.1f} %",
            "checked": ", ".join(f"{value:.2f}" for value in entry["sanity"].values()) or NONE,
        }
        for entry in entries
    ]
    kinds = [{"name": kind, "images": [entry for entry in shown if entry["kind"] == kind]} for kind in KINDS]
    return {
        "kinds": [kind for kind in kinds if kind["images"]],
        "none_wrong": not any(entry["kind"] == "confident wrong" for entry in shown),
        "occluded": shown[0]["method"] == "occlusion",
        "verdict": verdict(entries),
    }


def _seen(model: Mapping[str, Any], sheet: bytes | None) -> dict[str, str] | None:
    """The sheet for the page, and in words what was done to the images on it."""
    if sheet is None:
        return None
    changes = model.get("augmentation")
    if changes:
        words = f"chance decided anew which of these changes it got, and how much of each: {'; '.join(changes)}"
    else:
        words = "it was shown as it is" if changes is not None else "chance decided anew how it was changed"
    return {"png": base64.b64encode(sheet).decode(), "words": f"Each time a training image was shown, {words}."}


def _lineage(metrics: Metrics, sources: Mapping[str, Any]) -> list[tuple[str, str]]:
    subject, model = metrics["subject"], sources["model"]
    return [
        ("Model", subject["model"]),
        ("Model in service", subject["champion"] or "none"),
        ("Architecture", str(model["architecture"])),
        ("Precision and size", f"{subject['precision']}, {size(subject['model_bytes'])}"),
        ("Runtime", subject["runtime"]),
        ("Dataset", subject["dataset"]),
        ("Dataset’s fingerprint", str(sources["dataset"]["fingerprint"])),
        ("Split", subject["split"]),
        ("Split’s version", str(sources["split"]["version"])),
        ("Trained on split version", str(model["fingerprints"]["split_version"])),
        ("Decision threshold", _threshold(model["threshold"], metrics["classes"])),
        ("Temperature", f"{model['temperature']:.4g}"),
        ("Intervals", f"{metrics['resamples']:,} resamples of patients, seed {metrics['seed']}"),
    ]


def _threshold(found: float | Sequence[float] | None, classes: Sequence[str]) -> str:
    """The threshold of the positive class, or those of all findings."""
    if found is None:
        return NONE
    if isinstance(found, Sequence):
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(classes, found, strict=True))
    return f"{found:.4g}"


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in sorted(values.items()):
        if isinstance(value, dict):
            rows += _flat(value, f"{before}{name}.")
        else:
            rows.append((f"{before}{name}", f"{value}"))
    return rows
