"""Patient groups of a report: image counts, figures of each subgroup, and gaps between subgroups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from components.shared.datasets.age_bands import AGES
from components.shared.metric_catalogue import FIGURES, KEY, SUMMARY
from components.shared.reporting.formatting import gap, written

FIELDS = {"sex": "Sex", "age": "Age", "site": "Site", "view": "View", "label_source": "Label from"}
WORDS = {"F": "female", "M": "male"}

Metrics = Mapping[str, Any]
Row = dict[str, Any]


def population(everything: Metrics, described: Mapping[str, Sequence[str]]) -> list[Row]:
    """Return a table for class, sex, age, site and view: the number of images with each value."""
    total = everything["images"]
    tables = [("Class", list(everything["by_class"].items()))]
    for field, values in described.items():
        counts = Counter(values)
        order = [*AGES, "unknown"] if field == "age" else sorted(counts, key=lambda value: (value == "unknown", value))
        tables.append((FIELDS[field], [(WORDS.get(v, v), counts[v]) for v in order if counts[v]]))
    return [
        {"title": title, "rows": [(value, n, f"{100 * n / total:.0f} %") for value, n in rows]}
        for title, rows in tables
    ]


def subgroups(rows: Sequence[Metrics]) -> list[Row]:
    """Format each subgroup with its figures; a subgroup that is too small has the reason."""
    return [
        {
            "field": FIELDS[row["field"]],
            "first": number == 0 or rows[number - 1]["field"] != row["field"],
            "value": WORDS.get(row["value"], row["value"]),
            "images": row["images"],
            "patients": row["patients"],
            "figures": [written(name, row["figures"][name]) for name in KEY],
            "too_small": row["too_small"],
            "why": row["why"],
        }
        for number, row in enumerate(rows)
    ]


def gaps(rows: Sequence[Metrics]) -> list[Row]:
    """Format the gap between the best and the worst subgroup for each field and figure."""
    table: dict[str, dict[str, Row]] = {}
    for row in rows:
        best, worst = (WORDS.get(row[end], row[end]) for end in ("best", "worst"))
        cell = {**gap(row["figure"], row), "name": FIGURES[row["figure"]].title, "significant": row["low"] > 0}
        table.setdefault(row["field"], {})[row["figure"]] = {**cell, "best": best, "worst": worst}
    return [{"field": FIELDS[field], "cells": [cells.get(name) for name in KEY]} for field, cells in table.items()]


def sites(rows: Sequence[Metrics]) -> list[Row]:
    """Format each acquisition site: its classes and figures."""
    return [
        {
            **site,
            **{name: written(name, site[name]) for name in SUMMARY},
            "shares": ", ".join(f"{name} {100 * n / site['images']:.0f} %" for name, n in site["by_class"].items()),
        }
        for site in rows
    ]
