"""Simulates releases: how often the non-inferiority checks let a challenger pass that is worse by exactly the margin.

Run `python -m bench.non_inferiority [--sets 2000]`. Margins of the default policy: accuracy 0.05 and AUC 0.03, paired
by patient on the locked core. One look at an error rate of 0.05, and 24 looks at 0.05/24 each on the same test, with a
new challenger each time: is any of them released? Every other check of the policy is taken as passed, so the policy as
a whole releases no more than this. Peer: the paired bounds before, of 1,000 draws of patients, at one look. Scores are
normal in both classes, with a correlation of 0.3 between a patient's images. `alike` is the correlation of two models'
scores given the truth: at 0 they err independently.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from components.evaluate.comparison import LEVELS, area_bound, share_bounds
from components.evaluate.point_metrics import Estimate, area, mean_cluster_size
from components.shared.statistics.intervals import Area, Floats, correlation, draw

MARGINS = {"accuracy": 0.05, "auc": 0.03}
LOOKS, ERROR = 24, 0.05
LATE = next(level for level in LEVELS if level <= ERROR / LOOKS)
"""The level of the bounds at each of the looks: the largest that is not above its share of the error."""
IMAGES_ALIKE = 0.3
SERVICE = 0.95
"""The AUC of the model in service; its threshold lies in the middle."""


class Challenger(NamedTuple):
    """How far its scores lie apart, and by how much its threshold is off."""

    words: str
    apart: float
    off: float


class Test(NamedTuple):
    """A locked test: the patient of each image, the truth, and what all models see in the same way."""

    of: NDArray[np.int64]
    truth: NDArray[np.bool_]
    shared: Floats


def accuracy(apart: float, off: float, prevalence: float) -> float:
    return float(prevalence * norm.cdf(apart / 2 - off) + (1 - prevalence) * norm.cdf(apart / 2 + off))


def challengers(prevalence: float) -> list[Challenger]:
    """Those worse by exactly a margin, those that are equal, and those that are better by three points."""
    apart = float(np.sqrt(2) * norm.ppf(SERVICE))
    now = accuracy(apart, 0, prevalence)
    less = float(np.sqrt(2) * norm.ppf(SERVICE - MARGINS["auc"]))
    missed = now - MARGINS["accuracy"]
    off = brentq(lambda by: accuracy(apart, by, prevalence) - missed, -3, 0)  # it calls too much
    both = brentq(lambda by: accuracy(less, by, prevalence) - missed, -3, 0)
    better = brentq(lambda wide: accuracy(wide, 0, prevalence) - now - 0.03, apart, 2 * apart)
    return [
        Challenger("accuracy worse by the margin, AUC equal", apart, float(off)),
        Challenger("AUC worse by the margin, threshold as it was", less, 0.0),
        Challenger("both worse by their margins", less, float(both)),
        Challenger("equal", apart, 0.0),
        Challenger("better by three points of accuracy", float(better), 0.0),
    ]


def locked(patients: int, prevalence: float, rng: np.random.Generator) -> Test:
    sick = rng.random(patients) < prevalence
    sick[:2], sick[2:4] = True, False
    of = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    return Test(of, sick[of], noise(of, patients, rng))


def noise(of: NDArray[np.int64], patients: int, rng: np.random.Generator) -> Floats:
    between, within = rng.normal(size=patients)[of], rng.normal(size=len(of))
    return np.asarray(np.sqrt(IMAGES_ALIKE) * between + np.sqrt(1 - IMAGES_ALIKE) * within)


def answers(test: Test, apart: float, off: float, alike: float, rng: np.random.Generator) -> Floats:
    """Scores of one model; from 0 on it calls the class."""
    own = noise(test.of, int(test.of.max()) + 1, rng)
    return np.asarray(np.sqrt(alike) * test.shared + np.sqrt(1 - alike) * own + apart * (test.truth - 0.5) - off)


def ranked(test: Test, scores: Floats) -> Estimate:
    patients = int(test.of.max()) + 1
    return area(test.truth, scores, test.of, patients, mean_cluster_size(np.bincount(test.of).astype(np.float64)))


class Look(NamedTuple):
    """What a challenger shows on a test: images that only one of the models got right, by patient, and the areas."""

    won: Floats
    lost: Floats
    images: Floats
    ours: Area
    theirs: Area
    alike: float


def look(test: Test, service: Floats, standing: Estimate, scores: Floats) -> Look:
    right = [(each >= 0) == test.truth for each in (scores, service)]
    sums = [np.bincount(test.of, part).astype(np.float64) for part in (right[0] & ~right[1], right[1] & ~right[0])]
    ours = ranked(test, scores)
    images = np.bincount(test.of).astype(np.float64)
    assert isinstance(ours.spread, Area)
    assert isinstance(standing.spread, Area)
    return Look(
        sums[0], sums[1], images, ours.spread, standing.spread, correlation(ours.by_patient, standing.by_patient)
    )


def passed(looks: list[Look], level: float) -> NDArray[np.bool_]:
    """Whether the checks of accuracy and AUC pass, of each look: [looks, 2]."""
    won, lost, images = (np.array([found[place] for found in looks]) for place in range(3))
    ours, theirs = (
        Area(*np.array([getattr(found, name) for found in looks]).T) for name in ("ours", "theirs")
    )  # each field with an entry a look
    shares = share_bounds(won, lost, images, np.array([level]))[:, 0]
    areas = area_bound(ours, theirs, np.array([found.alike for found in looks]), level)
    return np.stack([shares >= -MARGINS["accuracy"], areas >= -MARGINS["auc"]], axis=1)


def before(test: Test, service: Floats, scores: Floats, seed: int) -> float:
    """The bound of the accuracy's difference as it was made before: the middle of the draws, moved by their bias."""
    gain = ((scores >= 0) == test.truth).astype(float) - ((service >= 0) == test.truth)
    sums, images = np.bincount(test.of, gain), np.bincount(test.of)
    weights = draw(len(images), 1000, seed).astype(np.float64)
    draws, value = weights @ sums / (weights @ images), sums.sum() / images.sum()
    return float(np.quantile(draws, ERROR) - (draws.mean() - value))


def rates(challenger: Challenger, patients: int, prevalence: float, alike: float, sets: int) -> list[float]:
    """How often it passes: one look, its single checks, any of 24 looks, each of them, the old check of accuracy."""
    rng, apart = np.random.default_rng(1), float(np.sqrt(2) * norm.ppf(SERVICE))
    first, later, once = [], [], []
    several, drawn = sets // 6, min(sets, 40_000 // patients)
    for number in range(sets):
        test = locked(patients, prevalence, rng)
        service = answers(test, apart, 0, alike, rng)
        standing = ranked(test, service)
        for place in range(LOOKS if number < several else 1):
            scores = answers(test, challenger.apart, challenger.off, alike, rng)
            found = look(test, service, standing, scores)
            later += [found] if number < several else []
            if not place:
                first.append(found)
                if number < drawn:
                    once.append(before(test, service, scores, number) >= -MARGINS["accuracy"])
    one, late = passed(first, ERROR), passed(later, LATE).all(axis=1).reshape(several, LOOKS)
    any_of = late.any(axis=1).mean()
    shown = [one.all(axis=1).mean(), one[:, 0].mean(), one[:, 1].mean(), any_of, late.mean(), np.mean(once)]
    return [float(each) for each in shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=2000, help="tests at one look; a sixth of them at 24 (2000)")
    parser.add_argument("--patients", type=int, nargs="*", default=[100, 400], help="of the locked core")
    given = parser.parse_args()
    begun = time.perf_counter()
    print(
        "| challenger | patients, prevalence, alike | one look | accuracy alone | AUC alone | any of 24 | each | old |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for place in range(5):
        for patients in given.patients:
            for prevalence, alike in ((0.5, 0.0), (0.5, 0.7), (0.2, 0.7)):
                challenger = challengers(prevalence)[place]
                found = rates(challenger, patients, prevalence, alike, given.sets)
                cells = " | ".join(f"{rate:.1%}" for rate in found)
                print(f"| {challenger.words} | {patients}, {prevalence:.0%}, {alike} | {cells} |", flush=True)
    print(f"\n({time.perf_counter() - begun:.0f} s)")


if __name__ == "__main__":
    main()
