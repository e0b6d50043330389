"""Formatting of figures, intervals, p values and counts for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.shared.metric_catalogue import FIGURES

TESTS = {"mcnemar": "McNemar", "delong": "DeLong", "bootstrap": "bootstrap"}
NONE = "–"


def number(name: str, value: float | None) -> str:
    """Format the value of a figure."""
    if value is None:
        return NONE
    return f"{_plain(100 * value, 1)} %" if FIGURES[name].percent else _plain(value, 3)


def _plain(value: float, digits: int, sign: str = "") -> str:
    """Format a number with a true minus sign, and without a sign if it rounds to zero."""
    text = f"{value:{sign}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def interval(name: str, figure: Mapping[str, Any]) -> str:
    """Format the interval of a figure, or "no interval"."""
    low, high = figure["low"], figure["high"]
    if low is None or high is None:
        return "no interval"
    return f"{number(name, low)} to {number(name, high)}".replace(" % to", " to")


def written(name: str, figure: Mapping[str, Any] | None) -> dict[str, Any]:
    """Format a figure for a page: title, value, interval, and its position on a scale from 0 to 100."""
    title = FIGURES[name].title
    if figure is None or figure["value"] is None:
        return {"name": title, "value": NONE, "interval": "", "bar": None}
    bar = None
    if figure["low"] is not None:
        low, high, at = (round(100 * figure[end], 1) for end in ("low", "high", "value"))
        bar = {"low": low, "width": round(high - low, 1), "at": at}
    return {"name": title, "value": number(name, figure["value"]), "interval": interval(name, figure), "bar": bar}


def meaning(name: str, metrics: Mapping[str, Any]) -> str:
    """Return a sentence that explains a figure without statistics."""
    value, positive = metrics["all"]["figures"][name]["value"], metrics["positive"]
    if value is None:
        return "This figure cannot be computed from these test images."
    findings = metrics["task"] == "multilabel"
    figure = FIGURES[name]
    return ((findings and figure.meaning_of_findings) or figure.meaning).format(
        n=int(100 * value + 0.5),
        off=f"{100 * value:.1f}",
        what=positive or ("a finding" if findings else "a class"),
        mean="" if positive else f" This is the mean over the {'findings' if findings else 'classes'}.",
    )


def difference(name: str, pair: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of two models, their difference with its interval, and a verdict."""
    unit = " points" if FIGURES[name].percent else ""

    def signed(value: float | None) -> str:
        if value is None:
            return NONE
        return _plain(100 * value, 1, "+") if unit else _plain(value, 3, "+")

    low, high = pair["low"], pair["high"]
    if low is None or high is None:
        verdict = "cannot be computed" if pair["difference"] is None else "too few patients"
    elif low > 0 or high < 0:
        verdict = "better" if (low > 0) != FIGURES[name].lower_is_better else "worse"
    else:
        verdict = "no difference shown"
    return {
        "name": FIGURES[name].title,
        "ours": number(name, pair["ours"]),
        "theirs": number(name, pair["theirs"]),
        "difference": f"{signed(pair['difference'])}{unit}",
        "interval": "" if low is None else f"{signed(low)} to {signed(high)}",
        "p": chance(pair.get("p")),
        "test": TESTS.get(pair.get("test", ""), ""),
        "verdict": verdict,
    }


def gap(name: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Format the gap between two groups with its interval."""
    unit, scale, digits = (" points", 100, 1) if FIGURES[name].percent else ("", 1, 3)
    value, low, high = (_plain(scale * record[end], digits) for end in ("gap", "low", "high"))
    return {"value": f"{value}{unit}", "interval": f"{low} to {high}"}


def chance(p: float | None) -> str:
    """Format a p value."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def size(number_of_bytes: int) -> str:
    """Format a file size."""
    if number_of_bytes < 1_000_000:
        return f"{number_of_bytes / 1000:.1f} kB"
    return f"{number_of_bytes / 1_000_000:.1f} MB"


def count(number_of_things: int, thing: str) -> str:
    """Return a number and a noun, in the plural unless the number is 1."""
    return f"{number_of_things:,} {thing}{'' if number_of_things == 1 else 's'}"
