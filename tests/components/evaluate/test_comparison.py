"""Two models on the same patients: tests equal the known ones, and bounds are honest where the models hardly differ."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from components.evaluate.comparison import (
    CONTINUITY,
    EXACT_LIMIT,
    LEVELS,
    compare_areas,
    compare_draws,
    compare_shares,
    score_bound,
    share_bounds,
    sign_test,
)
from components.evaluate.metrics_record import Settings, compare
from components.evaluate.point_metrics import estimates
from components.shared.statistics.bootstrapped_metrics import Predictions

SETTINGS = Settings(400, 0.95, 7)


def model(seed: int, patients: int, apart: float, images: int = 3, rng_own: int = 1) -> Predictions:
    """Patients of some images each, of two classes; models of one seed see the same patients."""
    rng, own = np.random.default_rng(seed), np.random.default_rng([seed, rng_own])
    of = np.repeat(np.arange(patients), rng.integers(1, images + 1, patients))
    sick = np.arange(patients) % 2 == 0
    shared = rng.normal(size=patients)[of]
    score = 0.5 * shared + 0.8 * own.normal(size=len(of)) + apart * (sick[of] - 0.5)
    positive = 1 / (1 + np.exp(-2 * score))
    labels = sick[of].astype(np.int64)
    return Predictions(labels, (positive >= 0.5).astype(np.int64), np.stack([1 - positive, positive], axis=1), of)


@pytest.mark.parametrize(("won", "lost"), [(8, 2), (0, 5), (1, 1), (30, 41), (0, 0)])
def test_with_one_image_a_patient_it_is_mcnemars_exact_test(won: int, lost: int) -> None:
    expected = binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert sign_test(np.repeat([1.0, -1.0, 0.0], [won, lost, 50])) == pytest.approx(expected, abs=1e-12)


def test_all_signs_are_gone_through() -> None:
    sums = np.array([3.0, -1.0, 2.0, 2.0, 0.0])
    flips = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1)
    assert sign_test(sums) == (np.abs(sums[:4] @ flips) >= 6).mean()


def test_very_many_patients_are_judged_by_the_normal_distribution() -> None:
    many = np.repeat([1.0, -1.0], [EXACT_LIMIT // 2 + 200, EXACT_LIMIT // 2])
    assert sign_test(many) == pytest.approx(2 * norm.sf(200 / math.sqrt(len(many))), rel=1e-4)


@pytest.mark.parametrize(("won", "lost", "number"), [(0.0, 0.0, 80.0), (3.0, 9.0, 120.0), (20.0, 5.0, 60.0)])
def test_the_bound_solves_tangos_equation(won: float, lost: float, number: float) -> None:
    z = norm.ppf(0.95)
    bound = float(score_bound(won, lost, number, z))
    linear = (2 * number - won + lost) * bound - won - lost
    nuisance = (math.sqrt(linear**2 + 8 * number * lost * bound * (1 - bound)) - linear) / (4 * number)
    variance = number * (2 * nuisance + bound * (1 - bound))
    assert won - lost - CONTINUITY - number * bound == pytest.approx(z * math.sqrt(variance), abs=1e-6)


def test_models_that_never_disagree_prove_no_bound_of_zero() -> None:
    same = model(1, 100, 2.0)
    pairs = compare(same, same, SETTINGS)
    assert pairs["disagree"] == 0
    for name in ("accuracy", "auc", "balanced_accuracy", "sensitivity", "brier", "kappa", "f1", "pr_auc"):
        pair = pairs[name]
        assert (pair["difference"], pair["p"]) == (0, 1.0)
        assert [level for level, _ in pair["lower"]] == list(LEVELS)
        bounds = [bound for _, bound in pair["lower"]]
        assert bounds == sorted(bounds, reverse=True)
        assert bounds[0] < -0.01
        # of 100 patients (50 with each class), a share that is missed with this chance, each losing half at least
        assert all(bound <= -0.5 * (1 - level ** (1 / 100)) for level, bound in pair["lower"])
    assert pairs["accuracy"]["lower"][0][1] > -0.06


def test_several_images_of_a_patient_are_no_further_proof() -> None:
    won, lost = np.zeros((2, 60)), np.zeros((2, 60))
    won[:, :3], lost[:, 3:9] = 1, 1
    one = share_bounds(won[0], lost[0], np.ones(60), np.array(LEVELS))
    four = share_bounds(4 * won[0], 4 * lost[0], np.full(60, 4.0), np.array(LEVELS))
    assert (four <= one + 1e-9).all()  # the same, less for having to estimate how much a patient's images agree
    assert four[0] > one[0] - 0.02
    many = share_bounds(won, lost, np.ones((2, 60)), np.array(LEVELS))
    assert np.allclose(many, one)


def test_delongs_test_equals_its_formula_for_independent_images() -> None:
    ours, theirs = model(3, 300, 2.2, images=1, rng_own=1), model(3, 300, 2.0, images=1, rng_own=2)
    positive, negative = ours.labels == 1, ours.labels == 0
    placed = []
    for each in (ours, theirs):
        a, b = each.probabilities[positive, 1], each.probabilities[negative, 1]
        above = (a[:, None] > b).astype(float)
        placed.append((above.mean(axis=1), above.mean(axis=0)))
    variance = sum(
        np.var(placed[0][side] - placed[1][side], ddof=1) / len(placed[0][side]) for side in (0, 1)
    )  # the textbook's: of both sides' differences of placements
    pair = compare_areas(estimates(ours)["auc"], estimates(theirs)["auc"], 0.95)
    assert pair["ours"] == pytest.approx(roc_auc_score(ours.labels, ours.probabilities[:, 1]), abs=1e-12)
    assert pair["p"] == pytest.approx(2 * norm.sf(abs(pair["difference"]) / math.sqrt(variance)), abs=0.005)
    assert pair["high"] - pair["low"] == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.1)


def test_every_figure_is_compared_and_says_how() -> None:
    pairs = compare(model(3, 150, 2.4, rng_own=1), model(3, 150, 1.6, rng_own=2), SETTINGS)
    tests = {name: pair["test"] for name, pair in pairs.items() if isinstance(pair, dict)}
    assert {name for name, test in tests.items() if test == "mcnemar"} == {"accuracy", "sensitivity", "specificity"}
    assert {name for name, test in tests.items() if test == "delong"} == {"auc"}
    assert {name for name, test in tests.items() if test == "bootstrap"} == {
        "balanced_accuracy", "pr_auc", "precision", "f1", "kappa", "brier", "calibration_error",
    }  # fmt: skip
    for name in ("accuracy", "auc", "brier", "kappa", "pr_auc"):
        pair = pairs[name]
        better = -pair["difference"] if name == "brier" else pair["difference"]
        assert better > 0
        assert pair["p"] < 0.01
        assert pair["low"] <= pair["difference"] <= pair["high"]
        assert pair["lower"][0][1] <= better  # a gain is positive, whichever way the figure goes
        assert pair["lower"][1][1] == pytest.approx(pair["low"] if name != "brier" else -pair["high"], abs=1e-9)


def test_paired_interval_is_narrower_than_a_single_one() -> None:
    ours = model(2, 200, 2.0)
    rng = np.random.default_rng(2)
    positive = np.clip(ours.probabilities[:, 1] + rng.normal(0, 0.02, len(ours.labels)), 0, 1)
    other = Predictions(
        ours.labels, (positive >= 0.5).astype(np.int64), np.stack([1 - positive, positive], 1), ours.patients
    )
    pair = compare(ours, other, SETTINGS)["auc"]
    low, high = (estimates(ours)["auc"].figure(0.95)[end] for end in ("low", "high"))
    assert low is not None
    assert high is not None
    assert pair["high"] - pair["low"] < high - low


def test_an_interval_of_every_difference_is_left_out() -> None:
    pair = compare_draws(0.9, 0.8, np.linspace(-0.5, 0.7, 100), 2, 0.95)
    assert (pair["difference"], pair["low"], pair["high"]) == (pytest.approx(0.1), None, None)
    assert pair["lower"][0][1] < -1


def test_too_few_patients_have_no_bound() -> None:
    one = compare_draws(0.9, 0.8, np.full(100, 0.1), 1, 0.95)
    rare = compare_draws(0.9, 0.8, np.where(np.arange(100) < 60, np.nan, 0.1), 30, 0.95)
    for pair in (one, rare):
        assert (pair["low"], pair["high"], pair["p"]) == (None, None, None)
        assert {bound for _, bound in pair["lower"]} == {None}
        assert pair["difference"] == pytest.approx(0.1)


@pytest.mark.parametrize("level", [0.05, 0.002])
def test_a_challenger_worse_by_the_margin_seldom_passes(level: float) -> None:
    """Two models that err independently; 3,000 tests of 150 patients, accuracies 0.90 and 0.85."""
    rng = np.random.default_rng(4)
    images = rng.integers(1, 4, (3000, 150))
    ours, theirs = rng.random((2, 3000, 150, 3)) < np.array([0.85, 0.90])[:, None, None, None]
    there = np.arange(3) < images[..., None]
    won, lost = ((ours & ~theirs & there).sum(axis=2), (theirs & ~ours & there).sum(axis=2))
    bounds = share_bounds(won.astype(float), lost.astype(float), images.astype(float), np.array([level]))[:, 0]
    assert (bounds >= -0.05).mean() <= level + 2 * math.sqrt(level / 3000)


def test_one_look_at_shares() -> None:
    ours, theirs = model(5, 60, 2.0, rng_own=1), model(5, 60, 2.0, rng_own=2)
    right = [each.predicted == each.labels for each in (ours, theirs)]
    pair = compare_shares(right[0], right[1], ours, 0.95)
    assert pair["ours"] == pytest.approx(right[0].mean())
    assert pair["theirs"] == pytest.approx(right[1].mean())
    assert pair["lower"][1][1] == pytest.approx(pair["low"])  # one-sided at half of the two-sided interval's error
    back = compare_shares(right[1], right[0], ours, 0.95)
    assert (back["low"], back["high"]) == (pytest.approx(-pair["high"]), pytest.approx(-pair["low"]))


@pytest.mark.parametrize("many", [1, 6, 20])
def test_few_patients_with_most_of_the_images_do_not_let_a_worse_model_pass(many: int) -> None:
    """Worse by exactly the margin of 0.05; of 300 patients one in ten has many images, which mostly go together."""
    rng = np.random.default_rng(12)
    shape = (2000, 300)
    images = np.where(rng.random(shape) < 0.1, many, 1)
    together = np.where(rng.random(shape) < 0.05, images, 0)
    lost = np.where(rng.random(shape) < 0.8, together, rng.binomial(images, 0.05)).astype(np.float64)
    errors = np.array([0.05, 0.01, 0.002])
    passed = (share_bounds(np.zeros(shape), lost, images.astype(np.float64), errors) >= -0.05).mean(axis=0)
    assert (passed <= errors + 3 * np.sqrt(errors * (1 - errors) / len(images))).all(), passed
