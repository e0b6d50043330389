"""Measures how often the 95 % intervals of a report hold the truth, and what all of its statistics cost.

Run `python -m bench.intervals [--sets 1000]`. Peers: three other intervals for each figure, on the same data sets, in
the same run. Patients have one to five images each; a patient's images are right or wrong together with the stated
correlation (beta-binomial), and in the area's case their scores have it. `in band` is the share of settings in which 93
to 97 % of the intervals hold the truth.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import binom, norm

from components.evaluate.metrics_record import Settings, compare, population
from components.evaluate.operating_points import operating_points
from components.evaluate.point_metrics import area, mean_cluster_size
from components.evaluate.subgroups import gaps, make_subgroups
from components.shared.statistics.bootstrapped_metrics import Predictions
from components.shared.statistics.intervals import (
    Area,
    Floats,
    Share,
    area_freedom,
    area_interval,
    area_variance,
    quantile,
    share_interval,
    uneven_variance,
    wilson,
)

PATIENTS = (50, 200, 600, 2000)
CROWDS = ((1, 0.0), (3, 0.3), (5, 0.0), (5, 0.3), (5, 0.7))
"""The most images a patient has, and how much they resemble each other."""
TRUTHS = (0.8, 0.9, 0.95, 0.99)
PREVALENCES = (0.05, 0.2, 0.5)
LEVEL = 0.95
BANDS = ((2, 8), (8, 20), (20, 60), (60, 10**6))
"""Settings are told together by how many patients are behind the figure, on average."""

Interval = tuple[Any, Any]


class Setting(NamedTuple):
    """A setting, the patients behind the figure in it, and how often each candidate held the truth."""

    words: str
    behind: float
    held: list[float]
    above: list[float]
    """How often the truth lay below the lower bound: the side on which a gate relies."""


def clustered(right: NDArray[np.int64], images: NDArray[np.int64]) -> Share:
    """The shares of many data sets, [data sets, patients]; patients without images are not in them."""
    total, patients = images.sum(axis=1), (images > 0).sum(axis=1)
    value = right.sum(axis=1) / total
    parts = (right - value[:, None] * images) / total[:, None]
    variance = (parts**2).sum(axis=1) * patients / np.maximum(patients - 1, 1)
    crowd = (images**2).sum(axis=1) / total
    variance, as_one = uneven_variance(value, variance, patients, crowd, total)
    return Share(value, variance, patients, crowd, as_one)


def share_candidates(share: Share, images: Floats) -> dict[str, Interval]:
    known = (share.variance > 1e-15) & (share.value < 1) & (share.value > 0)
    spread = share.value * (1 - share.value)
    worth = np.where(known, spread / np.where(known, share.variance, 1), share.patients)
    freedom = quantile(0.025, share.patients, np.inf)
    return {
        "here": share_interval(share, LEVEL),
        "Wilson, images as if independent": wilson(share.value, images, LEVEL),
        "Wilson, effective number": wilson(share.value, worth, LEVEL),
        "the same, Student's t": wilson(share.value, worth, LEVEL, freedom),
    }


def shares(sets: int, rng: np.random.Generator) -> Iterator[tuple[str, Setting]]:
    of = {"accuracy": (1.0,), "sensitivity": PREVALENCES, "specificity": tuple(1 - p for p in PREVALENCES)}
    for name, parts in of.items():
        for part, patients, (most, alike), truth in itertools.product(parts, PATIENTS, CROWDS, TRUTHS):
            images = rng.integers(1, most + 1, (sets, patients)) * (rng.random((sets, patients)) < part)
            shape = truth * (1 - alike) / max(alike, 1e-9), (1 - truth) * (1 - alike) / max(alike, 1e-9)
            chance = rng.beta(*shape, images.shape) if alike else np.full(images.shape, truth)
            enough = (images > 0).sum(axis=1) >= 2
            share = clustered(rng.binomial(images, chance)[enough], images[enough])
            found = share_candidates(share, images[enough].sum(axis=1).astype(np.float64))
            words = f"{truth}, {patients} patients × 1–{most}, alike {alike}" + (f", {part:.0%}" if part < 1 else "")
            yield name, setting(words, part * patients, found, truth)


def area_candidates(areas: list[Area]) -> dict[str, Interval]:
    many = Area(*(np.array(field) for field in zip(*areas, strict=True)))
    error, t = np.sqrt(area_variance(many)), -stdtrit(area_freedom(many), 0.025)
    inside = (many.value > 0) & (many.value < 1)
    value = np.where(inside, many.value, 0.5)
    centre, half = np.log(value / (1 - value)), t * error / (value * (1 - value))
    known = inside & (error > 0)
    few = np.minimum(many.patients_with, many.patients_without)
    worth = np.where(known, value * (1 - value) / np.where(known, error, 1) ** 2, few)
    return {
        "here": area_interval(many, LEVEL),
        "DeLong": (many.value - 1.96 * error, many.value + 1.96 * error),
        "DeLong, log odds, Student's t": tuple(
            np.where(inside, 1 / (1 + np.exp(-(centre + side * half))), many.value) for side in (-1, 1)
        ),
        "Wilson, effective number": wilson(many.value, worth, LEVEL, t),
    }


def areas(sets: int, rng: np.random.Generator) -> Iterator[tuple[str, Setting]]:
    for part, patients, (most, alike), truth in itertools.product(PREVALENCES, PATIENTS, CROWDS, TRUTHS):
        apart, found = np.sqrt(2) * norm.ppf(truth), []
        for _ in range(sets):
            sick = rng.random(patients) < part
            if 2 <= sick.sum() <= patients - 2:
                images = rng.integers(1, most + 1, patients)
                of = np.repeat(np.arange(patients), images)
                own, shared = rng.normal(size=len(of)), rng.normal(size=patients)[of]
                score = np.sqrt(alike) * shared + np.sqrt(1 - alike) * own + apart * sick[of]
                spread = area(sick[of], score, of, patients, mean_cluster_size(images.astype(np.float64))).spread
                assert isinstance(spread, Area)
                found.append(spread)
        words = f"{truth}, {patients} patients × 1–{most}, alike {alike}, {part:.0%}"
        yield "AUC", setting(words, part * patients, area_candidates(found), truth)


def setting(words: str, behind: float, found: dict[str, Interval], truth: float) -> Setting:
    held = [float(((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean()) for low, high in found.values()]
    return Setting(words, behind, held, [float((low > truth + 1e-12).mean()) for low, _ in found.values()])


def attainable(number: int, truth: float) -> list[float]:
    """The coverages next to 95 % that any interval can have for a share among so many independent patients.

    An interval holds the truth for a run of results; of all runs the nearest coverages below and above are given.
    """
    chance = binom.pmf(np.arange(number + 1), number, truth)
    runs = np.array([chance[a : b + 1].sum() for a in range(number + 1) for b in range(a, number + 1)])
    return [float(runs[runs <= LEVEL].max()), float(runs[runs >= LEVEL].min())]


def told(name: str, found: list[Setting], candidates: list[str]) -> None:
    print(f"\n| {name}: patients behind it | settings | " + " | ".join(candidates) + " |")
    print("|---" * (len(candidates) + 2) + "|")
    for low, high in BANDS:
        some = [each for each in found if low <= each.behind < high]
        if some:
            held = np.array([each.held for each in some])
            band = ((held >= 0.93) & (held <= 0.97)).mean(axis=0)
            cells = [
                f"{b:.0%} in band, {a:.3f} to {z:.3f}" for b, a, z in zip(band, held.min(0), held.max(0), strict=True)
            ]
            print(f"| {low} to {high - 1} | {len(some)} | " + " | ".join(cells) + " |", flush=True)
    print(f"\nHere, outside of 93 to 97 % ({name}):")
    for each in found:
        if not 0.93 <= each.held[0] <= 0.97:
            print(f"  {each.words}: {each.held[0]:.3f} (the truth below the interval: {each.above[0]:.3f})")


def predictions(images: int, seed: int = 0) -> tuple[Predictions, Predictions, dict[str, list[str]]]:
    """Two models' answers for so many images of patients with 1.6 each, and what is known of the patients."""
    rng = np.random.default_rng(seed)
    of = np.unique(np.sort(rng.integers(max(2, int(images / 1.6)), size=images)), return_inverse=True)[1]
    patients = int(of.max()) + 1
    labels = rng.integers(2, size=patients)[of]
    shared, models = rng.normal(size=(patients, 2))[of], []
    for apart in (1.9, 1.8):
        powers = np.exp(0.7 * (shared + rng.normal(size=(images, 2))) + apart * np.eye(2)[labels])
        probability = powers / powers.sum(axis=1, keepdims=True)
        models.append(Predictions(labels, probability.argmax(axis=1), probability, of))
    values = {"sex": ["F", "M"], "age": ["<18", "18–39", "40–64", "65+"], "site": list("abcd"), "view": ["AP", "PA"]}
    about = {name: [each[i] for i in rng.integers(len(each), size=patients)[of]] for name, each in values.items()}
    return models[0], models[1], about


def everything(images: int) -> Callable[[], None]:
    """All statistics of a report on so many predictions: three populations, both models, subgroups, gaps, points."""
    ours, theirs, about = predictions(images)
    names, settings = ["no", "yes"], Settings(2000, LEVEL, 7)
    core = np.arange(images) < images // 2

    def work() -> None:
        for group in (np.ones(images, bool), core, ~core):
            population(ours.subset(group), names, settings)
            compare(ours.subset(group), theirs.subset(group), settings)
        groups = make_subgroups(ours, about)
        gaps(groups, LEVEL, ours.number_of_patients)
        assert [group.record(LEVEL) for group in groups]
        operating_points(ours, names, [0.5], LEVEL)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="data sets in each setting (1000)")
    given = parser.parse_args()
    print("| statistics of a report | seconds: median, range of 3 |\n|---|---|")
    for images in (624, 25_000):
        work, spent = everything(images), []
        for _ in range(3):
            begun = time.perf_counter()
            work()
            spent.append(time.perf_counter() - begun)
        print(f"| {images:,} predictions | {np.median(spent):.2f} ({min(spent):.2f} to {max(spent):.2f}) |", flush=True)
    rng = np.random.default_rng(1)
    for simulate, candidates in ((shares, share_candidates), (areas, area_candidates)):
        names = {
            share_candidates: ["here", "Wilson, images as if independent", "Wilson, effective number", "the same, t"],
            area_candidates: ["here", "DeLong", "DeLong, log odds, t", "Wilson, effective number, t"],
        }[candidates]
        begun, found = time.perf_counter(), list(simulate(given.sets, rng))
        for name in dict.fromkeys(name for name, _ in found):
            told(name, [each for kind, each in found if kind == name], names)
        print(f"\n({time.perf_counter() - begun:.0f} s)", flush=True)
    print("\n| independent patients, truth | the coverages next to 95 % that an interval can have |\n|---|---|")
    for number, truth in ((50, 0.99), (10, 0.99), (10, 0.95), (3, 0.9), (200, 0.99), (50, 0.95)):
        low, high = attainable(number, truth)
        print(f"| {number}, {truth} | {low:.3f}, {high:.3f} |")


if __name__ == "__main__":
    main()
