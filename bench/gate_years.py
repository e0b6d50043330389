"""Simulates a loop over 24 months: which challengers a rule for comparing with the model in service releases, and when.

Run `python -m bench.gate_years [--sets 200] [--rules ...]`. Each month new patients come, a share of them joins the
test, and one challenger is compared with the model in service by the product's own bounds (accuracy margin 0.05, AUC
margin 0.03). Scores are normal in both classes; see bench/non_inferiority.py for how models and images correlate. All
other checks of a policy are taken as passed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from bench.non_inferiority import MARGINS, Look, Test, accuracy, look, noise, ranked
from components.evaluate.comparison import area_bound, area_difference, share_bounds
from components.evaluate.point_metrics import Estimate
from components.shared.statistics.intervals import Area, Floats

MONTHS = 24
ALIKE, PREVALENCE, SERVICE = 0.7, 0.4, 0.90
DIFFER = 0.05
"""Two-sided p value below which core and new patients are taken to tell different stories."""


def apart(auc: float) -> float:
    """Distance of the two classes' scores that gives this AUC."""
    return float(np.sqrt(2) * norm.ppf(auc))


def off_by(auc: float, loss: float) -> float:
    """Shift of the threshold that makes a model of this AUC less accurate by this than one in service."""
    target = accuracy(apart(SERVICE), 0, PREVALENCE) - loss
    return float(brentq(lambda by: accuracy(apart(auc), by, PREVALENCE) - target, -4, 0))


class Patients(NamedTuple):
    """All test patients who will ever come, in order: the month of each, images, true classes, what all models see."""

    month: NDArray[np.int64]
    of: NDArray[np.int64]
    truth: NDArray[np.bool_]
    shared: Floats


def patients(first: int, monthly: Callable[[int], int], rng: np.random.Generator) -> Patients:
    month, count = [np.zeros(first, np.int64)], first
    for number in range(1, MONTHS + 1):
        come = monthly(count)
        month.append(np.full(come, number))
        count += come
    sick = rng.random(count) < PREVALENCE
    sick[:2], sick[2:4] = True, False
    of = np.repeat(np.arange(count), rng.integers(1, 4, count))
    return Patients(np.concatenate(month), of, sick[of], noise(of, count, rng))


class Model(NamedTuple):
    """How well a model ranks and calls old patients, and how well it ranks new ones (1 as old ones, -1 reversed)."""

    auc: float
    off: float = 0.0
    on_new: float = 1.0


def scores(everyone: Patients, model: Model, rng: np.random.Generator) -> Floats:
    own = noise(everyone.of, len(everyone.month), rng)
    gain = np.where(everyone.month[everyone.of] > 0, model.on_new, 1.0)
    seen = np.sqrt(ALIKE) * everyone.shared + np.sqrt(1 - ALIKE) * own
    return np.asarray(seen + gain * apart(model.auc) * (everyone.truth - 0.5) - model.off)


def part(everyone: Patients, rows: NDArray[np.bool_], labels: NDArray[np.bool_]) -> Test:
    return Test(np.unique(everyone.of[rows], return_inverse=True)[1], labels[rows], everyone.shared[rows])


class Comparison(NamedTuple):
    """A challenger and the model in service on all test patients, on the core, and whether new patients differ."""

    all: Look
    core: Look
    differ: bool


def compare(
    everyone: Patients, ours: Floats, theirs: Floats, labels: NDArray[np.bool_], month: int, core_until: int
) -> Comparison:
    of_row = everyone.month[everyone.of]
    groups: list[tuple[Look, Estimate, Estimate] | None] = []
    for rows in (of_row <= month, of_row <= core_until, (of_row <= month) & (of_row > core_until)):
        test = part(everyone, rows, labels)
        if len(test.of) == 0 or len(set(test.truth.tolist())) < 2:
            groups.append(None)
            continue
        standing = ranked(test, theirs[rows])
        groups.append((look(test, theirs[rows], standing, ours[rows]), ranked(test, ours[rows]), standing))
    whole, core, new = groups
    assert whole
    assert core
    return Comparison(whole[0], core[0], new is not None and stories_differ(core, new))


def stories_differ(core: tuple[Look, Estimate, Estimate], new: tuple[Look, Estimate, Estimate]) -> bool:
    """Whether the differences of the two models on core and new patients differ by more than chance."""
    values, errors = [], []
    for found, ours, theirs in (core, new):
        patients_here = len(found.images)
        gain = (found.won - found.lost).sum() / found.images.sum()
        left = found.won - found.lost - gain * found.images
        shares = np.sqrt((left**2).sum() + (found.images**2).mean()) / found.images.sum()
        error = area_difference(ours, theirs)[0] if patients_here > 4 else np.inf
        values.append((gain, ours.value - theirs.value))
        errors.append((shares, error))
    for (a, b), (s, t) in zip(zip(*values, strict=True), zip(*errors, strict=True), strict=True):
        spread = np.hypot(s, t)
        if spread > 0 and np.isfinite(spread) and 2 * norm.sf(abs(a - b) / spread) < DIFFER / 2:
            return True
    return False


def not_worse(found: Look, level: float) -> bool:
    """Whether accuracy and AUC are shown not to be worse by their margins at this error rate."""
    if level <= 0:
        return False
    share = share_bounds(found.won[None], found.lost[None], found.images[None], np.array([level]))[0, 0]
    area = area_bound(Area(*found.ours), Area(*found.theirs), found.alike, level)
    return bool(share >= -MARGINS["accuracy"] and area >= -MARGINS["auc"])


class State(NamedTuple):
    """Looks before this one: in all, since the last release, and on the same test patients."""

    looks: int
    since_release: int
    same_patients: int


Level = Callable[[State], float]


def fixed(level: float) -> Level:
    """The same error rate at each look with new test patients; looks without share that of one."""
    return lambda state: level / ((state.same_patients + 1) * (state.same_patients + 2) / 2)


RULES: dict[str, tuple[Level, bool]] = {
    "core alone, 0.05/24": (lambda state: 0.05 / 24 if state.looks < MONTHS else 0.0, False),
    "all patients, 0.1/24": (fixed(0.1 / 24), True),
    "all patients, 0.01": (fixed(0.01), True),
    "all patients, 0.1 for each model in service": (
        lambda state: 0.1 * 6 / np.pi**2 / (state.since_release + 1) ** 2,
        True,
    ),
}
"""The error rate of each look; whether new patients count too, unless they and the core tell different stories."""


class Released(NamedTuple):
    """A model that was released, and when."""

    month: int
    model: Model


def loop(
    rule: tuple[Level, bool],
    everyone: Patients,
    challenger: Callable[[int, np.random.Generator], Model],
    rng: np.random.Generator,
    service: Model,
    flipped: bool,
) -> Iterator[Released]:
    """Run 24 months of looks, one a month; yield what is released. With `flipped`, new patients' labels are wrong."""
    level, pooled = rule
    core_until, since, same, before = 0, 0, 0, 0
    theirs = scores(everyone, service, rng)
    labels = everyone.truth ^ (flipped & (everyone.month[everyone.of] > 0))
    for month in range(1, MONTHS + 1):
        model = challenger(month, rng)
        ours = scores(everyone, model, rng)
        found = compare(everyone, ours, theirs, labels, month, core_until)
        count = int((everyone.month <= month).sum())
        same = same + 1 if count == before else 0
        before = count
        judged = found.all if pooled and not found.differ else found.core
        if not_worse(judged, level(State(month - 1, since, same))):
            yield Released(month, model)
            theirs, core_until, since = ours, month, -1
        since += 1


WORSE = Model(SERVICE - MARGINS["auc"], off_by(SERVICE - MARGINS["auc"], MARGINS["accuracy"]))
SLIGHTLY = Model(SERVICE - MARGINS["auc"] / 2, off_by(SERVICE - MARGINS["auc"] / 2, MARGINS["accuracy"] / 2))
EQUAL = Model(SERVICE)


def better(month: int, _rng: np.random.Generator) -> Model:
    return Model(SERVICE + 0.03 * (month // 6) if month < 18 else 0.98)


def mixed(_month: int, rng: np.random.Generator) -> Model:
    return (EQUAL, Model(SERVICE + 0.015), SLIGHTLY, WORSE)[rng.integers(4)]


class Scenario(NamedTuple):
    """The challengers of a loop, and what its new patients are like."""

    words: str
    challenger: Callable[[int, np.random.Generator], Model]
    service: Model = EQUAL
    flipped: bool = False


SCENARIOS = [
    Scenario("worse", lambda _month, _rng: WORSE),
    Scenario("worse, labels flipped", lambda _month, _rng: WORSE._replace(on_new=-0.7), flipped=True),
    Scenario("worse, new scanner", lambda _month, _rng: WORSE, EQUAL._replace(on_new=0.4)),
    Scenario("equal", lambda _month, _rng: EQUAL),
    Scenario("better each half year", better),
    Scenario("mixed", mixed),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--rules", nargs="*", default=[*RULES])
    parser.add_argument("--first", type=int, nargs="*", default=[60, 200], help="test patients at the first release")
    parser.add_argument("--monthly", type=int, nargs="*", default=[40], help="new patients a month")
    parser.add_argument("--share", type=float, default=0.2, help="of new patients on the test side")
    parser.add_argument("--until", type=int, default=0, help="half of them until the test has so many patients")
    given = parser.parse_args()
    begun = time.perf_counter()
    print("| rule | first, monthly | challenger | at one look | at any | improvements released | worse of released |")
    print("|---|---|---|---|---|---|---|")
    for name in given.rules:
        for first in given.first:
            for monthly in given.monthly:
                for scenario in SCENARIOS:
                    cells = measure(RULES[name], scenario, first, monthly, given)
                    print(f"| {name} | {first}, {monthly} | {scenario.words} | {' | '.join(cells)} |", flush=True)
    print(f"\n({time.perf_counter() - begun:.0f} s)")


def measure(
    rule: tuple[Level, bool], scenario: Scenario, first: int, monthly: int, given: argparse.Namespace
) -> list[str]:
    rng = np.random.default_rng(1)

    def come(count: int) -> int:
        return round(monthly * (0.5 if count < given.until else given.share))

    runs = []
    for _ in range(given.sets):
        everyone = patients(first, come, rng)
        runs.append([*loop(rule, everyone, scenario.challenger, rng, scenario.service, scenario.flipped)])
    anything = np.mean([bool(run) for run in runs])
    each = sum(len(run) for run in runs) / (MONTHS * len(runs))
    caught = [any(start <= r.month < start + 3 for r in run) for run in runs for start in (6, 12, 18)]
    released = [r.model for run in runs for r in run]
    worse = sum(model.auc == WORSE.auc and model.off == WORSE.off for model in released) / max(len(released), 1)
    improved = f"{np.mean(caught):.0%}" if scenario.challenger is better else ""
    return [f"{each:.2%}", f"{anything:.1%}", improved, f"{worse:.1%}" if scenario.challenger is mixed else ""]


if __name__ == "__main__":
    main()
