"""Figures of every subgroup of patients, and the gap between the best and the worst one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from components.evaluate.point_metrics import Estimate, estimates
from components.shared.datasets.age_bands import AGES
from components.shared.metric_catalogue import KEY
from components.shared.reporting.formatting import count
from components.shared.statistics.bootstrapped_metrics import Ints, Predictions
from components.shared.statistics.intervals import Figure, Floats, combined_distance, correlation

MIN_PATIENTS = 20
"""Subgroups with fewer patients are marked as too small."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Subgroup:
    """The images with one value of one field, their patients, and the figures on them."""

    field: str
    value: str
    images: int
    patients: Ints
    why: str
    """Why it is too small to evaluate; empty if it is not."""
    estimates: Mapping[str, Estimate]

    def record(self, confidence: float) -> dict[str, Any]:
        """Return the record for metrics.json."""
        figures = {name: self.estimates[name].figure(confidence) for name in KEY}
        return {
            "field": self.field,
            "value": self.value,
            "images": self.images,
            "patients": len(self.patients),
            "too_small": bool(self.why),
            "why": self.why,
            "figures": {name: None if figure["value"] is None else figure for name, figure in figures.items()},
        }


def make_subgroups(predictions: Predictions, fields: Mapping[str, Sequence[str]]) -> list[Subgroup]:
    """Return a subgroup for every value of every field."""
    return [
        _subgroup(predictions, field, value, np.asarray(values) == value)
        for field, values in fields.items()
        for value in sorted(set(values), key=_rank)
    ]


def _rank(value: str) -> tuple[bool, int, str]:
    """Return a sort key: age bands from young to old, other values by name, "unknown" last."""
    return value == UNKNOWN, list(AGES).index(value) if value in AGES else 0, value


def _subgroup(predictions: Predictions, field: str, value: str, chosen: Any) -> Subgroup:
    patients, some = np.unique(predictions.patients[chosen]), predictions.subset(chosen)
    why = ""
    if len(patients) < MIN_PATIENTS:
        why = f"{count(len(patients), 'patient')}; at least {MIN_PATIENTS} are needed."
    elif not any(0 < some.truth[:, k].sum() < len(some.patients) for k in some.reported_classes):
        why = "All images are of one class." if not some.multilabel else "Each finding is on all or none of the images."
    return Subgroup(field, value, len(some.patients), patients, why, estimates(some))


def gaps(groups: Sequence[Subgroup], confidence: float, patients: int) -> list[dict[str, Any]]:
    """Return for each field and figure the gap between the best and the worst subgroup that are not too small.

    The pair is selected after the fact, so its interval is corrected for all pairs (Bonferroni). It is computed from
    the intervals of both figures and their correlation, which is not 0 if patients are in both groups (method of
    variance estimates recovery).
    """
    result = []
    for field, members in groupby(groups, key=lambda group: group.field):
        fit = [group for group in members if not group.why and group.value != UNKNOWN]
        for name in KEY:
            known = [group for group in fit if group.estimates[name].figure(confidence)["low"] is not None]
            if len(known) < 2:
                continue
            best = max(known, key=lambda group: group.estimates[name].value)
            worst = min(known, key=lambda group: group.estimates[name].value)
            pairs = len(known) * (len(known) - 1) / 2
            gap = _gap(best, worst, name, 1 - (1 - confidence) / pairs, patients)
            result.append({"field": field, "figure": name, "best": best.value, "worst": worst.value, **gap})
    return result


def _gap(best: Subgroup, worst: Subgroup, name: str, confidence: float, patients: int) -> dict[str, float]:
    high, low = (group.estimates[name].figure(confidence) for group in (best, worst))
    alike = correlation(*(_contributions(group, name, patients) for group in (best, worst)))
    gap = _number(high, "value") - _number(low, "value")
    down = _number(high, "value") - _number(high, "low"), _number(low, "high") - _number(low, "value")
    up = _number(high, "high") - _number(high, "value"), _number(low, "value") - _number(low, "low")
    lower, upper = gap - float(combined_distance(*down, alike)), gap + float(combined_distance(*up, alike))
    return {"gap": gap, "low": max(0.0, lower), "high": min(1.0, upper)}


def _contributions(group: Subgroup, name: str, patients: int) -> Floats:
    """Return the contribution of each test patient to a subgroup's figure."""
    parts = np.zeros(patients)
    parts[group.patients] = group.estimates[name].by_patient
    return parts


def _number(figure: Figure, end: str) -> float:
    value = figure[end]
    assert value is not None
    return value


def age_band(age: int) -> str:
    """Return the age band of an age in years, or "unknown"."""
    return next((name for name, (low, high) in AGES.items() if low <= age <= high), UNKNOWN)
