"""Records of metrics.json on a group of images: counts, figures with intervals, curves, and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from components.evaluate.comparison import Comparison, compare_areas, compare_draws, compare_shares
from components.evaluate.point_metrics import Estimate, estimates
from components.shared.contracts import Between
from components.shared.metric_catalogue import FIGURES, MICRO
from components.shared.statistics.bootstrapped_metrics import Measure, Predictions, confusion, equal_weights, resample
from components.shared.statistics.curves import curves
from components.shared.statistics.intervals import Figure, Floats, bootstrap_figure, draw, unseen_loss, wilson


@dataclass(frozen=True)
class Settings:
    """How intervals are computed, and whether the classes are ordered."""

    resamples: Annotated[int, Between(200, 100000)] = 2000
    """bootstrap resamples of the patients for the intervals; more give more stable limits"""
    confidence: Annotated[float, Between(0.5, 0.999)] = 0.95
    """confidence level of the intervals"""
    seed: Annotated[int, Between(0, 2147483647)] = 7
    """random seed of the bootstrap"""
    ordered: bool = False
    """whether the classes are ordered from lowest to highest; adds the quadratic-weighted kappa"""


def population(predictions: Predictions, classes: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Return the record of one model on one group of images."""
    figures = {name: estimate.figure(settings.confidence) for name, estimate in estimates(predictions).items()}
    figures |= _bootstrap_figures(predictions, settings)
    lines = {name: curves(predictions, k, settings.confidence) for k, name in enumerate(classes)}
    binary = predictions.reported_classes == [1]
    tables = confusion(predictions).tolist()
    kinds = ("roc", "pr", "calibration")
    return {
        **counts(predictions, classes),
        "figures": {name: figures[name] for name in figures if "/" not in name},
        "micro": {name: figures[f"micro/{name}"] for name in MICRO} if f"micro/{MICRO[0]}" in figures else None,
        "per_class": {
            name: {"images": int(predictions.truth[:, k].sum()), **_of_class(figures, k)}
            for k, name in enumerate(classes)
        },
        "confusion": None if predictions.multilabel else tables,
        "confusion_by_class": dict(zip(classes, tables, strict=True)) if predictions.multilabel else None,
        **{kind: lines[classes[1]][kind] if binary else None for kind in kinds},
        **{f"{kind}_by_class": None if binary else {name: lines[name][kind] for name in classes} for kind in kinds},
    }


def _of_class(figures: dict[str, Figure], k: int) -> dict[str, Figure]:
    return {name: figures[f"{name}/{k}"] for name in FIGURES if f"{name}/{k}" in figures}


def counts(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Return the number of images and patients, and of images of each class or with each finding."""
    return {
        "images": len(predictions.patients),
        "patients": predictions.number_of_patients,
        "by_class": {name: int(predictions.truth[:, k].sum()) for k, name in enumerate(classes)},
    }


def _bootstrap_figures(predictions: Predictions, settings: Settings) -> dict[str, Figure]:
    """Return the figures whose intervals come from a bootstrap of patients."""
    measure, patients = Measure(predictions, settings.ordered), predictions.number_of_patients
    values = {name: float(value[0]) for name, value in measure(equal_weights(predictions)).items()}
    return _with_intervals(
        predictions, values, resample(measure, draw(patients, settings.resamples, settings.seed)), settings
    )


def _with_intervals(
    predictions: Predictions, values: dict[str, float], draws: dict[str, Floats], settings: Settings
) -> dict[str, Figure]:
    """Return figures with intervals from their draws, never narrower than the number of patients allows."""
    chances = _chance_accuracies(predictions)
    patients = predictions.number_of_patients
    missed = 1 - float(wilson(1.0, patients, settings.confidence)[0])
    figures = {}
    for name, value in values.items():
        kind, _, k = name.partition("/")
        figure = bootstrap_figure(value, draws[name], settings.confidence, FIGURES[kind].low, FIGURES[kind].high)
        if figure["low"] is None or figure["high"] is None:
            figures[name] = figure
        elif kind in ("kappa", "weighted_kappa"):  # at most what a flawless accuracy on these patients would prove
            chance = chances[int(k)] if k else chances[-1]
            best = 1 - missed / (1 - chance) if chance < 1 else 1.0
            figures[name] = {**figure, "low": min(figure["low"], max(best, -1.0))}
        elif kind == "brier":  # a patient whose answer is a guess costs a quarter
            worst = float(unseen_loss((1 - settings.confidence) / 2, patients)) / 2
            figures[name] = {**figure, "high": max(figure["high"], worst)}
        else:
            figures[name] = figure
    return figures


def _chance_accuracies(predictions: Predictions) -> list[float]:
    """Return the accuracy of random answers with the same class frequencies: by class, then overall."""
    actual, predicted = predictions.truth.mean(axis=0), predictions.decisions.mean(axis=0)
    by_class = actual * predicted + (1 - actual) * (1 - predicted)
    return [*by_class.tolist(), float(by_class.mean() if predictions.multilabel else (actual * predicted).sum())]


def compare(ours: Predictions, theirs: Predictions, settings: Settings) -> dict[str, Any]:
    """Compare two models on the same images: each figure of both, and the difference paired by patient."""
    smooth = [estimates(ours), estimates(theirs)]
    right = [np.asarray(model.predicted == model.labels) for model in (ours, theirs)]
    pairs: dict[str, Comparison] = {
        "accuracy": compare_shares(right[0], right[1], ours, settings.confidence),
        "auc": compare_areas(smooth[0]["auc"], smooth[1]["auc"], settings.confidence),
    }
    weights = draw(ours.number_of_patients, settings.resamples, settings.seed)
    if ours.reported_classes == [1]:  # with two classes these are also shares of right answers among the same images
        for name, k in (("sensitivity", 1), ("specificity", 0)):
            chosen = ours.labels == k
            if chosen.any():
                pairs[name] = compare_shares(
                    right[0][chosen], right[1][chosen], ours.subset(chosen), settings.confidence
                )
    if ours.multilabel:
        exact = [np.asarray(answers.all(axis=1)) for answers in right]
        pairs["exact_match"] = compare_shares(exact[0], exact[1], ours, settings.confidence)
    names = [name for name in smooth[0] if "/" not in name and name not in pairs]
    pairs |= _by_contributions(smooth, names, weights, settings)
    pairs |= _by_resampling(ours, theirs, weights, settings)
    for name in pairs.keys() & smooth[1].keys():
        pairs[name] |= _service(smooth[1][name].figure(settings.confidence))
    differing = ours.predicted != theirs.predicted
    disagree = int((differing.any(axis=1) if ours.multilabel else differing).sum())
    return {**pairs, "images": len(ours.patients), "patients": ours.number_of_patients, "disagree": disagree}


def _by_contributions(
    estimates: Sequence[dict[str, Estimate]], names: Sequence[str], weights: NDArray[np.uint16], settings: Settings
) -> dict[str, Comparison]:
    """Compare smooth figures: a draw's difference is the sum of the contributions of its patients."""
    if not names:
        return {}
    added = np.stack([estimates[0][name].by_patient - estimates[1][name].by_patient for name in names], axis=1)
    draws = resample(lambda weights: {"all": weights @ added}, weights)["all"]
    result = {}
    for column, name in enumerate(names):
        ours, theirs = (model[name] for model in estimates)
        patients = min(ours.patients, theirs.patients)
        result[name] = compare_draws(ours.value, theirs.value, draws[:, column], patients, settings.confidence)
    return result


def _by_resampling(
    ours: Predictions, theirs: Predictions, weights: NDArray[np.uint16], settings: Settings
) -> dict[str, Comparison]:
    """Compare all other figures: both are computed again for each draw of patients."""
    measures = [Measure(model, settings.ordered) for model in (ours, theirs)]
    values = [measure(equal_weights(ours)) for measure in measures]
    draws = [resample(measure, weights) for measure in measures]
    known = [name for name in values[0] if "/" not in name]
    service = _with_intervals(theirs, {name: float(values[1][name][0]) for name in known}, draws[1], settings)
    return {
        name: _service(service[name])
        | compare_draws(
            float(values[0][name][0]),
            float(values[1][name][0]),
            draws[0][name] - draws[1][name],
            ours.number_of_patients,
            settings.confidence,
            less_is_better=FIGURES[name].lower_is_better,
            widest=FIGURES[name].high - FIGURES[name].low,
        )
        for name in known
    }


def _service(figure: Figure) -> Comparison:
    """Return the interval of a figure of the model in service."""
    return {"theirs_low": figure["low"], "theirs_high": figure["high"]}


def rounded(value: Any) -> Any:
    """Return the value with numbers rounded to 10 decimals and null for NaN and infinity, for JSON."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return round(float(value), 10) + 0.0 if np.isfinite(value) else None
    return value


def population_names(core: NDArray[np.bool_] | None, length: int) -> list[str]:
    """Return the population of each image: core or new, or all if there is no model in service."""
    return ["all"] * length if core is None else ["core" if inside else "new" for inside in core]


def probability_difference(ours: Floats, others: Floats) -> float:
    """Return the largest difference between two models' probabilities for the same image and class."""
    return float(np.abs(ours - others).max())
