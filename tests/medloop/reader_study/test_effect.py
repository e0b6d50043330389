"""The paired difference over readers and cases: a published example, others' code, and a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from medloop.reader_study.effect import Parts, conclude, effect, of_one, parts
from medloop.reader_study.weighted_figures import Area, Share, Sums, covariances, jackknife, value, with_interval

VAN_DYKE = np.array(
    [
        [0.9196457, 0.8587762, 0.9038647, 0.9731079, 0.8297907],
        [0.9478261, 0.9053140, 0.9217391, 0.9993559, 0.9299517],
    ]
)
"""AUCs of five readers of cine and of spin-echo MRI (Van Dyke and others, 1993), which the literature takes for its
example; with the covariances that are published for it, and what it is known to give (as the R package MRMCaov prints
it: MS(T:R) 0.000551031, F 4.45632, df 15.2597, p 0.0516657, interval −0.0879595 to 0.0003589)."""


def test_the_published_example_comes_out() -> None:
    covariance = np.zeros((2, 5, 2, 5))
    covariance[0, :, 0] = covariance[1, :, 1] = 0.0003440748
    covariance[0, :, 1] = covariance[1, :, 0] = 0.0002390284
    made_of = parts(VAN_DYKE, covariance.reshape(10, 10))
    assert made_of.between == pytest.approx(0.000551031, rel=1e-5)
    assert made_of.spread == pytest.approx(0.00107626, rel=1e-5)
    found = conclude(VAN_DYKE, made_of, 0.95)
    assert found["difference"] == pytest.approx(0.0438003, abs=1e-7)
    assert (found["difference"] / made_of.error) ** 2 == pytest.approx(4.45632, rel=1e-5)
    assert found["freedom"] == pytest.approx(15.2597, rel=1e-5)
    assert found["p"] == pytest.approx(0.0516657, rel=1e-4)
    assert (found["low"], found["high"]) == pytest.approx((-0.0003589, 0.0879595), abs=1e-7)


def made(
    rng: np.random.Generator, images: int, patients: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Truth, scores with ties, and patients with images of both kinds."""
    truth = rng.random(images) < 0.4
    scores = np.round(rng.normal(truth, 1.0), 1)
    return truth, scores, rng.integers(0, patients, images)


def test_the_sums_give_the_figure_for_any_weighting() -> None:
    rng = np.random.default_rng(5)
    truth, scores, patients = made(rng, 90, 25)
    counted = rng.random(90) < 0.8
    area = Area.of(scores, truth, counted, patients, 25)
    share = Share.of(scores > 0.5, counted, patients, 25)
    assert value(area) == pytest.approx(roc_auc_score(truth[counted], scores[counted]))
    assert value(share) == pytest.approx((scores > 0.5)[counted].mean())
    weights = rng.integers(0, 4, (3, 25))
    for row, auc, mean in zip(weights, area(weights.astype(float)), share(weights.astype(float)), strict=True):
        again = np.repeat(np.flatnonzero(counted), row[patients[counted]])
        assert auc == pytest.approx(roc_auc_score(truth[again], scores[again]))
        assert mean == pytest.approx((scores > 0.5)[again].mean())


def test_the_covariances_are_those_of_leaving_each_patient_out() -> None:
    rng = np.random.default_rng(6)
    truth, scores, patients = made(rng, 60, 20)
    others = np.round(scores + rng.normal(0, 1, 60), 1)
    everything = np.ones(60, bool)
    several: list[Sums] = [Area.of(each, truth, everything, patients, 20) for each in (scores, others)]
    left_out = jackknife(several)
    present = np.unique(patients)
    by_hand = np.array(
        [[roc_auc_score(truth[patients != p], each[patients != p]) for p in present] for each in (scores, others)]
    )
    np.testing.assert_allclose(left_out, by_hand)
    n = len(present)
    np.testing.assert_allclose(covariances(left_out), np.cov(by_hand) * (n - 1) ** 2 / n)


def test_one_image_a_patient_gives_the_binomial_variance() -> None:
    right = np.arange(100) < 80
    share = Share.of(right, np.ones(100, bool), np.arange(100), 100)
    found = covariances(jackknife([share]))[0, 0]
    assert found == pytest.approx(0.8 * 0.2 / 99)
    figure = with_interval(share, 0.95)
    assert figure["low"] == pytest.approx(0.711, abs=0.01)  # Wilson's is 0.711 to 0.867
    assert figure["high"] == pytest.approx(0.867, abs=0.01)


def simulated(rng: np.random.Generator, readers: int, images: int, gain: float) -> tuple[list[Sums], list[Sums]]:
    """Readers who differ, in skill and in what help does for them, on images that are hard for all, or for some."""
    skill = rng.normal(1.0, 0.25, readers)
    differing = rng.normal(0, 0.15, (2, readers))
    hard = rng.normal(0, 0.7, images)
    hard_with_help, hard_for_one = rng.normal(0, 0.4, (2, images)), rng.normal(0, 0.5, (readers, images))
    sums: list[list[Sums]] = []
    for way in (0, 1):
        latent = (skill + differing[way] + way * gain)[:, None] + hard + hard_with_help[way] + hard_for_one
        right = latent + rng.normal(0, 1, (readers, images)) > 0
        everything, patients = np.ones(images, bool), np.arange(images) // 2
        sums.append([Share.of(each, everything, patients, (images + 1) // 2) for each in right])
    return sums[0], sums[1]


@pytest.mark.parametrize(("readers", "images"), [(3, 80), (6, 120)])
def test_in_simulation_an_effect_that_is_not_there_is_seldom_found(readers: int, images: int) -> None:
    """At a level of 5 %, chance alone finds it in 30 of 600 studies; more than 47 (3 standard errors) are too many."""
    rng = np.random.default_rng(readers)
    found = [effect(*simulated(rng, readers, images, 0.0), 0.95)["p"] for _ in range(600)]
    assert 2 <= sum(p is not None and p < 0.05 for p in found) <= 47


def test_in_simulation_a_strong_effect_is_found() -> None:
    rng = np.random.default_rng(1)
    found = [effect(*simulated(rng, 6, 120, 1.0), 0.95) for _ in range(60)]
    assert sum(each["low"] > 0 for each in found) > 50


def test_readers_who_do_not_change_have_no_interval() -> None:
    right = np.arange(40) % 5 > 0
    share: Sums = Share.of(right, np.ones(40, bool), np.arange(40), 40)
    found = effect([share, share], [share, share], 0.95)
    assert (found["difference"], found["low"], found["high"], found["p"]) == (0, None, None, None)
    assert of_one(share, share, 0.95) == {"difference": 0, "low": None, "high": None}


def test_one_reader_is_compared_with_themselves_over_cases() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.random(200) < 0.7, rng.random(200) < 0.8
    everything, patients = np.ones(200, bool), np.arange(200)
    made_of = [Share.of(each, everything, patients, 200) for each in (before, after)]
    found = of_one(made_of[0], made_of[1], 0.95)
    expected = stats.ttest_rel(after.astype(float), before.astype(float)).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_the_parts_are_never_negative() -> None:
    made_of = Parts(4, 0.0, 0.01)
    assert math.isinf(made_of.freedom)
    assert made_of.error == pytest.approx(math.sqrt(0.02))
    assert parts(VAN_DYKE, -np.ones((10, 10)) + 2 * np.eye(10)).together == 0
