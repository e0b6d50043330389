"""The report as one self-contained page, for people who decide about patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.evaluate import background, gallery, groups, headlines
from components.evaluate.subgroups import SMALL
from components.shared.figures import FIGURES, HEADLINE, KEY
from components.shared.reporting import plots
from components.shared.reporting.pages import template
from components.shared.reporting.wording import count

MANY = 4
"""Plots of more classes than these are folded, but for the first kind."""

Metrics = Mapping[str, Any]


def page(
    metrics: Metrics,
    sources: Mapping[str, Any],
    described: Mapping[str, Sequence[str]],
    rival_curves: Mapping[str, Any],
    mistakes: Mapping[str, Any],
    sheet: bytes | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> str:
    """The whole page. `sources` are the records of dataset, split and model; `described` says what each image shows.

    `mistakes` are the wrong answers (mistakes.py); `sheet` is a PNG of training images as the network saw them, where
    the model has one; `pictures` are the PNGs of the explanations, by their file.
    """
    everything = metrics["all"]
    return template(Path(__file__).parent, "report.html.j2").render(
        metrics=metrics,
        all=everything,
        dataset=sources["dataset"]["name"],
        architecture=sources["model"]["architecture"],
        task=" or ".join(metrics["classes"]) if metrics["positive"] else ", ".join(metrics["classes"]),
        several=metrics["task"] == "multilabel",
        percent=f"{100 * metrics['confidence']:g}",
        tested=f"{count(everything['images'], 'image')} of {count(everything['patients'], 'patient')}",
        cards=[headlines.explained(name, metrics) for name in KEY],
        headline=headlines.tables(metrics, HEADLINE),
        further=headlines.tables(metrics, headlines.FURTHER),
        service_error=metrics.get("service_error"),
        micro=headlines.micro(metrics),
        points=headlines.operating_points(metrics),
        points_by_class=headlines.points_by_class(metrics),
        drawings=_drawings(metrics, rival_curves),
        many=MANY,
        confusion=headlines.confusions(metrics),
        per_class=headlines.per_class(metrics),
        figure_names=[FIGURES[name].title for name in headlines.PER_CLASS],
        whom=groups.whom(everything, described),
        subgroups=groups.subgroups(metrics["subgroups"]),
        gaps=groups.gaps(metrics["gaps"]),
        judged=[FIGURES[name].title for name in KEY],
        small=SMALL,
        explained=gallery.explained(metrics["explanations"], pictures or {}),
        mistakes=gallery.mistakes(mistakes, metrics),
        shipped=background.shipped(metrics["as_trained"], metrics["subject"]["precision"]),
        shortcuts=background.shortcuts(metrics["shortcuts"]),
        seen=background.seen(sources["model"], sheet),
        soundness=background.soundness(metrics["data"]),
        speed=background.speed(metrics),
        lineage=background.lineage(metrics, sources),
        parameters=background.parameters(sources["model"].get("parameters", {})),
    )


def _drawings(metrics: Metrics, rival_curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By kind of plot a panel for the positive class, or one for each class or finding."""
    everything, positive = metrics["all"], metrics["positive"]
    names = [positive] if positive else metrics["classes"]
    in_use = {p["class"]: p for p in metrics["operating_points"] if p["at"] == headlines.IN_USE}
    panels: dict[str, list[dict[str, str]]] = {"roc": [], "pr": [], "calibration": []}
    for number, name in enumerate(names):
        curves = {kind: everything[kind] if positive else everything[f"{kind}_by_class"][name] for kind in panels}
        rival, auc = rival_curves.get(name, {}), everything["per_class"][name]["auc"]["value"]
        place, small = f"{number}" if number else "", not positive
        if curves["roc"]:
            told = in_use.get(name)
            point = (1 - told["specificity"]["value"], told["sensitivity"]["value"]) if told else None
            drawn = plots.roc(curves["roc"], rival.get("roc"), point, f"roc{place}", small)
            panels["roc"].append(
                {"name": name, "svg": drawn, "said": f"ROC curve of {name}, AUC {auc:.3f}", "auc": f"{auc:.3f}"}
            )
            share = everything["by_class"][name] / everything["images"]
            drawn = plots.precision_recall(curves["pr"], rival.get("pr"), share, f"pr{place}", small)
            panels["pr"].append({"name": name, "svg": drawn, "said": f"Precision and recall of {name}"})
        drawn = plots.calibration(curves["calibration"], rival.get("calibration"), f"calibration{place}", small)
        panels["calibration"].append({"name": name, "svg": drawn, "said": f"Calibration of {name}"})
    return [{"kind": kind, "panels": several} for kind, several in panels.items()]
