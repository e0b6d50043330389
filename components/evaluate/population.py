"""What metrics.json says of a group of images: counts, figures with intervals, curves; and of two models on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from components.evaluate.estimates import Estimate, estimates
from components.evaluate.paired import Paired, compared_areas, compared_draws, compared_shares
from components.shared.contracts import Between
from components.shared.figures import FIGURES, MICRO
from components.shared.statistics.curves import curves
from components.shared.statistics.intervals import Figure, Floats, draw, of_figure, unseen, wilson
from components.shared.statistics.metrics import Measure, Scored, confusion, once, resample


@dataclass(frozen=True)
class Settings:
    """How intervals are made, and whether the classes are ordered."""

    resamples: Annotated[int, Between(200, 100000)] = 2000
    """how many times the patients are drawn anew for the intervals; more gives steadier limits"""
    confidence: Annotated[float, Between(0.5, 0.999)] = 0.95
    """how often such an interval holds the true value"""
    seed: Annotated[int, Between(0, 2147483647)] = 7
    """of the draws"""
    ordered: bool = False
    """whether the classes are ordered, from the least to the most: then there is a kappa in which an error weighs
    the more the further it is off (quadratic)"""


def population(scored: Scored, classes: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Everything about one model on one group of images."""
    found = estimates(scored)
    figures = {name: estimate.figure(settings.confidence) for name, estimate in found.items()}
    figures |= _drawn(scored, settings)
    lines = {name: curves(scored, k, settings.confidence) for k, name in enumerate(classes)}
    binary = scored.ranked == [1]
    tables = confusion(scored).tolist()
    return {
        **counts(scored, classes),
        "figures": {name: figures[name] for name in figures if "/" not in name},
        "micro": {name: figures[f"micro/{name}"] for name in MICRO} if f"micro/{MICRO[0]}" in figures else None,
        "per_class": {
            name: {"images": int(scored.truth[:, k].sum()), **_of_class(figures, k)} for k, name in enumerate(classes)
        },
        "confusion": None if scored.several else tables,
        "confusion_by_class": dict(zip(classes, tables, strict=True)) if scored.several else None,
        "roc": lines[classes[1]]["roc"] if binary else None,
        "pr": lines[classes[1]]["pr"] if binary else None,
        "calibration": lines[classes[1]]["calibration"] if binary else None,
        "roc_by_class": None if binary else {name: line["roc"] for name, line in lines.items()},
        "pr_by_class": None if binary else {name: line["pr"] for name, line in lines.items()},
        "calibration_by_class": None if binary else {name: line["calibration"] for name, line in lines.items()},
    }


def _of_class(figures: dict[str, Figure], k: int) -> dict[str, Figure]:
    return {name: figures[f"{name}/{k}"] for name in FIGURES if f"{name}/{k}" in figures}


def counts(scored: Scored, classes: Sequence[str]) -> dict[str, Any]:
    """How many images and patients, and how many images of each class, or with each finding."""
    return {
        "images": len(scored.patients),
        "patients": scored.number_of_patients,
        "by_class": {name: int(scored.truth[:, k].sum()) for k, name in enumerate(classes)},
    }


def _drawn(scored: Scored, settings: Settings) -> dict[str, Figure]:
    """The figures whose intervals come from drawing patients."""
    measure, patients = Measure(scored, settings.ordered), scored.number_of_patients
    values = {name: float(value[0]) for name, value in measure(once(scored)).items()}
    return _bounded(scored, values, resample(measure, draw(patients, settings.resamples, settings.seed)), settings)


def _bounded(
    scored: Scored, values: dict[str, float], draws: dict[str, Floats], settings: Settings
) -> dict[str, Figure]:
    """These figures with intervals from their draws, which are never narrower than few patients allow."""
    chances = _chances(scored)
    patients = scored.number_of_patients
    missed = 1 - float(wilson(1.0, patients, settings.confidence)[0])
    figures = {}
    for name, value in values.items():
        kind, _, k = name.partition("/")
        figure = of_figure(value, draws[name], settings.confidence, FIGURES[kind].low, FIGURES[kind].high)
        if figure["low"] is None or figure["high"] is None:
            figures[name] = figure
        elif kind in ("kappa", "weighted_kappa"):  # no better than the accuracy that flawless results would show
            chance = chances[int(k)] if k else chances[-1]
            best = 1 - missed / (1 - chance) if chance < 1 else 1.0
            figures[name] = {**figure, "low": min(figure["low"], max(best, -1.0))}
        elif kind == "brier":  # a patient who gets an answer by chance costs a quarter
            worst = float(unseen((1 - settings.confidence) / 2, patients)) / 2
            figures[name] = {**figure, "high": max(figure["high"], worst)}
        else:
            figures[name] = figure
    return figures


def _chances(scored: Scored) -> list[float]:
    """The accuracy that chance would give with each class called as often as it was; last, that of all together."""
    actual, called = scored.truth.mean(axis=0), scored.called.mean(axis=0)
    each = actual * called + (1 - actual) * (1 - called)
    return [*each.tolist(), float(each.mean() if scored.several else (actual * called).sum())]


def comparison(ours: Scored, theirs: Scored, settings: Settings) -> dict[str, Any]:
    """Two models on the same images: each figure of both, and their difference, paired by patient."""
    found = [estimates(ours), estimates(theirs)]
    right = [np.asarray(model.predicted == model.labels) for model in (ours, theirs)]
    pairs: dict[str, Paired] = {
        "accuracy": compared_shares(right[0], right[1], ours, settings.confidence),
        "auc": compared_areas(found[0]["auc"], found[1]["auc"], settings.confidence),
    }
    weights = draw(ours.number_of_patients, settings.resamples, settings.seed)
    if ours.ranked == [1]:  # of two classes these are right answers among the same images, too
        for name, k in (("sensitivity", 1), ("specificity", 0)):
            there = ours.labels == k
            if there.any():
                pairs[name] = compared_shares(right[0][there], right[1][there], ours.only(there), settings.confidence)
    if ours.several:
        whole = [np.asarray(each.all(axis=1)) for each in right]
        pairs["exact_match"] = compared_shares(whole[0], whole[1], ours, settings.confidence)
    shares = [name for name in found[0] if "/" not in name and name not in pairs]
    pairs |= _by_draws(found, shares, weights, settings)
    pairs |= _by_resampling(ours, theirs, weights, settings)
    for name in pairs.keys() & found[1].keys():
        pairs[name] |= _service(found[1][name].figure(settings.confidence))
    differing = ours.predicted != theirs.predicted
    disagree = int((differing.any(axis=1) if ours.several else differing).sum())
    return {**pairs, "images": len(ours.patients), "patients": ours.number_of_patients, "disagree": disagree}


def _by_draws(
    found: Sequence[dict[str, Estimate]], names: Sequence[str], weights: NDArray[np.uint16], settings: Settings
) -> dict[str, Paired]:
    """The differences of smooth figures: each drawn patient comes with what it adds to the difference."""
    if not names:
        return {}
    added = np.stack([found[0][name].by_patient - found[1][name].by_patient for name in names], axis=1)
    draws = resample(lambda piece: {"all": piece @ added}, weights)["all"]
    return {
        name: compared_draws(
            ours.value, theirs.value, draws[:, place], min(ours.fewest, theirs.fewest), settings.confidence
        )
        for place, name in enumerate(names)
        for ours, theirs in [(found[0][name], found[1][name])]
    }


def _by_resampling(ours: Scored, theirs: Scored, weights: NDArray[np.uint16], settings: Settings) -> dict[str, Paired]:
    """The differences of all other figures: both are computed anew for each draw of patients."""
    measures = [Measure(model, settings.ordered) for model in (ours, theirs)]
    values = [measure(once(ours)) for measure in measures]
    draws = [resample(measure, weights) for measure in measures]
    known = [name for name in values[0] if "/" not in name]
    service = _bounded(theirs, {name: float(values[1][name][0]) for name in known}, draws[1], settings)
    return {
        name: _service(service[name])
        | compared_draws(
            float(values[0][name][0]),
            float(values[1][name][0]),
            draws[0][name] - draws[1][name],
            ours.number_of_patients,
            settings.confidence,
            less_is_better=FIGURES[name].lower_is_better,
        )
        for name in known
    }


def _service(figure: Figure) -> Paired:
    """The interval of the figure of the model in service."""
    return {"theirs_low": figure["low"], "theirs_high": figure["high"]}


def rounded(value: Any) -> Any:
    """The same, fit for JSON: each number to 10 decimals, and null for what is not a number."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return round(float(value), 10) + 0.0 if np.isfinite(value) else None
    return value


def sorted_into(core: NDArray[np.bool_] | None, length: int) -> list[str]:
    """The population of each image: core or new, or all where there is no model in service to tell them apart."""
    return ["all"] * length if core is None else ["core" if inside else "new" for inside in core]


def probability_difference(ours: Floats, others: Floats) -> float:
    """The largest difference between two models' probabilities for the same image and class."""
    return float(np.abs(ours - others).max())
