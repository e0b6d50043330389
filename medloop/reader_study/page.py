"""The HTML page of a reader study: one self-contained file, without data of patients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.shared.metric_catalogue import FIGURES
from components.shared.reporting import plots
from components.shared.reporting.formatting import NONE, count, interval, number
from components.shared.reporting.pages import template
from medloop.reader_study.study_figures import NAMES, WAYS

WORDS = {"unaided": "alone", "aided": "with the model’s help"}
BANDS = (
    (0.0, "none"),
    (0.2, "slight"),
    (0.4, "fair"),
    (0.6, "moderate"),
    (0.8, "substantial"),
    (1.01, "almost perfect"),
)
"""Upper limits of kappa and the conventional terms of Landis and Koch (1977)."""


def page(figures: Mapping[str, Any], curve: Mapping[str, Any] | None) -> str:
    """Return the page; `curve` is the model's ROC curve on the images that were read."""
    names = [name for name in NAMES if figures["model"][name] is not None]
    return template(Path(__file__).parent, "readers.html.j2").render(
        figures=figures,
        task=" or ".join(figures["classes"]),
        percent=f"{100 * figures['confidence']:g}",
        who=f"{count(len(figures['readers']), 'reader')}, {count(figures['images'], 'test image')} of "
        f"{count(figures['patients'], 'patient')}",
        names=[FIGURES[name].title for name in names],
        effect=_effect(figures["effect"]["figures"]),
        readers=[_reader(reader, names) for reader in figures["readers"]],
        model=[_cell(name, figures["model"][name]) for name in names],
        agreement=[_agreement(figures["agreement"][way], WORDS[way]) for way in WAYS],
        drawing=_roc(figures, curve) if curve else "",
    )


def _effect(figures: Mapping[str, Any] | None) -> list[dict[str, str]]:
    return [
        {
            "name": FIGURES[name].title,
            "unaided": number(name, effect["unaided"]),
            "aided": number(name, effect["aided"]),
            "difference": _signed(name, effect["difference"]),
            "interval": _range(name, effect),
            "p": NONE if effect["p"] is None else f"{effect['p']:.3f}" if effect["p"] >= 0.001 else "< 0.001",
        }
        for name, effect in (figures or {}).items()
        if effect is not None
    ]


def _reader(reader: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    rows = [
        {
            "way": WORDS[way],
            "images": reader[way]["images"],
            "cells": [_cell(name, reader[way][name]) for name in names],
        }
        for way in WAYS
        if reader[way]
    ]
    differences = reader["difference"]
    return {
        "number": reader["number"],
        "name": reader["reader"],
        "rows": rows,
        "differences": [_difference(name, differences[name]) for name in names] if differences else [],
    }


def _difference(name: str, figure: Mapping[str, Any] | None) -> dict[str, str]:
    value, bounds = (_signed(name, figure["difference"]), _range(name, figure)) if figure else (NONE, "")
    return {"name": FIGURES[name].title, "value": value, "range": bounds}


def _cell(name: str, figure: Mapping[str, Any] | None) -> dict[str, str]:
    if figure is None or figure["value"] is None:
        return {"name": FIGURES[name].title, "value": NONE, "range": ""}
    return {"name": FIGURES[name].title, "value": number(name, figure["value"]), "range": interval(name, figure)}


def _signed(name: str, value: float) -> str:
    text = f"{100 * value:+.1f} points" if FIGURES[name].percent else f"{value:+.3f}"
    return text.replace("-", "−")


def _range(name: str, figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return "no interval"
    return f"{_signed(name, figure['low'])} to {_signed(name, figure['high'])}".replace(" points to", " to")


def _agreement(agreement: Mapping[str, Any] | None, way: str) -> dict[str, str]:
    if agreement is None:
        return {"way": way, "value": NONE, "words": "Too few images were read by two or more readers."}
    kappa = agreement["kappa"]
    basis = f"{agreement['method']}’s kappa of {agreement['readers']} readers on {count(agreement['images'], 'image')}"
    if kappa["value"] is None:
        return {"way": way, "value": NONE, "words": f"{basis}: undefined, as all calls name the same class."}
    band = next(word for top, word in BANDS if kappa["value"] <= top)
    return {
        "way": way,
        "value": f"{number('kappa', kappa['value'])}, {interval('kappa', kappa)}",
        "words": f"{basis}: {band}.",
    }


def _roc(figures: Mapping[str, Any], curve: Mapping[str, Any]) -> str:
    """Return the plot of the model's ROC curve with two connected points per reader: open alone, filled with help."""
    figure, axes = plots.square("false positive rate (1 − specificity)", "sensitivity")
    axes.plot([0, 1], [0, 1], color=plots.FAINT, linewidth=1, zorder=1)
    axes.plot(curve["fpr"], curve["tpr"], label="model", **plots.LINES[0])
    drawn = set()
    for reader in figures["readers"]:
        points = {way: _point(reader[way]) for way in WAYS if reader[way]}
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
            axes.annotate(str(reader["number"]), at, xytext=(6, -11), textcoords="offset points", fontsize=9)
    return plots.svg(figure, axes, "readers")


def _point(figures: Mapping[str, Any]) -> tuple[float, float] | None:
    if figures["sensitivity"] is None or figures["specificity"] is None:
        return None
    return 1 - figures["specificity"]["value"], figures["sensitivity"]["value"]
