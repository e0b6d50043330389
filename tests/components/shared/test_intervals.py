"""Intervals hold the truth as often as they say, stay honest near 1, and are the same each time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, multivariate_normal, norm, t
from sklearn.metrics import average_precision_score, f1_score

from bench.intervals import clustered
from components.evaluate.metrics_record import Settings, population
from components.evaluate.point_metrics import area, estimates, mean_cluster_size, variance_inflation
from components.shared.statistics.bootstrapped_metrics import Measure, Predictions, equal_weights, resample
from components.shared.statistics.intervals import (
    Area,
    Share,
    area_figure,
    area_interval,
    binormal_variance,
    bootstrap_figure,
    draw,
    quantile,
    share_figure,
    share_interval,
    uneven_variance,
    unseen_loss,
    wilson,
)

SETTINGS = Settings(300, 0.95, 7)


def test_wilson_equals_scipys() -> None:
    for right, number in [(0, 5), (3, 7), (20, 20), (95, 100)]:
        theirs = binomtest(right, number).proportion_ci(0.95, method="wilson")
        assert wilson(right / number, number, 0.95) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_quantile_is_normal_for_one_image_a_patient_and_students_for_many() -> None:
    assert quantile(0.025, 30, 1) == pytest.approx(norm.ppf(0.975))
    assert quantile(0.025, 30, 1e9) == pytest.approx(t.ppf(0.975, 29))
    assert norm.ppf(0.975) < quantile(0.025, 30, 2) < t.ppf(0.975, 29)


def test_the_variance_of_normal_scores_equals_the_textbooks() -> None:
    for value in (0.6, 0.9, 0.99):
        x = norm.ppf(value)
        both = multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]]).cdf([x, x])
        expected = (value * (1 - value) + (40 + 160 - 2) * (both - value**2)) / (40 * 160)
        assert float(binormal_variance(value, 40, 160)) == pytest.approx(expected, rel=1e-4)
    assert float(binormal_variance(0.1, 40, 160)) == pytest.approx(float(binormal_variance(0.9, 40, 160)))


def test_draws_are_of_patients_and_repeatable() -> None:
    first = draw(30, 50, 7)
    assert (first.sum(axis=1) == 30).all()
    assert np.array_equal(first, draw(30, 50, 7))
    assert not np.array_equal(first, draw(30, 50, 8))


@pytest.mark.parametrize(
    ("truth", "patients", "most", "alike"), [(0.9, 60, 1, 0), (0.95, 100, 5, 0.3), (0.8, 60, 5, 0.7)]
)
def test_shares_hold_the_truth(truth: float, patients: int, most: int, alike: float) -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(1, most + 1, (4000, patients))
    shape = (truth / alike * (1 - alike), (1 - truth) / alike * (1 - alike)) if alike else None
    chance = rng.beta(*shape, images.shape) if shape else np.full(images.shape, truth)
    low, high = share_interval(clustered(rng.binomial(images, chance), images), 0.95)
    assert 0.935 <= ((low <= truth) & (truth <= high)).mean() <= 0.975
    assert (low > truth).mean() <= 0.04  # the side on which the gate relies


def binormal(
    seed: int, patients: int, auc: float, alike: float = 0.3
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    sick = np.arange(patients) % 3 == 0
    of = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    noise = np.sqrt(alike) * rng.normal(size=patients)[of] + np.sqrt(1 - alike) * rng.normal(size=len(of))
    return sick[of], noise + np.sqrt(2) * norm.ppf(auc) * sick[of], of


@pytest.mark.parametrize(("many", "share"), [(10, 0.1), (20, 0.1), (10, 0.02)])
@pytest.mark.parametrize("truth", [0.8, 0.95])
def test_few_patients_with_most_of_the_images_do_not_lift_the_lower_bound(
    many: int, share: float, truth: float
) -> None:
    """Some of 300 patients have many images, of which all are right or wrong in eight of ten patients."""
    rng = np.random.default_rng(8)
    shape = (2000, 300)
    images = np.where(rng.random(shape) < share, many, 1)
    whole = np.where(rng.random(shape) < truth, images, 0)
    right = np.where(rng.random(shape) < 0.8, whole, rng.binomial(images, truth))
    low, _ = share_interval(clustered(right, images), 0.95)
    assert (low > truth + 1e-12).mean() <= 0.06


def test_patients_with_about_as_many_images_count_as_they_are() -> None:
    """Up to five images each, by chance: nothing is added to what was seen, nor taken from the patients."""
    images = np.random.default_rng(3).integers(1, 6, 300).astype(np.float64)
    crowd = (images**2).sum() / images.sum()
    variance, as_one = uneven_variance(0.9, 0.0004, 300, crowd, images.sum())
    assert float(variance) == pytest.approx(0.0004)
    assert as_one == 1
    heavy = np.where(np.arange(300) < 30, 20.0, 1.0)
    variance, as_one = uneven_variance(0.9, 0.0004, 300, (heavy**2).sum() / heavy.sum(), heavy.sum())
    assert variance > 1.5 * 0.0004
    assert 3 < as_one < 5


def test_the_mean_over_classes_counts_with_what_its_classes_count_with() -> None:
    rng = np.random.default_rng(5)
    labels, images = np.arange(120) % 2, np.where(np.arange(120) < 12, 30, 1)
    right = np.where(np.arange(120) < 12, True, rng.random(120) < 0.9)  # those with many images are all right
    patients = np.repeat(np.arange(120), images)
    called = np.where(right, labels, 1 - labels)[patients]
    p = np.where(called == 1, 0.8, 0.2)
    found = estimates(Predictions(labels[patients], called, np.stack([1 - p, p], axis=1), patients))
    for name in ("sensitivity/1", "specificity/1", "balanced_accuracy"):
        assert variance_inflation(found[name]) > 2


@pytest.mark.parametrize(("auc", "patients"), [(0.8, 90), (0.95, 180)])
def test_areas_hold_the_truth(auc: float, patients: int) -> None:
    found = []
    for seed in range(600):
        truth, score, of = binormal(seed, patients, auc)
        found.append(area(truth, score, of, patients, mean_cluster_size(np.bincount(of).astype(float))).spread)
    low, high = area_interval(Area(*(np.array(field) for field in zip(*found, strict=True))), 0.95)
    assert 0.93 <= ((low <= auc) & (auc <= high)).mean() <= 0.985
    assert (low > auc).mean() <= 0.04


def test_variances_agree_with_the_bootstrap() -> None:
    truth, score, of = binormal(2, 240, 0.9)
    positive = 1 / (1 + np.exp(-score))
    scored = Predictions(
        truth.astype(np.int64), (positive > 0.7).astype(np.int64), np.stack([1 - positive, positive], 1), of
    )
    found = estimates(scored)
    drawn: dict[str, list[float]] = {"pr_auc": [], "f1": []}
    for weight in draw(240, 150, 1).astype(np.float64):
        drawn["pr_auc"].append(average_precision_score(truth, positive, sample_weight=weight[of]))
        drawn["f1"].append(f1_score(truth, positive > 0.7, sample_weight=weight[of]))
    for name, draws in drawn.items():
        spread = found[name].spread
        assert isinstance(spread, Share)
        assert np.sqrt(spread.variance) == pytest.approx(np.std(draws), rel=0.2), name


def test_a_flawless_result_on_few_patients_is_not_certain() -> None:
    labels = np.repeat([0, 1], 10)
    probabilities = np.stack([1 - labels, labels], axis=1).astype(np.float64)
    scored = Predictions(labels, labels, probabilities, np.arange(20) // 2)  # ten patients, two images each
    figures = population(scored, ["no", "yes"], SETTINGS)["figures"]
    one_each = binomtest(10, 10).proportion_ci(0.95, "wilson").low
    assert figures["accuracy"]["value"] == figures["accuracy"]["high"] == 1
    assert 0.65 < figures["accuracy"]["low"] < one_each  # Student's t besides, as images of a patient are estimated
    assert figures["sensitivity"]["low"] < 0.55
    assert figures["auc"]["value"] == 1
    assert figures["auc"]["low"] == pytest.approx(1 - float(unseen_loss(0.025, 5)))
    assert figures["kappa"]["low"] < 0.5
    assert figures["brier"]["high"] > 0.05


def test_one_error_never_raises_the_lower_bound() -> None:
    labels = np.repeat([0, 1], 100)
    positive = np.where(labels == 1, 0.9, 0.1)
    lows = []
    for errors in range(5):  # the fifth falls on another patient, which loosens what four on one suggest
        wrong = positive.copy()
        wrong[:errors] = 0.95
        scored = Predictions(
            labels, (wrong > 0.5).astype(np.int64), np.stack([1 - wrong, wrong], axis=1), np.arange(200) // 4
        )
        figures = population(scored, ["no", "yes"], SETTINGS)["figures"]
        lows.append([figures[name]["low"] for name in ("accuracy", "specificity", "auc")])
    for better, worse in pairwise(lows):
        assert all(a >= b - 1e-12 for a, b in zip(better, worse, strict=True))


def test_fewer_patients_than_make_an_interval() -> None:
    assert share_figure(Share(0.5, 0.0, 1, 4.0), 0.95) == {"value": 0.5, "low": None, "high": None}
    assert area_figure(Area(0.9, 0.01, 0.01, 0.0, 1, 30, 0.01), 0.95) == {"value": 0.9, "low": None, "high": None}
    assert share_figure(Share(np.nan, np.nan, 0, 1.0), 0.95) == {"value": None, "low": None, "high": None}
    labels = np.array([0, 1, 0, 1])
    scored = Predictions(labels, labels, np.stack([1 - labels, labels], 1).astype(float), np.zeros(4, np.int64))
    figures = population(scored, ["no", "yes"], SETTINGS)["figures"]
    for name in ("accuracy", "auc", "sensitivity", "f1"):
        assert figures[name] == {"value": 1.0, "low": None, "high": None}, name


def test_what_hardly_any_draw_can_give_has_no_interval() -> None:
    draws = np.full(100, np.nan)
    draws[:40] = 0.5
    assert bootstrap_figure(0.5, draws, 0.95, 0, 1) == {"value": 0.5, "low": None, "high": None}
    assert bootstrap_figure(float("nan"), draws, 0.95, 0, 1)["value"] is None


def test_pieces_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, score, of = binormal(1, 40, 0.9)
    positive = 1 / (1 + np.exp(-score))
    labels = truth.astype(np.int64)
    scored = Predictions(labels, (positive > 0.7).astype(np.int64), np.stack([1 - positive, positive], axis=1), of)
    measure, weights = Measure(scored), draw(40, 100, 3)
    whole = resample(measure, weights)
    monkeypatch.setattr("components.shared.statistics.bootstrapped_metrics.MAX_CELLS", 130)
    parts = resample(measure, weights)
    assert all(np.allclose(whole[name], parts[name], rtol=0, atol=1e-12, equal_nan=True) for name in whole)
    assert np.allclose(measure(equal_weights(scored))["kappa"], whole["kappa"].mean(), atol=0.2)
