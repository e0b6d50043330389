"""Figures in words and numbers for people: how they are written, and what each means in one plain sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PERCENT = ("accuracy", "exact_match", "balanced_accuracy", "sensitivity", "specificity", "precision")
"""Figures written in per cent; the others are written from 0 to 1."""
LESS_IS_BETTER = ("brier", "calibration_error")
NAMES = {
    "accuracy": "Accuracy",
    "exact_match": "All findings right",
    "balanced_accuracy": "Balanced accuracy",
    "auc": "AUC",
    "pr_auc": "PR-AUC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "kappa": "Cohen’s kappa",
    "weighted_kappa": "Weighted kappa",
    "brier": "Brier score",
    "calibration_error": "Calibration error",
}
TESTS = {"mcnemar": "McNemar", "delong": "DeLong", "bootstrap": "bootstrap"}
NONE = "–"


def number(name: str, value: float | None) -> str:
    """A figure's value as it is written."""
    if value is None:
        return NONE
    return f"{_plain(100 * value, 1)} %" if name in PERCENT else _plain(value, 3)


def _plain(value: float, digits: int, sign: str = "") -> str:
    """A number with so many decimals, a true minus, and no sign before zero."""
    text = f"{value:{sign}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def interval(name: str, figure: Mapping[str, Any]) -> str:
    """A figure's interval as it is written, or that there is none."""
    low, high = figure["low"], figure["high"]
    if low is None or high is None:
        return "no interval"
    return f"{number(name, low)} to {number(name, high)}".replace(" % to", " to")


def written(name: str, figure: Mapping[str, Any] | None) -> dict[str, Any]:
    """A figure for the page: its number, its interval, and where they lie on a scale from 0 to 100."""
    if figure is None or figure["value"] is None:
        return {"name": NAMES[name], "value": NONE, "interval": "", "bar": None}
    bar = None
    if figure["low"] is not None:
        low, high, at = (round(100 * figure[end], 1) for end in ("low", "high", "value"))
        bar = {"low": low, "width": round(high - low, 1), "at": at}
    return {"name": NAMES[name], "value": number(name, figure["value"]), "interval": interval(name, figure), "bar": bar}


def meaning(name: str, metrics: Mapping[str, Any]) -> str:
    """What a figure means, in a sentence that needs no statistics."""
    figure = metrics["all"]["figures"][name]
    positive, value = metrics["positive"], figure["value"]
    if value is None:
        return "These test images cannot give this figure."
    of_100 = str(int(100 * value + 0.5))
    several = metrics["task"] == "multilabel"
    class_name = positive or ("a finding" if several else "a class")
    mean = "" if positive else f" This is the mean over the {'findings' if several else 'classes'}."
    each = f"Of 100 answers to whether a finding is there, about {of_100} are right."
    sentences = {
        "accuracy": each if several else f"Of 100 images like these, it names the right class for about {of_100}.",
        "exact_match": f"Of 100 images like these, it is right on every finding for about {of_100}.",
        "balanced_accuracy": f"Were each finding there on half of the images, about {of_100} of 100 answers would be "
        "right."
        if several
        else f"Were all classes equally frequent, it would be right for about {of_100} of 100 images.",
        "auc": f"Shown one image with {class_name} and one without, it tells which is which in about {of_100} of 100 "
        f"such pairs; a coin would in 50.{mean}",
        "pr_auc": f"The mean precision over all thresholds; calling every image gives the share of {class_name}.{mean}",
        "sensitivity": f"Of 100 images with {class_name}, it finds about {of_100}.{mean}",
        "specificity": f"Of 100 images without {class_name}, it rightly leaves about {of_100} uncalled.{mean}",
        "precision": f"Of 100 images that it calls {class_name}, about {of_100} are. This depends on how frequent the "
        f"class is among the images.{mean}",
        "f1": f"The harmonic mean of sensitivity and precision; 1 is best.{mean}",
        "kappa": "Agreement with the labels beyond what chance would give; 1 is full agreement, 0 is chance.",
        "weighted_kappa": "Agreement beyond chance, where an error weighs the more the further it is off.",
        "brier": "The mean squared error of the stated probabilities; 0 is best.",
        "calibration_error": f"The stated probabilities are off by {100 * value:.1f} percentage points on average."
        f"{mean}",
    }
    return sentences[name]


def difference(name: str, pair: Mapping[str, Any]) -> dict[str, str]:
    """Two models' figures beside each other, the difference with its interval, and what it shows."""
    unit = " points" if name in PERCENT else ""

    def signed(value: float | None) -> str:
        if value is None:
            return NONE
        return _plain(100 * value, 1, "+") if unit else _plain(value, 3, "+")

    low, high = pair["low"], pair["high"]
    if low is None or high is None:
        verdict = "cannot be told"
    elif low > 0 or high < 0:
        verdict = "better" if (low > 0) != (name in LESS_IS_BETTER) else "worse"
    else:
        verdict = "no difference shown"
    return {
        "name": NAMES[name],
        "ours": number(name, pair["ours"]),
        "theirs": number(name, pair["theirs"]),
        "difference": f"{signed(pair['difference'])}{unit}",
        "interval": "" if low is None else f"{signed(low)} to {signed(high)}",
        "p": chance(pair.get("p")),
        "test": TESTS.get(pair.get("test", ""), ""),
        "verdict": verdict,
    }


def apart(name: str, gap: Mapping[str, Any]) -> dict[str, str]:
    """How far two groups lie apart, with the interval."""
    unit, scale, digits = (" points", 100, 1) if name in PERCENT else ("", 1, 3)
    value, low, high = (_plain(scale * gap[end], digits) for end in ("gap", "low", "high"))
    return {"value": f"{value}{unit}", "interval": f"{low} to {high}"}


def chance(p: float | None) -> str:
    """A p value as it is written."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def size(number_of_bytes: int) -> str:
    """A file's size for people."""
    if number_of_bytes < 1_000_000:
        return f"{number_of_bytes / 1000:.1f} kB"
    return f"{number_of_bytes / 1_000_000:.1f} MB"


def count(number_of_things: int, thing: str) -> str:
    """So many things, in the plural where there are more."""
    return f"{number_of_things:,} {thing}{'' if number_of_things == 1 else 's'}"
