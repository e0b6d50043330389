"""The page of a reader study: one self-contained file; it names readers as the table does, and no patient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.shared.figures import FIGURES
from components.shared.reporting import plots
from components.shared.reporting.formatting import NONE, count, interval, number
from components.shared.reporting.pages import template
from medloop.reader_study.study import NAMES, WAYS

WORDS = {"unaided": "alone", "aided": "with the model’s help"}
BANDS = ((0.0, "none"), (0.2, "slight"), (0.4, "fair"), (0.6, "moderate"), (0.8, "substantial"), (1.01, "nearly full"))
"""Landis and Koch's words for a kappa up to these values (1977): a habit, no law."""


def page(figures: Mapping[str, Any], curve: Mapping[str, Any] | None) -> str:
    """The whole page; `curve` is the model's ROC curve on the images that were read."""
    names = [name for name in NAMES if figures["model"][name] is not None]
    return template(Path(__file__).parent, "readers.html.j2").render(
        figures=figures,
        task=" or ".join(figures["classes"]),
        percent=f"{100 * figures['confidence']:g}",
        who=f"{count(len(figures['readers']), 'reader')}, {count(figures['images'], 'test image')} of "
        f"{count(figures['patients'], 'patient')}",
        names=[FIGURES[name].title for name in names],
        effect=_effect(figures["effect"]["figures"]),
        readers=[_reader(each, names) for each in figures["readers"]],
        model=[_cell(name, figures["model"][name]) for name in names],
        agreement=[_agreement(figures["agreement"][way], WORDS[way]) for way in WAYS],
        drawing=_roc(figures, curve) if curve else "",
    )


def _effect(figures: Mapping[str, Any] | None) -> list[dict[str, str]]:
    return [
        {
            "name": FIGURES[name].title,
            "unaided": number(name, found["unaided"]),
            "aided": number(name, found["aided"]),
            "difference": _signed(name, found["difference"]),
            "interval": _range(name, found),
            "p": NONE if found["p"] is None else f"{found['p']:.3f}" if found["p"] >= 0.001 else "< 0.001",
        }
        for name, found in (figures or {}).items()
        if found is not None
    ]


def _reader(told: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    rows = [
        {
            "way": WORDS[way],
            "images": told[way]["images"],
            "cells": [_cell(name, told[way][name]) for name in names],
        }
        for way in WAYS
        if told[way]
    ]
    gains = told["difference"]
    return {
        "number": told["number"],
        "name": told["reader"],
        "rows": rows,
        "gains": [_gain(name, gains[name]) for name in names] if gains else [],
    }


def _gain(name: str, found: Mapping[str, Any] | None) -> dict[str, str]:
    value, between = (_signed(name, found["difference"]), _range(name, found)) if found else (NONE, "")
    return {"name": FIGURES[name].title, "value": value, "range": between}


def _cell(name: str, figure: Mapping[str, Any] | None) -> dict[str, str]:
    if figure is None or figure["value"] is None:
        return {"name": FIGURES[name].title, "value": NONE, "range": ""}
    return {"name": FIGURES[name].title, "value": number(name, figure["value"]), "range": interval(name, figure)}


def _signed(name: str, value: float) -> str:
    text = f"{100 * value:+.1f} points" if FIGURES[name].percent else f"{value:+.3f}"
    return text.replace("-", "−")


def _range(name: str, found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return "no interval"
    return f"{_signed(name, found['low'])} to {_signed(name, found['high'])}".replace(" points to", " to")


def _agreement(found: Mapping[str, Any] | None, way: str) -> dict[str, str]:
    if found is None:
        return {"way": way, "value": NONE, "words": "Fewer than two readers read enough images together."}
    kappa = found["kappa"]
    told = f"{found['method']}’s kappa of {found['readers']} readers on {count(found['images'], 'image')}"
    if kappa["value"] is None:
        return {"way": way, "value": NONE, "words": f"{told}: all named one class alone, which chance explains."}
    band = next(word for top, word in BANDS if kappa["value"] <= top)
    return {
        "way": way,
        "value": f"{number('kappa', kappa['value'])}, {interval('kappa', kappa)}",
        "words": f"{told}: {band}.",
    }


def _roc(figures: Mapping[str, Any], curve: Mapping[str, Any]) -> str:
    """The model's curve, and each reader as a point: open alone, filled with help, a line between the two."""
    figure, axes = plots.square("share of false alarms (1 − specificity)", "sensitivity")
    axes.plot([0, 1], [0, 1], color=plots.FAINT, linewidth=1, zorder=1)
    axes.plot(curve["fpr"], curve["tpr"], label="the model", **plots.LINES[0])
    drawn = set()
    for told in figures["readers"]:
        points = {way: _point(told[way]) for way in WAYS if told[way]}
        known = {way: point for way, point in points.items() if point}
        if len(known) == 2:
            axes.plot(*zip(*known.values(), strict=True), color=plots.GREY, linewidth=1.2, zorder=3)
        for way, (across, up) in known.items():
            fill = "white" if way == "unaided" else "#8a5a00"
            label = None if way in drawn else f"reader, {WORDS[way]}"
            drawn.add(way)
            axes.plot(
                across, up, "o" if way == "unaided" else "s", color=fill, markeredgecolor="#8a5a00",
                markeredgewidth=1.6, markersize=7, zorder=4, label=label, linestyle="none",
            )  # fmt: skip
        if known:
            at = next(iter(known.values()))
            axes.annotate(str(told["number"]), at, xytext=(6, -11), textcoords="offset points", fontsize=9)
    return plots.svg(figure, axes, "readers")


def _point(told: Mapping[str, Any]) -> tuple[float, float] | None:
    if told["sensitivity"] is None or told["specificity"] is None:
        return None
    return 1 - told["specificity"]["value"], told["sensitivity"]["value"]
