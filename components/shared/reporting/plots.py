"""The report's plots as inline SVG: the same bytes for the same figures, and readable in black and white.

A panel shows one class or finding. Lines differ in dash and marker, and a name stands beside each, so that neither
colour nor a legend is needed; on small panels, of which there are many, the page says once what the lines are.
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
"""How the model in service is drawn beside the one that was tested."""
SHAPES: Any = {
    "": ((4.5, 5.0), (0.135, 0.265, 0.845, 0.72)),
    "large": ((4.4, 4.4), (0.125, 0.115, 0.86, 0.87)),
    "small": ((3.1, 3.1), (0.175, 0.16, 0.805, 0.825)),
}
"""Size and place of the axes by kind of panel."""
STEP = 0.095
"""How far below each other names stand."""
MARKED = 9
"""How many hollow squares stand on the line of the model in service."""

Curve = Mapping[str, Sequence[float]]
Points = Sequence[Mapping[str, float]]


def roc(ours: Curve, rival: Curve | None, point: tuple[float, float] | None, name: str, small: bool = False) -> str:
    """Sensitivity against false alarms, with the point at which the model decides."""
    figure, axes = square("false alarms (1 − specificity)", "sensitivity", _panel(small))
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
    _along(axes, "chance")
    lines = _both(axes, (ours["fpr"], ours["tpr"]), rival and (rival["fpr"], rival["tpr"]))
    texts = [
        (words, (float(np.interp(up, y, x)), up), colour)
        for (words, x, y, colour), up in zip(lines, _furthest(lines, 1), strict=True)
    ]
    if point:
        axes.plot(*point, "o", color="white", markeredgecolor=INK, markeredgewidth=2, markersize=9, zorder=5)
        texts = [("threshold in use", point, INK), *texts]
    for place, (words, at, colour) in enumerate([] if small else texts):
        _name(axes, words, at, (0.4, 0.36 - STEP * place), colour)
    return svg(figure, axes, name)


def precision_recall(ours: Curve, rival: Curve | None, share: float, name: str, small: bool = False) -> str:
    """How many of the called images are right, against how many are found; `share` have the class."""
    figure, axes = square("sensitivity (recall)", "precision", _panel(small))
    axes.axhline(share, color=GREY, linewidth=1.3, linestyle=":", zorder=1)
    below = share > 0.12
    said, up = f"calling every image: {100 * share:.0f} %", share - 0.015 if below else share + 0.015
    axes.text(1.0, up, said, color="#333c45", fontsize=9.5, ha="right", va="top" if below else "bottom")
    lines = _both(axes, (ours["recall"], ours["precision"]), rival and (rival["recall"], rival["precision"]))
    lowest = min(float(y[(x > 0.1) & (x < 0.7)].min(initial=1.0)) for _, x, y, _ in lines)
    room = lowest - share  # the names stand between the curve and the dotted line, or where there is more room
    middle = share + room / 2 if room > 0.3 else share - 0.14 if share > 0.4 else max(lowest, share) + 0.2
    named = []
    for (words, x, y, colour), across in zip(lines, _furthest(lines, 0), strict=True):
        order = np.argsort(x, kind="stable")
        named.append((float(np.interp(across, x[order], y[order])), across, words, colour))
    upper_first = sorted(named, key=lambda each: -each[0]) if rival and not small else []
    for place, (up, across, words, colour) in enumerate(upper_first):
        _name(axes, words, (across, up), (0.14, middle + STEP * (0.5 - place)), colour)
    return svg(figure, axes, name)


def calibration(ours: Points, rival: Points | None, name: str, small: bool = False) -> str:
    """What the model said against what came true, with intervals."""
    figure, axes = square("stated probability", "share that is so", _panel(small))
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=1)
    _along(axes, "ideal")
    if rival:
        stated, observed = ([p[end] for p in rival] for end in ("predicted", "observed"))
        axes.plot(stated, observed, marker="s", markersize=5, markerfacecolor="white", **{**RIVAL, "linewidth": 1.0})
    stated, observed = ([p[end] for p in ours] for end in ("predicted", "observed"))
    below = [max(0.0, p["observed"] - p["low"]) for p in ours]
    above = [max(0.0, p["high"] - p["observed"]) for p in ours]
    look = {**OURS, "linewidth": 1.4}
    axes.errorbar(stated, observed, yerr=[below, above], marker="o", markersize=5.5, capsize=2.5, elinewidth=1, **look)
    if rival and not small:  # points lie anywhere: their names stand with a sample in a corner that is mostly empty
        looks = (("this model", "o", INK, INK), ("in service", "s", "white", RIVAL["color"]))
        for place, (words, marker, face, colour) in enumerate(looks):
            up = 0.13 - 0.08 * place
            axes.plot(0.68, up, marker, color=colour, markerfacecolor=face, markersize=5.5)
            axes.text(0.72, up, words, color=colour, fontsize=10.5, va="center", bbox=BEHIND)
    return svg(figure, axes, name)


def _panel(small: bool) -> str:
    return "small" if small else "large"


BEHIND: Any = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.75}
Line = tuple[str, Floats, Floats, str]


def _both(axes: Axes, ours: Any, rival: Any) -> list[Line]:
    """Draw the lines of one model or two; each with its name, its points and its colour."""
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
    """Places along a line that lie equally far apart on it."""
    way = np.append(0, np.cumsum(np.hypot(np.diff(x), np.diff(y))))
    places = np.linspace(0, way[-1], MARKED + 2)[1:-1]
    return np.interp(places, way, x), np.interp(places, way, y)


def _furthest(lines: Sequence[Line], axis: int) -> list[float]:
    """Where on one axis two lines lie furthest apart, and can best be told apart; for the second a little beside."""
    where = np.linspace(0.3, 0.8, 26)
    if len(lines) == 1:
        return [0.6]
    values = []
    for _, x, y, _ in lines:
        along, other = (x, y) if axis == 0 else (y, x)
        order = np.argsort(along, kind="stable")
        values.append(np.interp(where, along[order], other[order]))
    best = float(where[int(np.abs(values[0] - values[1]).argmax())])
    return [best, best - 0.1]


def _name(axes: Axes, words: str, at: tuple[float, float], text: tuple[float, float], colour: str) -> None:
    """Write a name with a thin line to what it names."""
    arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 3}
    axes.annotate(words, at, text, color=colour, fontsize=10.5, va="center", arrowprops=arrow, bbox=BEHIND, zorder=6)


def _along(axes: Axes, words: str) -> None:
    axes.text(0.78, 0.71, words, color="#55606b", fontsize=9, rotation=45, ha="center", va="center")


def square(across: str, up: str, panel: str = "") -> tuple[Figure, Axes]:
    """An empty plot from 0 to 1 in both directions: with room for a legend, or a "large" or "small" panel without."""
    size, place = SHAPES[panel]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        axes = figure.add_axes(place)
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
