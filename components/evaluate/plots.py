"""The report's plots as inline SVG: the same bytes for the same figures, and readable in black and white."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, GREY, FAINT = "#17324d", "#6b7785", "#c9d1d9"
STYLE: Any = {
    "svg.hashsalt": "medloop",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 11.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333c45",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#333c45",
    "ytick.color": "#333c45",
    "xtick.direction": "out",
    "legend.frameon": False,
    "legend.fontsize": 10,
}
LINES: Sequence[dict[str, Any]] = (
    {"color": INK, "linestyle": "-", "linewidth": 2.2},
    {"color": "#8a5a00", "linestyle": (0, (5, 2)), "linewidth": 2.0},
    {"color": "#5b6b2f", "linestyle": (0, (1, 1.4)), "linewidth": 2.2},
    {"color": "#7a3b5e", "linestyle": (0, (6, 2, 1, 2)), "linewidth": 2.0},
    {"color": GREY, "linestyle": (0, (3, 1, 1, 1, 1, 1)), "linewidth": 1.8},
)
MARKERS = "osD^v"
RIVAL: dict[str, Any] = {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 1.6}
"""How the model in service is drawn beside the one that was tested."""

Curves = Mapping[str, Any]
"""By the legend's words: what to draw."""


def roc(ours: Curves, rival: Any, point: tuple[float, float] | None) -> str:
    """Sensitivity against false alarms, with the point at which the model decides."""
    figure, axes = square("share of false alarms (1 − specificity)", "sensitivity")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
    axes.text(0.69, 0.62, "chance", color=GREY, fontsize=9, rotation=45, ha="center", va="center")
    for (name, line), look in zip(ours.items(), _looks(len(ours)), strict=True):
        axes.plot(line["fpr"], line["tpr"], label=name, **look)
    if rival:
        axes.plot(rival["fpr"], rival["tpr"], label="model in service", **RIVAL)
    if point:
        axes.plot(*point, "o", color="white", markeredgecolor=INK, markeredgewidth=2, markersize=9, zorder=5)
        axes.plot([], [], "o", color="white", markeredgecolor=INK, markeredgewidth=2, label="threshold in use")
    return svg(figure, axes, "roc")


def precision_recall(ours: Curves, rival: Any, shares: Mapping[str, float]) -> str:
    """How many of the called images are right, against how many are found."""
    figure, axes = square("sensitivity (recall)", "precision")
    for (name, line), look in zip(ours.items(), _looks(len(ours)), strict=True):
        axes.plot(line["recall"], line["precision"], label=name, **look)
        axes.axhline(shares[name], color=look["color"], linewidth=1.3, linestyle=":", zorder=1)
    if rival:
        axes.plot(rival["recall"], rival["precision"], label="model in service", **RIVAL)
    axes.plot([], [], color=GREY, linewidth=1.3, linestyle=":", label="calling every image")
    return svg(figure, axes, "pr")


def calibration(ours: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """What the model said against what came true, with intervals."""
    figure, axes = square("probability that the model states", "share that is truly of the class")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
    axes.text(0.69, 0.62, "ideal", color=GREY, fontsize=9, rotation=45, ha="center", va="center")
    for (name, points), look, marker in zip(ours.items(), _looks(len(ours)), MARKERS * len(ours), strict=False):
        stated, observed = [p["predicted"] for p in points], [p["observed"] for p in points]
        below = [max(0.0, p["observed"] - p["low"]) for p in points]
        above = [max(0.0, p["high"] - p["observed"]) for p in points]
        drawn = axes.errorbar(
            stated,
            observed,
            yerr=[below, above],
            marker=marker,
            markersize=5.5,
            capsize=2.5,
            elinewidth=1,
            label=name,
            **{**look, "linewidth": 1.2},
        )
        for bar in drawn.lines[2]:
            bar.set_linestyle("-")
    return svg(figure, axes, "calibration")


def _looks(number: int) -> list[dict[str, Any]]:
    return [dict(LINES[place % len(LINES)]) for place in range(number)]


def square(across: str, up: str) -> tuple[Figure, Axes]:
    """An empty plot from 0 to 1 in both directions."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 5.0))
        axes = figure.add_axes((0.135, 0.265, 0.845, 0.72))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=across, ylabel=up)
        ticks = [0, 0.25, 0.5, 0.75, 1]
        axes.set_xticks(ticks, ["0", ".25", ".5", ".75", "1"])
        axes.set_yticks(ticks, ["0", ".25", ".5", ".75", "1"])
        axes.grid(color="#eceff2", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, axes


def svg(figure: Figure, axes: Axes, name: str) -> str:
    """The figure as an SVG element to stand in a page: no addresses, and ids that no other plot has."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": f"medloop {name}"}):
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.47, -0.15), ncols=2, handlelength=2.4, columnspacing=1.6)
        file = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own font
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text).replace("url(#", f"url(#{name}-")
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
