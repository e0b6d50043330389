"""Histograms as inline SVG: a group as filled bars, all images as a dashed line."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT, FOOT = 260, 64, 16
FILL, LINE, AXIS = "#7f97ae", "#17324d", "#9aa7b3"


def histogram(shares: Sequence[float], of_all: Sequence[float], top: float, ticks: Sequence[tuple[float, str]]) -> str:
    """Return one histogram; `top` is the share at the upper edge, tick positions are from 0 to 1."""
    parts = [f'<path d="{_outline(shares, top)} Z" fill="{FILL}"/>'] if shares else []
    if of_all:
        line = f'fill="none" stroke="{LINE}" stroke-width="1.2" stroke-dasharray="4 2.5"'
        parts.append(f'<path d="{_outline(of_all, top)}" {line}/>')
    parts.append(f'<path d="M0 {HEIGHT}H{WIDTH}" stroke="{AXIS}"/>')
    for position, words in ticks:
        x = _number(position * WIDTH)
        anchor = "start" if position < 0.02 else "end" if position > 0.98 else "middle"
        parts.append(f'<path d="M{x} {HEIGHT}v3" stroke="{AXIS}"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT + 14}" text-anchor="{anchor}">{words}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" aria-hidden="true">{"".join(parts)}</svg>'


def peak(many: Sequence[Sequence[float]], ends: bool = True) -> float:
    """Return the highest share of several histograms; without `ends`, ignore their outermost bins."""
    inner = [share for shares in many for share in (shares if ends else shares[1:-1])]
    return max(inner, default=0.0) or 1.0


def _outline(shares: Sequence[float], top: float) -> str:
    """Return the outline of the bars, from left to right."""
    step, path = WIDTH / len(shares), f"M0 {HEIGHT}"
    for index, share in enumerate(shares):
        height = HEIGHT - min(1.0, share / top) * (HEIGHT - 2)
        path += f"V{_number(height)}H{_number((index + 1) * step)}"
    return f"{path}V{HEIGHT}"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
