"""What metrics.json says of a group of images: counts, figures with intervals, curves; and of two models on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.evaluate.curves import curves
from components.evaluate.intervals import Figure, Floats, draw, of_figure, of_score, wilson
from components.evaluate.metrics import BY_CLASS, OTHERS, PLAIN, SCORES, Measure, Scored, once, resample
from components.shared.tables import AGES

SMALL = 20
"""A subgroup of fewer patients is said to be too small."""


@dataclass(frozen=True)
class Settings:
    """How intervals are made."""

    resamples: int
    confidence: float
    seed: int


def population(scored: Scored, classes: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Everything about one model on one group of images."""
    measure = Measure(scored)
    figures = _with_intervals(measure, settings)
    lines = {name: curves(scored, k, settings.confidence) for k, name in enumerate(classes)}
    binary = len(classes) == 2
    return {
        **counts(scored, classes),
        "figures": {name: figures[name] for name in (*SCORES, *OTHERS)},
        "per_class": {
            name: {"images": int((scored.labels == k).sum()), **{f: figures[f"{f}/{k}"] for f in BY_CLASS}}
            for k, name in enumerate(classes)
        },
        "confusion": measure.confusion(once(scored))[0].astype(int).tolist(),
        "roc": lines[classes[1]]["roc"] if binary else None,
        "pr": lines[classes[1]]["pr"] if binary else None,
        "calibration": lines[classes[1]]["calibration"] if binary else None,
        "roc_by_class": None if binary else {name: line["roc"] for name, line in lines.items()},
        "pr_by_class": None if binary else {name: line["pr"] for name, line in lines.items()},
        "calibration_by_class": None if binary else {name: line["calibration"] for name, line in lines.items()},
    }


def counts(scored: Scored, classes: Sequence[str]) -> dict[str, Any]:
    """How many images and patients, and how many images of each class."""
    return {
        "images": len(scored.labels),
        "patients": scored.number_of_patients,
        "by_class": {name: int((scored.labels == k).sum()) for k, name in enumerate(classes)},
    }


def _with_intervals(measure: Measure, settings: Settings) -> dict[str, Figure]:
    scored, confidence = measure.scored, settings.confidence
    weights = draw(scored.number_of_patients, settings.resamples, settings.seed)
    values = {name: float(value[0]) for name, value in measure.all(once(scored)).items()}
    draws = resample(measure.all, weights, len(scored.labels))
    figures = {}
    for name, value in values.items():
        if name.split("/")[0] in OTHERS:
            figures[name] = of_figure(value, draws[name], confidence, *OTHERS[name.split("/")[0]])
        else:
            figures[name] = of_score(value, draws[name], patients_behind(scored, name), confidence)
    kappa = figures["kappa"]
    if kappa["low"] is not None:  # no better than the accuracy that flawless results would show
        chance = float(measure.chance(once(scored))[0])
        best = wilson(1.0, scored.number_of_patients, confidence)[0]
        figures["kappa"] = {**kappa, "low": min(kappa["low"], (best - chance) / (1 - chance))}
    return figures


def patients_behind(scored: Scored, name: str) -> float:
    """On how many patients a score rests.

    Accuracy rests on all, sensitivity on those with the class, specificity on those without; where several groups
    come together, the smaller ones decide (their harmonic mean), and a mean of independent parts counts each part.
    """
    figure, _, k = name.partition("/")
    present = [number for number in range(scored.classes) if (scored.labels == number).any()]
    if figure == "accuracy":
        return scored.number_of_patients
    if figure == "balanced_accuracy":
        return len(present) * _harmonic([scored.patients_of(scored.labels == number) for number in present])
    if not k:
        ranked = [1] if scored.classes == 2 else present
        return _harmonic([patients_behind(scored, f"{figure}/{number}") for number in ranked])
    with_class = scored.patients_of(scored.labels == int(k))
    without = scored.patients_of(scored.labels != int(k))
    return {
        "specificity": without,
        "precision": scored.patients_of(scored.predicted == int(k)),
        "auc": 2 * _harmonic([with_class, without]),
    }.get(figure, with_class)


def _harmonic(numbers: list[float]) -> float:
    return len(numbers) / sum(1 / number for number in numbers) if min(numbers) > 0 else 0.0


def comparison(ours: Scored, theirs: Scored, settings: Settings) -> dict[str, Any]:
    """Two models on the same images: each figure of both, and their difference, paired by patient."""
    models = [Measure(ours), Measure(theirs)]
    weights = draw(ours.number_of_patients, settings.resamples, settings.seed)
    values = [model.plain(once(ours)) for model in models]
    draws = [resample(model.plain, weights, len(ours.labels)) for model in models]
    result: dict[str, Any] = {}
    for name in PLAIN:
        our, their = (float(value[name][0]) for value in values)
        paired = of_figure(our - their, draws[0][name] - draws[1][name], settings.confidence, -2.0, 2.0)
        result[name] = {
            "ours": our,
            "theirs": their,
            "difference": paired["value"],
            "low": paired["low"],
            "high": paired["high"],
        }
    disagree = int((ours.predicted != theirs.predicted).sum())
    return {**result, "images": len(ours.labels), "patients": ours.number_of_patients, "disagree": disagree}


def subgroups(scored: Scored, fields: Mapping[str, Sequence[str]], settings: Settings) -> list[dict[str, Any]]:
    """Accuracy and AUC of every value of every field."""
    return [
        {"field": field, "value": value, **_subgroup(scored.only(np.asarray(values) == value), settings)}
        for field, values in fields.items()
        for value in sorted(set(values), key=_rank)
    ]


def _rank(value: str) -> tuple[bool, int, str]:
    """Age bands from young to old, other values by name, what is unknown last."""
    return value == "unknown", list(AGES).index(value) if value in AGES else 0, value


def _subgroup(scored: Scored, settings: Settings) -> dict[str, Any]:
    measure = Measure(scored)
    weights = draw(scored.number_of_patients, settings.resamples, settings.seed)
    values = measure.plain(once(scored))
    draws = resample(measure.plain, weights, len(scored.labels))
    figures = {
        name: of_score(float(values[name][0]), draws[name], patients_behind(scored, name), settings.confidence)
        for name in ("accuracy", "auc")
    }
    one_class = len(np.unique(scored.labels)) < 2
    return {
        "images": len(scored.labels),
        "patients": scored.number_of_patients,
        "accuracy": figures["accuracy"],
        "auc": None if figures["auc"]["value"] is None else figures["auc"],
        "too_small": scored.number_of_patients < SMALL or one_class,
    }


def age_band(age: int) -> str:
    """The band of an age in years; "unknown" where it is not known."""
    return next((name for name, (low, high) in AGES.items() if low <= age <= high), "unknown")


def rounded(value: Any) -> Any:
    """The same, fit for JSON: each number to 10 decimals, and null for what is not a number."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, 10) + 0.0 if np.isfinite(value) else None
    return value


def sorted_into(core: NDArray[np.bool_] | None, length: int) -> list[str]:
    """The population of each image: core or new, or all where there is no model in service to tell them apart."""
    return ["all"] * length if core is None else ["core" if inside else "new" for inside in core]


def probability_difference(ours: Floats, others: Floats) -> float:
    """The largest difference between two models' probabilities for the same image and class."""
    return float(np.abs(ours - others).max())
