"""Figures of a report in the form that the gate is promised, whatever the evaluation at hand gives of it already."""

from __future__ import annotations

import copy
from typing import Any

Metrics = dict[str, Any]
LEVELS = (0.05, 0.025, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
"""Error rates at which the differences are bounded."""


def promised(metrics: Metrics) -> Metrics:
    """The same figures with bounds at all error rates, subgroups' figures, gaps, latency and the data's counts."""
    made = copy.deepcopy(metrics)
    for group in ((made.get("comparison") or {}).get("populations") or {}).values():
        for figure in ("accuracy", "auc", "balanced_accuracy", "brier"):
            found = group[figure]
            low = found["low"]
            found["lower"] = [[error, low - number * 0.002] for number, error in enumerate(LEVELS)]
    for group in made["subgroups"]:
        group.setdefault("figures", {name: group.get(name) for name in ("accuracy", "auc")})
    made["subgroups"] = [sized(group, number) for number, group in enumerate(made["subgroups"])]
    made["gaps"] = [
        {"field": "sex", "figure": "accuracy", "best": "F", "worst": "M", "gap": 0.04, "low": -0.02, "high": 0.1},
        {"field": "site", "figure": "accuracy", "best": "a", "worst": "b", "gap": 0.02, "low": -0.06, "high": 0.1},
    ]
    made["latency"] = {"milliseconds": 12.5, "p95": 20.0, "threads": 2, "images": 50}
    made["data"] = {"images": 190, "quarantined": 10, "warnings": {}, "leakage": 0}
    return made


def sized(group: Metrics, number: int) -> Metrics:
    """A subgroup that is large enough, with figures; every third one is too small."""
    figure = {"value": 0.9, "low": 0.8 + number / 1000, "high": 0.95}
    return {**group, "too_small": number % 3 == 2, "figures": {"accuracy": figure, "auc": dict(figure)}}
