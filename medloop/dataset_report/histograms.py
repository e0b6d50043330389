"""Histograms of size, shape and brightness of the images of each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.datasets.dataset import Data
from medloop.dataset_report.counts import UNKNOWN, Group, Rows
from medloop.dataset_report.pictures import LEVELS, Pictures
from medloop.dataset_report.shown_images import Sample

BINS = 32
WIDEST = 2.0
"""Maximum aspect ratio; more extreme images are counted in the outermost bins."""

Histograms = dict[str, Any]


def compared(rows: Rows) -> list[Group]:
    """Return the groups to compare: all images, each class and, if there are several, each site."""
    sites = [Group(f"site {group.name}", group.mask) for group in rows.by("site") if group.name != UNKNOWN]
    classes = [group for group in rows.classes if group.mask.any()]
    return [rows.all, *classes, *(sites if len(sites) > 1 else [])]


def histograms(rows: Rows, groups: Sequence[Group], sample: Sample, pictures: Pictures) -> Histograms:
    """Return for each group the histograms of longest side, shape and, for a sample, brightness."""
    longest, ratio = _sizes(rows.data)
    edges = {
        "longest_side": np.linspace(0, max(1, int(longest.max(initial=1))), BINS + 1),
        "shape": np.linspace(-np.log2(WIDEST), np.log2(WIDEST), BINS + 1),
        "brightness": np.linspace(0, LEVELS, BINS + 1),
    }
    return {
        "edges": {name: values.round(4).tolist() for name, values in edges.items()},
        "groups": [
            {
                "name": group.name,
                "images": int(group.mask.sum()),
                "longest_side": _shares(longest[group.mask], edges["longest_side"]),
                "shape": _shares(ratio[group.mask], edges["shape"]),
                **_bright(pictures, measured),
            }
            for group, measured in zip(groups, sample.measured, strict=True)
        ],
    }


def _sizes(data: Data) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    width, height = data.column("width").astype(float), data.column("height").astype(float)
    ratio = np.log2(np.maximum(width, 1) / np.maximum(height, 1))
    return np.maximum(width, height), ratio.clip(-np.log2(WIDEST), np.log2(WIDEST))


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> list[float]:
    counts = np.histogram(values, edges)[0]
    shares: list[float] = (counts / max(1, counts.sum())).round(6).tolist()
    return shares


def _bright(pictures: Pictures, rows: Sequence[int]) -> Histograms:
    levels = pictures.brightness(rows)
    if not len(levels):
        return {"measured": 0, "brightness": [], "black": None, "white": None, "mean": None}
    mean = levels.mean(axis=0)  # every image has the same weight
    return {
        "measured": len(levels),
        "brightness": mean.reshape(BINS, -1).sum(axis=1).round(6).tolist(),
        "black": round(float(mean[0]), 6),
        "white": round(float(mean[-1]), 6),
        "mean": round(float(mean @ np.arange(LEVELS)), 2),
    }
