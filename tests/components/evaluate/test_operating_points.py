"""Operating points: the threshold from validation, and the sensitivity at a fixed specificity."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import recall_score, roc_curve

from components.evaluate.operating_points import operating_points
from components.shared.statistics.bootstrapped_metrics import Predictions


def binormal(seed: int, patients: int, ties: int = 10**6) -> Predictions:
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), rng.integers(1, 3, patients))
    labels = (of % 3 == 0).astype(np.int64)
    score = 0.6 * rng.normal(size=patients)[of] + 0.8 * rng.normal(size=len(of)) + 2 * labels
    positive = np.round(norm.cdf(score - 1) * ties) / ties
    return Predictions(labels, (positive >= 0.5).astype(np.int64), np.stack([1 - positive, positive], axis=1), of)


@pytest.mark.parametrize("ties", [4, 20, 10**6])
def test_points_equal_scikit_learns(ties: int) -> None:
    s = binormal(1, 300, ties)
    points = {point["at"]: point for point in operating_points(s, ["no", "yes"], [0.37], 0.95)}
    assert list(points) == ["threshold from validation", "specificity 0.90", "specificity 0.95"]
    assert all(point["class"] == "yes" for point in points.values())
    called = s.probabilities[:, 1] >= 0.37
    chosen = points["threshold from validation"]
    assert chosen["threshold"] == 0.37
    assert chosen["sensitivity"]["value"] == pytest.approx(recall_score(s.labels, called), abs=1e-9)
    assert chosen["specificity"]["value"] == pytest.approx(recall_score(s.labels, called, pos_label=0), abs=1e-9)
    fpr, tpr, _ = roc_curve(s.labels, s.probabilities[:, 1], drop_intermediate=False)
    for wanted in (0.9, 0.95):
        point = points[f"specificity {wanted:.2f}"]
        assert point["sensitivity"]["value"] == pytest.approx(tpr[fpr <= 1 - wanted + 1e-12].max(), abs=1e-9)
        assert point["specificity"]["value"] >= wanted


def test_nothing_is_called_where_any_threshold_is_too_low() -> None:
    s = binormal(1, 60)
    flat = Predictions(s.labels, s.predicted, np.full_like(s.probabilities, 0.5), s.patients)
    point = operating_points(flat, ["no", "yes"], None, 0.95)[0]
    assert (point["threshold"], point["sensitivity"]["value"], point["specificity"]["value"]) == (None, 0, 1)


def test_intervals_hold_the_truth_though_the_threshold_is_picked_on_the_test() -> None:
    truth = float(norm.cdf(2 - norm.ppf(0.9)))
    held = 0
    for seed in range(200):
        figure = operating_points(binormal(seed, 240), ["no", "yes"], None, 0.95)[0]["sensitivity"]
        held += figure["low"] <= truth <= figure["high"]
    assert 0.91 <= held / 200 <= 0.99


def test_each_finding_has_its_own() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((200, 3)) < 0.3).astype(np.int64)
    labels[:, 2] = 0  # a finding that is nowhere has none
    probabilities = np.clip(0.4 * labels + rng.random((200, 3)) * 0.6, 0, 1)
    s = Predictions(labels, (probabilities > 0.5).astype(np.int64), probabilities, np.arange(200))
    points = operating_points(s, ["mass", "edema", "hernia"], [0.5, 0.6, 0.7], 0.95)
    assert [(point["class"], point["at"]) for point in points[:4]] == [
        ("mass", "threshold from validation"),
        ("mass", "specificity 0.90"),
        ("mass", "specificity 0.95"),
        ("edema", "threshold from validation"),
    ]
    assert points[3]["threshold"] == 0.6
    assert len(points) == 6
