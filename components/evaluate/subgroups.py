"""How a model does on every subgroup of patients, and how far the best and the worst of them lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from components.evaluate.estimates import Estimate, estimates
from components.shared.datasets.parquet_tables import AGES
from components.shared.figures import KEY
from components.shared.statistics.intervals import Figure, Floats
from components.shared.statistics.metrics import Ints, Scored

SMALL = 20
"""A subgroup of fewer patients is said to be too small."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Subgroup:
    """The images with one value of one field: the patients they are of, and the figures on them."""

    field: str
    value: str
    images: int
    patients: Ints
    why: str
    """Why it is too small to be judged; empty where it is not."""
    found: Mapping[str, Estimate]

    def record(self, confidence: float) -> dict[str, Any]:
        """As it stands in metrics.json."""
        figures = {name: self.found[name].figure(confidence) for name in KEY}
        return {
            "field": self.field,
            "value": self.value,
            "images": self.images,
            "patients": len(self.patients),
            "too_small": bool(self.why),
            "why": self.why,
            "figures": {name: None if figure["value"] is None else figure for name, figure in figures.items()},
        }


def divided(scored: Scored, fields: Mapping[str, Sequence[str]]) -> list[Subgroup]:
    """Every value of every field."""
    return [
        _subgroup(scored, field, value, np.asarray(values) == value)
        for field, values in fields.items()
        for value in sorted(set(values), key=_rank)
    ]


def _rank(value: str) -> tuple[bool, int, str]:
    """Age bands from young to old, other values by name, what is unknown last."""
    return value == UNKNOWN, list(AGES).index(value) if value in AGES else 0, value


def _subgroup(scored: Scored, field: str, value: str, chosen: Any) -> Subgroup:
    patients, some = np.unique(scored.patients[chosen]), scored.only(chosen)
    why = ""
    if len(patients) < SMALL:
        why = f"It has {len(patients)} patient{'' if len(patients) == 1 else 's'}, and {SMALL} are needed."
    elif not any(0 < some.truth[:, k].sum() < len(some.patients) for k in some.ranked):
        why = "All its images are of one class." if not some.several else "No finding tells its images apart."
    return Subgroup(field, value, len(some.patients), patients, why, estimates(some))


def gaps(groups: Sequence[Subgroup], confidence: float, patients: int) -> list[dict[str, Any]]:
    """For each field and figure how far the best and the worst subgroup lie apart, of those not too small.

    Both are picked after the fact, so the interval is that of all pairs at once (Bonferroni): it holds for whichever
    pair is picked. It is put together from both figures' own intervals, with the correlation that they have where
    patients are in both groups (the method of variance estimates recovery).
    """
    found = []
    for field, members in groupby(groups, key=lambda group: group.field):
        fit = [group for group in members if not group.why and group.value != UNKNOWN]
        for name in KEY:
            known = [group for group in fit if group.found[name].figure(confidence)["low"] is not None]
            if len(known) < 2:
                continue
            best = max(known, key=lambda group: group.found[name].value)
            worst = min(known, key=lambda group: group.found[name].value)
            pairs = len(known) * (len(known) - 1) / 2
            gap = _apart(best, worst, name, 1 - (1 - confidence) / pairs, patients)
            found.append({"field": field, "figure": name, "best": best.value, "worst": worst.value, **gap})
    return found


def _apart(best: Subgroup, worst: Subgroup, name: str, confidence: float, patients: int) -> dict[str, float]:
    high, low = (group.found[name].figure(confidence) for group in (best, worst))
    parts = [_placed(group, name, patients) for group in (best, worst)]
    scale = float(np.sqrt((parts[0] ** 2).sum() * (parts[1] ** 2).sum()))
    alike = float((parts[0] * parts[1]).sum()) / scale if scale > 0 else 0.0
    gap = _number(high, "value") - _number(low, "value")
    down = _reach(_number(high, "value") - _number(high, "low"), _number(low, "high") - _number(low, "value"), alike)
    up = _reach(_number(high, "high") - _number(high, "value"), _number(low, "value") - _number(low, "low"), alike)
    return {"gap": gap, "low": max(0.0, gap - down), "high": min(1.0, gap + up)}


def _placed(group: Subgroup, name: str, patients: int) -> Floats:
    """What each patient of the whole test adds to a subgroup's figure."""
    parts = np.zeros(patients)
    parts[group.patients] = group.found[name].by_patient
    return parts


def _reach(one: float, other: float, alike: float) -> float:
    return float(np.sqrt(max(one**2 + other**2 - 2 * alike * one * other, 0.0)))


def _number(figure: Figure, end: str) -> float:
    value = figure[end]
    assert value is not None
    return value


def age_band(age: int) -> str:
    """The band of an age in years; "unknown" where it is not known."""
    return next((name for name, (low, high) in AGES.items() if low <= age <= high), UNKNOWN)
