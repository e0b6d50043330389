"""Who was tested, for the page: counts, the figures of each subgroup, and how far subgroups lie apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from components.shared.datasets.parquet_tables import AGES
from components.shared.figures import FIGURES, KEY, SUMMARY
from components.shared.reporting.wording import apart, written

FIELDS = {"sex": "Sex", "age": "Age", "site": "Site", "view": "View", "label_source": "Label from"}
WORDS = {"F": "female", "M": "male"}

Metrics = Mapping[str, Any]
Row = dict[str, Any]


def whom(everything: Metrics, described: Mapping[str, Sequence[str]]) -> list[Row]:
    """For class, sex, age, site and view, how many images have each value."""
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


def subgroups(rows: Sequence[Metrics]) -> list[Row]:
    """Each subgroup with its figures; one that is too small with the reason."""
    return [
        {
            "field": FIELDS[row["field"]],
            "first": place == 0 or rows[place - 1]["field"] != row["field"],
            "value": WORDS.get(row["value"], row["value"]),
            "images": row["images"],
            "patients": row["patients"],
            "figures": [written(name, row["figures"][name]) for name in KEY],
            "too_small": row["too_small"],
            "why": row["why"],
        }
        for place, row in enumerate(rows)
    ]


def gaps(rows: Sequence[Metrics]) -> list[Row]:
    """For each field how far its best and its worst subgroup lie apart, in each figure that two of them have."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        best, worst = (WORDS.get(row[end], row[end]) for end in ("best", "worst"))
        cell = {**apart(row["figure"], row), "name": FIGURES[row["figure"]].title, "shown": row["low"] > 0}
        found.setdefault(row["field"], {})[row["figure"]] = {**cell, "best": best, "worst": worst}
    return [{"field": FIELDS[field], "cells": [cells.get(name) for name in KEY]} for field, cells in found.items()]


def sites(rows: Sequence[Metrics]) -> list[Row]:
    """Each acquisition site: its classes, and the figures there."""
    return [
        {
            **site,
            **{name: written(name, site[name]) for name in SUMMARY},
            "shares": ", ".join(f"{name} {100 * n / site['images']:.0f} %" for name, n in site["by_class"].items()),
        }
        for site in rows
    ]
