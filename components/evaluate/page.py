"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.evaluate import figure_tables, gallery, report_background, subgroup_tables
from components.evaluate.subgroups import MIN_PATIENTS
from components.shared.metric_catalogue import FIGURES, HEADLINE, KEY
from components.shared.reporting import plots
from components.shared.reporting.pages import template

MAX_OPEN_PLOTS = 4
"""With more plots than this of a kind, all kinds but the first are folded."""

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
    """Return the HTML of the report.

    sources: records of dataset, split and model
    described: field values of each test image, such as sex and site
    mistakes: wrong answers (mistakes.py)
    sheet: PNG of augmented training images, if the model has one
    pictures: PNGs of the explanations by file name
    """
    everything = metrics["all"]
    return template(Path(__file__).parent, "report.html.j2").render(
        metrics=metrics,
        all=everything,
        dataset=sources["dataset"]["name"],
        architecture=sources["model"]["architecture"],
        task=" or ".join(metrics["classes"]) if metrics["positive"] else ", ".join(metrics["classes"]),
        multilabel=metrics["task"] == "multilabel",
        percent=f"{100 * metrics['confidence']:g}",
        tested=figure_tables.tested(everything),
        cards=[figure_tables.card(name, metrics) for name in KEY],
        headline=figure_tables.tables(metrics, HEADLINE),
        further=figure_tables.tables(metrics, figure_tables.FURTHER),
        service_error=metrics.get("service_error"),
        micro=figure_tables.micro(metrics),
        points=figure_tables.operating_points(metrics),
        points_by_class=figure_tables.points_by_class(metrics),
        drawings=_drawings(metrics, rival_curves),
        max_open_plots=MAX_OPEN_PLOTS,
        confusion=figure_tables.confusions(metrics),
        per_class=figure_tables.per_class(metrics),
        figure_names=[FIGURES[name].title for name in figure_tables.PER_CLASS],
        population=subgroup_tables.population(everything, described),
        subgroups=subgroup_tables.subgroups(metrics["subgroups"]),
        gaps=subgroup_tables.gaps(metrics["gaps"]),
        key_figures=[FIGURES[name].title for name in KEY],
        small=MIN_PATIENTS,
        explained=gallery.explained(metrics["explanations"], pictures or {}),
        mistakes=gallery.mistakes(mistakes, metrics),
        shipped=report_background.shipped(metrics["as_trained"], metrics["subject"]["precision"]),
        shortcuts=report_background.shortcuts(metrics["shortcuts"]),
        augmented=report_background.augmented(sources["model"], sheet),
        data_quality=report_background.data_quality(metrics["data"]),
        speed=report_background.speed(metrics),
        lineage=report_background.lineage(metrics, sources),
        parameters=report_background.parameters(sources["model"].get("parameters", {})),
    )


def _drawings(metrics: Metrics, rival_curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each kind of plot a panel for the positive class, or one for each class or finding."""
    everything, positive = metrics["all"], metrics["positive"]
    names = [positive] if positive else metrics["classes"]
    in_use = {p["class"]: p for p in metrics["operating_points"] if p["at"] == figure_tables.IN_USE}
    panels: dict[str, list[dict[str, str]]] = {"roc": [], "pr": [], "calibration": []}
    for number, name in enumerate(names):
        curves = {kind: everything[kind] if positive else everything[f"{kind}_by_class"][name] for kind in panels}
        rival, auc = rival_curves.get(name, {}), everything["per_class"][name]["auc"]["value"]
        suffix, small = f"{number}" if number else "", not positive
        if curves["roc"]:
            chosen = in_use.get(name)
            point = (1 - chosen["specificity"]["value"], chosen["sensitivity"]["value"]) if chosen else None
            svg = plots.roc(curves["roc"], rival.get("roc"), point, f"roc{suffix}", small)
            label = f"ROC curve of {name}, AUC {auc:.3f}"
            panels["roc"].append({"name": name, "svg": svg, "label": label, "auc": f"{auc:.3f}"})
            share = everything["by_class"][name] / everything["images"]
            svg = plots.precision_recall(curves["pr"], rival.get("pr"), share, f"pr{suffix}", small)
            panels["pr"].append({"name": name, "svg": svg, "label": f"Precision-recall curve of {name}"})
        svg = plots.calibration(curves["calibration"], rival.get("calibration"), f"calibration{suffix}", small)
        panels["calibration"].append({"name": name, "svg": svg, "label": f"Calibration of {name}"})
    return [{"kind": kind, "panels": panels[kind]} for kind in panels]
