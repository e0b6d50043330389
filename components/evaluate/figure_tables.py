"""Figures of a report: compared with the model in service, by class, and at other thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluate.subgroups import MIN_PATIENTS
from components.shared.metric_catalogue import FIGURES, HEADLINE
from components.shared.reporting.formatting import NONE, count, difference, meaning, written

FURTHER = [name for name in FIGURES if name not in HEADLINE]
PER_CLASS = [name for name, figure in FIGURES.items() if figure.column]
POPULATIONS = {"core": "Locked core", "new": "New patients", "all": "All test images"}
IN_USE = "threshold from validation"

Metrics = Mapping[str, Any]
Row = dict[str, Any]


def card(name: str, metrics: Metrics) -> Row:
    """Format a figure on all test images, with a sentence that explains it."""
    return {**written(name, metrics["all"]["figures"][name]), "meaning": meaning(name, metrics)}


def tables(metrics: Metrics, names: Sequence[str]) -> list[Row]:
    """Format these figures on each population, with those of the model in service if there is one."""
    comparison = metrics["comparison"]
    # With one population only, it equals "all"; without a comparison, the distinction has no use.
    groups = list(POPULATIONS) if comparison and metrics["core"] and metrics["new"] else ["all"]
    return [
        {
            "title": POPULATIONS[name],
            "tested": tested(metrics[name]),
            "disagree": comparison["populations"][name]["disagree"] if comparison else None,
            "rows": [
                _row(figure, metrics, name, comparison["populations"][name] if comparison else None)
                for figure in names
                if figure in metrics[name]["figures"]
            ],
        }
        for name in groups
    ]


def tested(group: Metrics) -> str:
    """Return the number of images and patients of a population."""
    return f"{count(group['images'], 'image')} of {count(group['patients'], 'patient')}"


def _row(name: str, metrics: Metrics, group: str, pairs: Metrics | None) -> Row:
    ours = metrics[group]["figures"][name]
    row = {"name": FIGURES[name].title, "ours": written(name, ours), "meaning": meaning(name, metrics)}
    if not pairs:
        return row
    pair = pairs[name]
    theirs = {"value": pair["theirs"], "low": pair["theirs_low"], "high": pair["theirs_high"]}
    few = {"verdict": "too few patients"} if pairs["patients"] < MIN_PATIENTS else {}
    return row | difference(name, pair) | few | {"ours": row["ours"], "theirs": written(name, theirs)}


def micro(metrics: Metrics) -> list[Row]:
    """Format macro and micro averages of the figures; empty for two classes."""
    figures = metrics["all"]["figures"]
    return [
        {"name": FIGURES[name].title, "mean": written(name, figures[name]), "together": written(name, figure)}
        for name, figure in (metrics["all"]["micro"] or {}).items()
    ]


def per_class(metrics: Metrics) -> list[Row]:
    """Format the figures of each class against the rest, or of each finding."""
    return [
        {"name": name, "images": entry["images"], "figures": [written(figure, entry[figure]) for figure in PER_CLASS]}
        for name, entry in metrics["all"]["per_class"].items()
    ]


def operating_points(metrics: Metrics) -> list[Row]:
    """Format the operating points: the threshold in use, and those with a high specificity on the test."""
    return [
        {
            "in_use": point["at"] == IN_USE,
            "at": "in use (from validation)" if point["at"] == IN_USE else f"at {_percent(point['at'])} specificity",
            "threshold": NONE if point["threshold"] is None else f"{point['threshold']:.3f}",
            "sensitivity": written("sensitivity", point["sensitivity"]),
            "specificity": written("specificity", point["specificity"]),
            "class": point["class"],
        }
        for point in metrics["operating_points"]
    ]


def points_by_class(metrics: Metrics) -> Row | None:
    """Format the operating points with a row for each class or finding; None for two classes."""
    points = operating_points(metrics)
    if metrics["positive"] or not points:
        return None
    rows: list[Row] = []
    for name in dict.fromkeys(point["class"] for point in points):
        own = [point for point in points if point["class"] == name]
        in_use = next((point for point in own if point["in_use"]), None)
        rows.append({"name": name, "in_use": in_use, "others": [point for point in own if not point["in_use"]]})
    return {"specificities": [point["at"] for point in rows[0]["others"]], "rows": rows}


def _percent(at: str) -> str:
    return f"{100 * float(at.rpartition(' ')[2]):g} %"


def confusions(metrics: Metrics) -> Row:
    """Format the confusion matrix of the classes, or the four counts of each finding."""
    everything, classes = metrics["all"], metrics["classes"]
    if everything["confusion"]:
        return {"classes": _confusion(everything["confusion"], classes), "findings": []}
    rows = []
    for name in classes:
        (tn, fp), (fn, tp) = everything["confusion_by_class"][name]
        cells = [(tp, tp + fn), (fn, tp + fn), (fp, tn + fp), (tn, tn + fp)]
        rows.append({"name": name, "cells": [{"images": n, "share": _share(n, total)} for n, total in cells]})
    return {"classes": [], "findings": rows}


def _share(images: int, total: int) -> str:
    return f"{100 * images / total:.0f} %" if total else NONE


def _confusion(table: Sequence[Sequence[int]], classes: Sequence[str]) -> list[Row]:
    rows = []
    for label, (name, row) in enumerate(zip(classes, table, strict=True)):
        total = sum(row)
        cells = [
            {
                "images": images,
                "share": _share(images, total),
                "shade": round(0.04 + 0.26 * images / total, 3) if total and images else 0,
                "right": label == column,
            }
            for column, images in enumerate(row)
        ]
        rows.append({"name": name, "cells": cells, "total": total})
    return rows
