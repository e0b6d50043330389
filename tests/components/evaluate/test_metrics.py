"""The figures equal scikit-learn's, for any labels, ties, classes and weightings of the patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.preprocessing import label_binarize

from components.evaluate.curves import curves
from components.evaluate.metrics import Measure, Scored, once


def scored(seed: int, images: int, classes: int, ties: int) -> Scored:
    """Random images of which every class has at least two; with few distinct probabilities where `ties` is low."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), np.arange(classes), rng.integers(classes, size=images)])
    logits = rng.normal(size=(len(labels), classes)) + 1.5 * np.eye(classes)[labels]
    logits = np.round(logits * ties) / ties
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    patients = np.unique(rng.integers(len(labels) // 2, size=len(labels)), return_inverse=True)[1]
    return Scored(labels, probabilities.argmax(axis=1), probabilities, patients)


def theirs(s: Scored, weight: NDArray[np.float64]) -> dict[str, float]:
    """The same figures by scikit-learn, each image with its patient's weight."""
    y, called, p, w = s.labels, s.predicted, s.probabilities, weight[s.patients]
    binary = s.classes == 2
    truth = np.eye(s.classes)[y]
    average = "binary" if binary else "macro"
    common = {"average": average, "zero_division": 0.0, "sample_weight": w}
    rest = [sk.recall_score(y != k, called != k, sample_weight=w) for k in range(s.classes)]
    return {
        "accuracy": sk.accuracy_score(y, called, sample_weight=w),
        "balanced_accuracy": sk.balanced_accuracy_score(y, called, sample_weight=w),
        "auc": sk.roc_auc_score(y, p[:, 1], sample_weight=w)
        if binary
        else np.mean([sk.roc_auc_score(truth[:, k], p[:, k], sample_weight=w) for k in range(s.classes)]),
        "pr_auc": sk.average_precision_score(y if binary else truth, p[:, 1] if binary else p, sample_weight=w),
        "sensitivity": sk.recall_score(y, called, **common),
        "specificity": rest[1] if binary else np.mean(rest),
        "precision": sk.precision_score(y, called, **common),
        "f1": sk.f1_score(y, called, **common),
        "kappa": sk.cohen_kappa_score(y, called, sample_weight=w),
        "brier": sk.brier_score_loss(y, p[:, 1] if binary else p, sample_weight=w, labels=list(range(s.classes))),
    }


CASES = {
    "seed": st.integers(0, 10**6),
    "images": st.integers(10, 150),
    "classes": st.integers(2, 4),
    "ties": st.sampled_from([1, 3, 1000]),
}


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_figures_equal_scikit_learn(seed: int, images: int, classes: int, ties: int) -> None:
    s = scored(seed, images, classes, ties)
    ours = Measure(s).all(once(s))
    for name, value in theirs(s, np.ones(s.number_of_patients)).items():
        assert ours[name][0] == pytest.approx(value, abs=1e-9), name
    plain = Measure(s).plain(once(s))
    assert all(plain[name][0] == pytest.approx(ours[name][0], abs=1e-12) for name in plain)


@settings(max_examples=30, deadline=None)
@given(**CASES)
def test_weighted_figures_equal_scikit_learn(seed: int, images: int, classes: int, ties: int) -> None:
    s = scored(seed, images, classes, ties)
    weights = np.random.default_rng(seed).integers(1, 4, size=(3, s.number_of_patients)).astype(np.float64)
    ours = Measure(s).all(weights)
    for place, weight in enumerate(weights):
        for name, value in theirs(s, weight).items():
            assert ours[name][place] == pytest.approx(value, abs=1e-9), name


@settings(max_examples=30, deadline=None)
@given(**CASES)
def test_figures_of_each_class_equal_scikit_learn(seed: int, images: int, classes: int, ties: int) -> None:
    s = scored(seed, images, classes, ties)
    ours = Measure(s).all(once(s))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(s.labels, s.predicted, zero_division=0.0)
    for k in range(classes):
        truth = s.labels == k
        assert ours[f"precision/{k}"][0] == pytest.approx(precision[k], abs=1e-9)
        assert ours[f"sensitivity/{k}"][0] == pytest.approx(recall[k], abs=1e-9)
        assert ours[f"f1/{k}"][0] == pytest.approx(f1[k], abs=1e-9)
        assert ours[f"auc/{k}"][0] == pytest.approx(sk.roc_auc_score(truth, s.probabilities[:, k]), abs=1e-9)
        average = sk.average_precision_score(truth, s.probabilities[:, k])
        assert ours[f"pr_auc/{k}"][0] == pytest.approx(average, abs=1e-9)
    assert np.array_equal(Measure(s).confusion(once(s))[0], sk.confusion_matrix(s.labels, s.predicted))


def test_macro_auc_equals_scikit_learns_one_vs_rest() -> None:
    s = scored(3, 200, 3, 1000)
    value = sk.roc_auc_score(s.labels, s.probabilities, multi_class="ovr", average="macro")
    assert Measure(s).all(once(s))["auc"][0] == pytest.approx(value, abs=1e-9)
    truth = label_binarize(s.labels, classes=[0, 1, 2])
    average = sk.average_precision_score(truth, s.probabilities, average="macro")
    assert Measure(s).all(once(s))["pr_auc"][0] == pytest.approx(average, abs=1e-9)


def test_calibration_equals_scikit_learns_quantile_bins() -> None:
    s = scored(5, 300, 2, 1000)
    observed, stated = calibration_curve(s.labels, s.probabilities[:, 1], n_bins=10, strategy="quantile")
    points = curves(s, 1, 0.95)["calibration"]
    assert [p["observed"] for p in points] == pytest.approx(list(observed), abs=1e-9)
    assert [p["predicted"] for p in points] == pytest.approx(list(stated), abs=1e-9)
    error = sum(p["images"] * abs(p["observed"] - p["predicted"]) for p in points) / len(s.labels)
    assert Measure(s).all(once(s))["calibration_error"][0] == pytest.approx(error, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(10, 900), ties=st.sampled_from([1, 3, 1000]))
def test_curves_lie_on_scikit_learns(seed: int, images: int, ties: int) -> None:
    s = scored(seed, images, 2, ties)
    lines = curves(s, 1, 0.95)
    fpr, tpr, threshold = sk.roc_curve(s.labels, s.probabilities[:, 1], drop_intermediate=False)
    ours = lines["roc"]
    known = {t: (x, y) for x, y, t in zip(fpr, tpr, threshold, strict=True)}
    assert len(ours["fpr"]) <= 200
    assert (ours["fpr"][0], ours["tpr"][0], ours["threshold"][0]) == (0, 0, 1)
    assert (ours["fpr"][-1], ours["tpr"][-1]) == (1, 1)
    for x, y, t in list(zip(ours["fpr"], ours["tpr"], ours["threshold"], strict=True))[1:]:
        assert known[t] == pytest.approx((x, y), abs=1e-9)
    if len(ours["fpr"]) < 200:  # nothing was thinned: the area is the AUC
        assert np.trapezoid(ours["tpr"], ours["fpr"]) == pytest.approx(Measure(s).all(once(s))["auc"][0], abs=1e-9)
    precision, recall, cut = sk.precision_recall_curve(s.labels, s.probabilities[:, 1])
    points = {t: (p, r) for p, r, t in zip(precision[:-1], recall[:-1], cut, strict=True)}
    for p, r, t in zip(lines["pr"]["precision"], lines["pr"]["recall"], lines["pr"]["threshold"], strict=True):
        assert points[t] == pytest.approx((p, r), abs=1e-9)


def test_a_class_without_images_has_no_figures_and_is_left_out_of_means() -> None:
    s = scored(1, 60, 3, 1000)
    two = s.only(s.labels != 2)
    figures = Measure(two).all(once(two))
    assert all(np.isnan(figures[f"{name}/2"][0]) for name in ("sensitivity", "precision", "f1", "auc", "pr_auc"))
    assert figures["auc"][0] == pytest.approx((figures["auc/0"][0] + figures["auc/1"][0]) / 2)
    one = s.only(s.labels == 0)
    assert np.isnan(Measure(one).all(once(one))["auc"][0])
    assert curves(one, 0, 0.95)["roc"] is None
