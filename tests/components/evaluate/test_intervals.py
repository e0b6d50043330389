"""Intervals hold the truth as often as they say, stay honest near 1, and are the same each time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from components.evaluate.intervals import draw, of_figure, of_score, wilson
from components.evaluate.metrics import CELLS, Measure, Scored, once, resample
from components.evaluate.population import Settings, comparison, patients_behind, population

SETTINGS = Settings(300, 0.95, 7)


def test_wilson_equals_scipys() -> None:
    for right, number in [(0, 5), (3, 7), (20, 20), (95, 100)]:
        theirs = binomtest(right, number).proportion_ci(0.95, method="wilson")
        assert wilson(right / number, number, 0.95) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_draws_are_of_patients_and_repeatable() -> None:
    first = draw(30, 50, 7)
    assert (first.sum(axis=1) == 30).all()
    assert np.array_equal(first, draw(30, 50, 7))
    assert not np.array_equal(first, draw(30, 50, 8))


def binormal(seed: int, patients: int, auc: float, prevalence: float = 0.5) -> Scored:
    """Patients of one to three images that resemble each other; at threshold 0.5 both errors are equally frequent."""
    rng = np.random.default_rng(seed)
    apart = np.sqrt(2) * norm.ppf(auc)
    sick = rng.random(patients) < prevalence
    sick[:2] = [True, False]
    of = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    labels = sick[of].astype(np.int64)
    score = np.sqrt(0.5) * rng.normal(size=patients)[of] + np.sqrt(0.5) * rng.normal(size=len(of)) + apart * labels
    positive = 1 / (1 + np.exp(apart / 2 - score))
    return Scored(labels, (positive >= 0.5).astype(np.int64), np.stack([1 - positive, positive], axis=1), of)


@pytest.mark.parametrize(("patients", "auc"), [(50, 0.9), (50, 0.99), (150, 0.97)])
def test_intervals_hold_the_truth(patients: int, auc: float) -> None:
    truth = {"accuracy": norm.cdf(norm.ppf(auc) / np.sqrt(2)), "auc": auc}
    held, above = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    trials = 150
    for seed in range(trials):
        scored = binormal(seed, patients, auc)
        measure = Measure(scored)
        values = measure.plain(once(scored))
        draws = resample(measure.plain, draw(patients, 200, seed), len(scored.labels))
        for name, true in truth.items():
            figure = of_score(float(values[name][0]), draws[name], patients_behind(scored, name), 0.95)
            low, high = figure["low"], figure["high"]
            assert low is not None
            assert high is not None
            held[name] += low <= true <= high
            above[name] += true < low
    assert min(held.values()) / trials >= 0.91  # 95 % less what 150 trials may miss by chance
    assert max(above.values()) / trials <= 0.06  # the side on which the gate relies


def test_a_flawless_result_on_few_patients_is_not_certain() -> None:
    labels = np.repeat([0, 1], 10)
    probabilities = np.stack([1 - labels, labels], axis=1).astype(np.float64)
    scored = Scored(labels, labels, probabilities, np.arange(20) // 2)  # ten patients, two images each
    figures = population(scored, ["no", "yes"], SETTINGS)["figures"]
    assert figures["accuracy"] == {
        "value": 1.0,
        "low": pytest.approx(binomtest(10, 10).proportion_ci(0.95, "wilson").low),
        "high": 1.0,
    }
    assert figures["sensitivity"]["low"] == pytest.approx(binomtest(5, 5).proportion_ci(0.95, "wilson").low)
    assert figures["auc"]["value"] == 1
    assert figures["auc"]["low"] < 0.75
    assert figures["kappa"]["low"] < 0.5


def test_one_error_never_raises_the_lower_bound() -> None:
    labels = np.repeat([0, 1], 100)
    positive = np.where(labels == 1, 0.9, 0.1)
    lows = []
    for errors in range(5):  # the fifth falls on another patient, which loosens what four on one suggest
        wrong = positive.copy()
        wrong[:errors] = 0.95
        scored = Scored(
            labels, (wrong > 0.5).astype(np.int64), np.stack([1 - wrong, wrong], axis=1), np.arange(200) // 4
        )
        figures = population(scored, ["no", "yes"], SETTINGS)["figures"]
        lows.append([figures[name]["low"] for name in ("accuracy", "specificity", "auc")])
    for better, worse in pairwise(lows):
        assert all(a >= b - 1e-12 for a, b in zip(better, worse, strict=True))


def test_what_hardly_any_draw_can_give_has_no_interval() -> None:
    draws = np.full(100, np.nan)
    draws[:40] = 0.5
    assert of_score(0.5, draws, 10, 0.95) == {"value": 0.5, "low": None, "high": None}
    assert of_figure(0.5, draws, 0.95, 0, 1) == {"value": 0.5, "low": None, "high": None}
    assert of_score(float("nan"), draws, 10, 0.95)["value"] is None


def test_pieces_do_not_change_the_result() -> None:
    scored = binormal(1, 40, 0.9)
    measure, weights = Measure(scored), draw(40, 100, 3)
    whole = resample(measure.all, weights, len(scored.labels))
    parts = resample(measure.all, weights, CELLS // 3)
    assert all(np.allclose(whole[name], parts[name], rtol=0, atol=1e-12, equal_nan=True) for name in whole)


def test_paired_difference_of_a_model_with_itself_is_nothing() -> None:
    scored = binormal(1, 40, 0.9)
    pair = comparison(scored, scored, SETTINGS)
    assert pair["disagree"] == 0
    assert all(pair[name][key] == 0 for name in ("accuracy", "auc", "brier") for key in ("difference", "low", "high"))


def test_paired_interval_is_narrower_than_two_single_ones() -> None:
    good = binormal(1, 100, 0.95)
    rng = np.random.default_rng(2)
    positive = np.clip(good.probabilities[:, 1] + rng.normal(0, 0.05, len(good.labels)), 0, 1)
    other = Scored(
        good.labels, (positive >= 0.5).astype(np.int64), np.stack([1 - positive, positive], 1), good.patients
    )
    pair = comparison(good, other, SETTINGS)["auc"]
    single = population(good, ["no", "yes"], SETTINGS)["figures"]["auc"]
    assert pair["low"] <= pair["difference"] <= pair["high"]
    assert pair["difference"] == pytest.approx(pair["ours"] - pair["theirs"])
    assert pair["high"] - pair["low"] < single["high"] - single["low"]
