"""The report's plots as inline SVG: the same bytes for the same figures, and readable in black and white.

A panel shows one class or finding. Lines differ in dashes and markers and are labelled, so that neither colours nor a
legend are needed. Small panels have no labels: the page has one key for all of them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from components.shared.statistics.intervals import Floats

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
OURS: dict[str, Any] = LINES[0]
RIVAL: dict[str, Any] = {"color": "#55606b", "linestyle": (0, (4, 2)), "linewidth": 1.6}
"""Style of the curves of the model in service."""
SHAPES: Any = {
    "": ((4.5, 5.0), (0.135, 0.265, 0.845, 0.72)),
    "large": ((4.4, 4.4), (0.125, 0.115, 0.86, 0.87)),
    "small": ((3.1, 3.1), (0.175, 0.16, 0.805, 0.825)),
}
"""Size of the figure and position of the axes by kind of panel."""
LABEL_STEP = 0.095
"""Vertical distance between labels."""
MARKERS = 9
"""Hollow squares on the curve of the model in service."""

Curve = Mapping[str, Sequence[float]]
Points = Sequence[Mapping[str, float]]


def roc(ours: Curve, rival: Curve | None, point: tuple[float, float] | None, name: str, small: bool = False) -> str:
    """Draw the ROC curve, with the operating point in use."""
    figure, axes = square("false positive rate (1 − specificity)", "sensitivity", _panel(small))
    _diagonal(axes, "chance")
    lines = _both(axes, (ours["fpr"], ours["tpr"]), rival and (rival["fpr"], rival["tpr"]))
    texts = [
        (words, (float(np.interp(up, y, x)), up), colour)
        for (words, x, y, colour), up in zip(lines, _label_positions(lines, 1), strict=True)
    ]
    if point:
        axes.plot(*point, "o", color="white", markeredgecolor=INK, markeredgewidth=2, markersize=9, zorder=5)
        texts = [("threshold in use", point, INK), *texts]
    for number, (words, at, colour) in enumerate([] if small else texts):
        _label(axes, words, at, (0.4, 0.36 - LABEL_STEP * number), colour)
    return svg(figure, axes, name)


def precision_recall(ours: Curve, rival: Curve | None, share: float, name: str, small: bool = False) -> str:
    """Draw the precision-recall curve; `share` is the share of images with the class."""
    figure, axes = square("sensitivity (recall)", "precision", _panel(small))
    axes.axhline(share, color=GREY, linewidth=1.3, linestyle=":", zorder=1)
    below = share > 0.12
    baseline, up = f"all predicted positive: {100 * share:.0f} %", share - 0.015 if below else share + 0.015
    axes.text(1.0, up, baseline, color="#333c45", fontsize=9.5, ha="right", va="top" if below else "bottom")
    lines = _both(axes, (ours["recall"], ours["precision"]), rival and (rival["recall"], rival["precision"]))
    lowest = min(float(y[(x > 0.1) & (x < 0.7)].min(initial=1.0)) for _, x, y, _ in lines)
    room = lowest - share  # labels are between the curve and the dotted line, or where there is more room
    middle = share + room / 2 if room > 0.3 else share - 0.14 if share > 0.4 else max(lowest, share) + 0.2
    labels = []
    for (words, x, y, colour), across in zip(lines, _label_positions(lines, 0), strict=True):
        order = np.argsort(x, kind="stable")
        labels.append((float(np.interp(across, x[order], y[order])), across, words, colour))
    upper_first = sorted(labels, key=lambda label: -label[0]) if rival and not small else []
    for number, (up, across, words, colour) in enumerate(upper_first):
        _label(axes, words, (across, up), (0.14, middle + LABEL_STEP * (0.5 - number)), colour)
    return svg(figure, axes, name)


def calibration(ours: Points, rival: Points | None, name: str, small: bool = False) -> str:
    """Draw observed frequencies against predicted probabilities, with intervals."""
    figure, axes = square("predicted probability", "observed frequency", _panel(small))
    _diagonal(axes, "ideal")
    if rival:
        stated, observed = ([p[end] for p in rival] for end in ("predicted", "observed"))
        axes.plot(stated, observed, marker="s", markersize=5, markerfacecolor="white", **{**RIVAL, "linewidth": 1.0})
    stated, observed = ([p[end] for p in ours] for end in ("predicted", "observed"))
    below = [max(0.0, p["observed"] - p["low"]) for p in ours]
    above = [max(0.0, p["high"] - p["observed"]) for p in ours]
    style = {**OURS, "linewidth": 1.4}
    axes.errorbar(stated, observed, yerr=[below, above], marker="o", markersize=5.5, capsize=2.5, elinewidth=1, **style)
    if rival and not small:  # points can be anywhere: the key is in the corner that is mostly empty
        key = (("this model", "o", INK, INK), ("in service", "s", "white", RIVAL["color"]))
        for number, (words, marker, face, colour) in enumerate(key):
            up = 0.13 - 0.08 * number
            axes.plot(0.68, up, marker, color=colour, markerfacecolor=face, markersize=5.5)
            axes.text(0.72, up, words, color=colour, fontsize=10.5, va="center", bbox=BEHIND)
    return svg(figure, axes, name)


def _panel(small: bool) -> str:
    return "small" if small else "large"


BEHIND: Any = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.75}
Line = tuple[str, Floats, Floats, str]


def _both(axes: Axes, ours: Any, rival: Any) -> list[Line]:
    """Draw the curves of one or two models; return label, x, y and colour of each."""
    lines: list[Line] = [("this model", np.asarray(ours[0], np.float64), np.asarray(ours[1], np.float64), INK)]
    if rival:
        x, y = np.asarray(rival[0], np.float64), np.asarray(rival[1], np.float64)
        axes.plot(x, y, **RIVAL)
        axes.plot(
            *_spread(x, y), marker="s", linestyle="none", color=RIVAL["color"], markerfacecolor="white", markersize=4.5
        )
        lines.append(("in service", x, y, RIVAL["color"]))
    axes.plot(lines[0][1], lines[0][2], **OURS)
    return lines


def _spread(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return points at equal distances along a curve."""
    length = np.append(0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
    distances = np.linspace(0, length[-1], MARKERS + 2)[1:-1]
    return np.interp(distances, length, x), np.interp(distances, length, y)


def _label_positions(lines: Sequence[Line], axis: int) -> list[float]:
    """Return where on one axis to label each line: where two lines are furthest apart, the second with an offset."""
    positions = np.linspace(0.3, 0.8, 26)
    if len(lines) == 1:
        return [0.6]
    values = []
    for _, x, y, _ in lines:
        along, other = (x, y) if axis == 0 else (y, x)
        order = np.argsort(along, kind="stable")
        values.append(np.interp(positions, along[order], other[order]))
    best = float(positions[int(np.abs(values[0] - values[1]).argmax())])
    return [best, best - 0.1]


def _label(axes: Axes, words: str, at: tuple[float, float], text: tuple[float, float], colour: str) -> None:
    """Write a label with a thin line to the point that it describes."""
    arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 3}
    axes.annotate(words, at, text, color=colour, fontsize=10.5, va="center", arrowprops=arrow, bbox=BEHIND, zorder=6)


def _diagonal(axes: Axes, words: str) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
    axes.text(0.78, 0.71, words, color="#55606b", fontsize=9, rotation=45, ha="center", va="center")


def square(across: str, up: str, panel: str = "") -> tuple[Figure, Axes]:
    """Return an empty plot from 0 to 1 on both axes: with space for a legend, or a "large" or "small" panel without."""
    size, position = SHAPES[panel]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        axes = figure.add_axes(position)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=across, ylabel=up)
        ticks = [0, 0.25, 0.5, 0.75, 1]
        axes.set_xticks(ticks, ["0", ".25", ".5", ".75", "1"])
        axes.set_yticks(ticks, ["0", ".25", ".5", ".75", "1"])
        axes.grid(color="#eceff2", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, axes


def svg(figure: Figure, axes: Axes, name: str) -> str:
    """Return the figure as an SVG element for an HTML page: no URLs, and ids that are unique on the page."""
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
