"""The figures for the page: beside those of the model in service, by class, and at other thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.evaluate.subgroups import SMALL
from components.shared.figures import FIGURES, HEADLINE
from components.shared.reporting.wording import NONE, count, difference, meaning, written

FURTHER = [name for name in FIGURES if name not in HEADLINE]
PER_CLASS = [name for name, figure in FIGURES.items() if figure.column]
POPULATIONS = {"core": "Locked core", "new": "New patients", "all": "All test images"}
IN_USE = "threshold from validation"

Metrics = Mapping[str, Any]
Row = dict[str, Any]


def explained(name: str, metrics: Metrics) -> Row:
    """A figure on all test images, with a sentence that says what it means."""
    return {**written(name, metrics["all"]["figures"][name]), "meaning": meaning(name, metrics)}


def tables(metrics: Metrics, names: Sequence[str]) -> list[Row]:
    """These figures on each population, beside the model in service's where there is one."""
    comparison = metrics["comparison"]
    # One population alone is all there is, and without a comparison they say nothing of their own.
    groups = list(POPULATIONS) if comparison and metrics["core"] and metrics["new"] else ["all"]
    return [
        {
            "title": POPULATIONS[name],
            "who": _who(metrics[name]),
            "disagree": comparison["populations"][name]["disagree"] if comparison else None,
            "rows": [
                _row(figure, metrics, name, comparison["populations"][name] if comparison else None)
                for figure in names
                if figure in metrics[name]["figures"]
            ],
        }
        for name in groups
    ]


def _who(group: Metrics) -> str:
    return f"{count(group['images'], 'image')} of {count(group['patients'], 'patient')}"


def _row(name: str, metrics: Metrics, group: str, pairs: Metrics | None) -> Row:
    ours = metrics[group]["figures"][name]
    row = {"name": FIGURES[name].title, "ours": written(name, ours), "meaning": meaning(name, metrics)}
    if not pairs:
        return row
    pair = pairs[name]
    theirs = {"value": pair["theirs"], "low": pair["theirs_low"], "high": pair["theirs_high"]}
    return (
        row | difference(name, pair) | _few(pairs["patients"]) | {"ours": row["ours"], "theirs": written(name, theirs)}
    )


def _few(patients: int) -> dict[str, str]:
    return {"verdict": "too few patients"} if patients < SMALL else {}


def micro(metrics: Metrics) -> list[Row]:
    """The figures that are means over the classes, beside those of all decisions together; nothing of two classes."""
    together = metrics["all"]["micro"] or {}
    figures = metrics["all"]["figures"]
    return [
        {"name": FIGURES[name].title, "mean": written(name, figures[name]), "together": written(name, figure)}
        for name, figure in together.items()
    ]


def per_class(metrics: Metrics) -> list[Row]:
    """The figures of each class against the rest, or of each finding."""
    return [
        {"name": name, "images": entry["images"], "figures": [written(figure, entry[figure]) for figure in PER_CLASS]}
        for name, entry in metrics["all"]["per_class"].items()
    ]


def operating_points(metrics: Metrics) -> list[Row]:
    """Threshold, sensitivity and specificity: as in use, and where the test itself has a high specificity."""
    return [
        {
            "in_use": point["at"] == IN_USE,
            "at": "in use, from validation" if point["at"] == IN_USE else f"at {_percent(point['at'])} specificity",
            "threshold": NONE if point["threshold"] is None else f"{point['threshold']:.3f}",
            "sensitivity": written("sensitivity", point["sensitivity"]),
            "specificity": written("specificity", point["specificity"]),
            "class": point["class"],
        }
        for point in metrics["operating_points"]
    ]


def points_by_class(metrics: Metrics) -> Row | None:
    """The same of several classes or findings, one in a row; nothing of two classes."""
    points = operating_points(metrics)
    if metrics["positive"] or not points:
        return None
    names = dict.fromkeys(point["class"] for point in points)
    of_class = [(name, [point for point in points if point["class"] == name]) for name in names]
    return {
        "wanted": [point["at"] for point in of_class[0][1] if not point["in_use"]],
        "rows": [
            {
                "name": name,
                "in_use": next((point for point in several if point["in_use"]), None),
                "others": [point for point in several if not point["in_use"]],
            }
            for name, several in of_class
        ],
    }


def _percent(at: str) -> str:
    return f"{100 * float(at.rpartition(' ')[2]):g} %"


def confusions(metrics: Metrics) -> Row:
    """How often each class is taken for each; of findings, how often each is found, missed and wrongly called."""
    everything, classes = metrics["all"], metrics["classes"]
    if everything["confusion"]:
        return {"classes": _confusion(everything["confusion"], classes), "findings": []}
    rows = []
    for name in classes:
        (left, alarms), (missed, found) = everything["confusion_by_class"][name]
        cells = [(found, found + missed), (missed, found + missed), (alarms, left + alarms), (left, left + alarms)]
        rows.append({"name": name, "cells": [{"images": n, "share": _share(n, total)} for n, total in cells]})
    return {"classes": [], "findings": rows}


def _share(images: int, total: int) -> str:
    return f"{100 * images / total:.0f} %" if total else NONE


def _confusion(table: Sequence[Sequence[int]], classes: Sequence[str]) -> list[Row]:
    rows = []
    for place, (name, row) in enumerate(zip(classes, table, strict=True)):
        total = sum(row)
        cells = [
            {
                "images": images,
                "share": _share(images, total),
                "shade": round(0.04 + 0.26 * images / total, 3) if total and images else 0,
                "right": place == column,
            }
            for column, images in enumerate(row)
        ]
        rows.append({"name": name, "cells": cells, "total": total})
    return rows
