"""The figures equal scikit-learn's, for any labels, ties, classes, findings and weightings of the patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.preprocessing import label_binarize

from components.evaluate.point_metrics import average_precision, estimates
from components.shared.statistics.bootstrapped_metrics import Measure, Predictions, confusion, equal_weights
from components.shared.statistics.curves import curves


def scored(seed: int, images: int, classes: int, ties: int) -> Predictions:
    """Random images of which every class has at least two; with few distinct probabilities where `ties` is low."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), np.arange(classes), rng.integers(classes, size=images)])
    logits = rng.normal(size=(len(labels), classes)) + 1.5 * np.eye(classes)[labels]
    logits = np.round(logits * ties) / ties
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    patients = np.unique(rng.integers(len(labels) // 2, size=len(labels)), return_inverse=True)[1]
    return Predictions(labels, probabilities.argmax(axis=1), probabilities, patients)


def findings(seed: int, images: int, number: int, ties: int) -> Predictions:
    """Random images with any number of findings, each of them on at least two images and absent from two."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.eye(number), 1 - np.eye(number), rng.random((images, number)) < 0.3]).astype(np.int64)
    logits = np.round((rng.normal(size=labels.shape) + 1.5 * labels - 1) * ties) / ties
    probabilities = 1 / (1 + np.exp(-logits))
    patients = np.unique(rng.integers(len(labels) // 2, size=len(labels)), return_inverse=True)[1]
    return Predictions(labels, (probabilities >= 0.4).astype(np.int64), probabilities, patients)


def ours(s: Predictions) -> dict[str, float]:
    """All figures as they are computed here."""
    drawn = {name: float(value[0]) for name, value in Measure(s, ordered=not s.multilabel)(equal_weights(s)).items()}
    return drawn | {name: estimate.value for name, estimate in estimates(s).items()}


def theirs(s: Predictions) -> dict[str, float]:
    """The same figures by scikit-learn."""
    y, called, p = s.labels, s.predicted, s.probabilities
    binary = s.classes == 2
    truth = np.eye(s.classes)[y]
    said = np.eye(s.classes)[called]
    average = "binary" if binary else "macro"
    rest = [sk.recall_score(y != k, called != k) for k in range(s.classes)]
    figures = {
        "accuracy": sk.accuracy_score(y, called),
        "balanced_accuracy": sk.balanced_accuracy_score(y, called),
        "auc": sk.roc_auc_score(y, p[:, 1]) if binary else sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "pr_auc": sk.average_precision_score(y if binary else truth, p[:, 1] if binary else p),
        "sensitivity": sk.recall_score(y, called, average=average),
        "specificity": rest[1] if binary else float(np.mean(rest)),
        "precision": sk.precision_score(y, called, average=average, zero_division=0.0),
        "f1": sk.f1_score(y, called, average=average, zero_division=0.0),
        "kappa": sk.cohen_kappa_score(y, called),
        "weighted_kappa": sk.cohen_kappa_score(y, called, weights="quadratic"),
        "brier": sk.brier_score_loss(y, p[:, 1] if binary else p, labels=list(range(s.classes))),
    }
    if not binary:
        figures |= {
            "micro/precision": sk.precision_score(y, called, average="micro"),
            "micro/sensitivity": sk.recall_score(y, called, average="micro"),
            "micro/f1": sk.f1_score(y, called, average="micro"),
            "micro/auc": sk.roc_auc_score(truth.ravel(), p.ravel()),
            "micro/pr_auc": sk.average_precision_score(truth, p, average="micro"),
        }
    return figures | of_each(truth, said, p)


def of_each(truth: NDArray[np.float64], called: NDArray[np.float64], p: NDArray[np.float64]) -> dict[str, float]:
    """The figures of each class against the rest, or of each finding, by scikit-learn."""
    figures: dict[str, float] = {}
    for k in range(truth.shape[1]):
        t, c = truth[:, k], called[:, k]
        figures |= {
            f"accuracy/{k}": sk.accuracy_score(t, c),
            f"balanced_accuracy/{k}": sk.balanced_accuracy_score(t, c),
            f"sensitivity/{k}": sk.recall_score(t, c),
            f"specificity/{k}": sk.recall_score(t, c, pos_label=0),
            f"precision/{k}": sk.precision_score(t, c, zero_division=0.0),
            f"f1/{k}": sk.f1_score(t, c),
            f"auc/{k}": sk.roc_auc_score(t, p[:, k]),
            f"pr_auc/{k}": sk.average_precision_score(t, p[:, k]),
            f"kappa/{k}": sk.cohen_kappa_score(t, c),
            f"brier/{k}": sk.brier_score_loss(t, p[:, k]),
        }
    return figures


CASES = {
    "seed": st.integers(0, 10**6),
    "images": st.integers(10, 150),
    "classes": st.integers(2, 4),
    "ties": st.sampled_from([1, 3, 1000]),
}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_figures_equal_scikit_learn(seed: int, images: int, classes: int, ties: int) -> None:
    s = scored(seed, images, classes, ties)
    found, expected = ours(s), theirs(s)
    assert {name for name in found if "calibration" not in name} == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert np.array_equal(confusion(s), sk.confusion_matrix(s.labels, s.predicted))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(**CASES)
def test_figures_of_findings_equal_scikit_learn(seed: int, images: int, classes: int, ties: int) -> None:
    s = findings(seed, images, classes, ties)
    y, called, p = s.labels, s.predicted, s.probabilities
    found, each = ours(s), of_each(y.astype(float), called.astype(float), p)
    for name, value in each.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    for name in ("balanced_accuracy", "specificity", "kappa", "brier"):
        assert found[name] == pytest.approx(np.mean([each[f"{name}/{k}"] for k in range(classes)]), abs=1e-9)
    assert found["accuracy"] == pytest.approx(1 - sk.hamming_loss(y, called), abs=1e-9)
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(y, called), abs=1e-9)
    for average, before in (("macro", ""), ("micro", "micro/")):
        ranked = {"y_true": y, "y_score": p, "average": average}
        assert found[f"{before}auc"] == pytest.approx(sk.roc_auc_score(**ranked), abs=1e-9)
        assert found[f"{before}pr_auc"] == pytest.approx(sk.average_precision_score(**ranked), abs=1e-9)
        common = {"average": average, "zero_division": 0.0}
        assert found[f"{before}precision"] == pytest.approx(sk.precision_score(y, called, **common), abs=1e-9)
        assert found[f"{before}sensitivity"] == pytest.approx(sk.recall_score(y, called, **common), abs=1e-9)
        assert found[f"{before}f1"] == pytest.approx(sk.f1_score(y, called, **common), abs=1e-9)
    assert np.array_equal(confusion(s), sk.multilabel_confusion_matrix(y, called))


@settings(max_examples=30, deadline=None)
@given(**CASES)
def test_weighted_figures_equal_scikit_learn(seed: int, images: int, classes: int, ties: int) -> None:
    s = scored(seed, images, classes, ties)
    weights = np.random.default_rng(seed).integers(1, 4, size=(3, s.number_of_patients)).astype(np.float64)
    found = Measure(s, ordered=True)(weights)
    p = s.probabilities[:, 1] if classes == 2 else s.probabilities
    for place, weight in enumerate(weights):
        w = weight[s.patients]
        kappa = sk.cohen_kappa_score(s.labels, s.predicted, sample_weight=w)
        quadratic = sk.cohen_kappa_score(s.labels, s.predicted, sample_weight=w, weights="quadratic")
        brier = sk.brier_score_loss(s.labels, p, sample_weight=w, labels=list(range(classes)))
        for name, value in (("kappa", kappa), ("weighted_kappa", quadratic), ("brier", brier)):
            assert found[name][place] == pytest.approx(value, abs=1e-9), name


@settings(max_examples=30, deadline=None)
@given(**CASES)
def test_what_patients_add_is_how_figures_change(seed: int, images: int, classes: int, ties: int) -> None:
    """A patient more or less moves a figure as its part says: compared with leaving a thousandth of one out."""
    s = scored(seed, images, classes, ties)
    found = estimates(s)
    patient, step = seed % s.number_of_patients, 1e-3
    weight = np.where(s.patients == patient, 1 - step, 1.0)
    y, called = (s.labels == 1).astype(int), (s.predicted == 1).astype(int)
    moved = {
        "accuracy": sk.accuracy_score(s.labels, s.predicted, sample_weight=weight),
        "f1/1": sk.f1_score(y, called, sample_weight=weight),
        "auc/1": sk.roc_auc_score(y, s.probabilities[:, 1], sample_weight=weight),
        "pr_auc/1": sk.average_precision_score(y, s.probabilities[:, 1], sample_weight=weight),
    }
    assume(min(found["f1/1"].patients, found["accuracy"].patients, *found["auc/1"].spread[4:6]) > 1)
    for name, value in moved.items():
        estimate = found[name]
        spread = estimate.spread
        if name == "auc/1":
            widths = np.array([np.sqrt(n / (n - 1)) for n in spread[4:6]])  # of the patients with, and without
            part = float((estimate.parts[patient] / widths).sum())
        else:
            part = float(estimate.by_patient[patient] / np.sqrt(estimate.patients / (estimate.patients - 1)))
        assert estimate.value - value == pytest.approx(step * part, abs=3e-6), name
        assert estimate.by_patient.sum() == pytest.approx(0, abs=1e-9)


def test_average_precision_where_all_scores_are_equal() -> None:
    value, parts = average_precision(np.array([True, False, False, True]), np.full(4, 0.3))
    assert value == 0.5
    assert parts.sum() == pytest.approx(0)


def test_micro_auc_takes_all_decisions_together() -> None:
    s = scored(3, 200, 3, 1000)
    truth = label_binarize(s.labels, classes=[0, 1, 2])
    value = sk.roc_auc_score(truth, s.probabilities, average="micro")
    assert estimates(s)["micro/auc"].value == pytest.approx(value, abs=1e-9)
    assert "micro/auc" not in estimates(scored(3, 200, 2, 1000))


def test_calibration_equals_scikit_learns_quantile_bins() -> None:
    s = scored(5, 300, 2, 1000)
    observed, stated = calibration_curve(s.labels, s.probabilities[:, 1], n_bins=10, strategy="quantile")
    points = curves(s, 1, 0.95)["calibration"]
    assert [p["observed"] for p in points] == pytest.approx(list(observed), abs=1e-9)
    assert [p["predicted"] for p in points] == pytest.approx(list(stated), abs=1e-9)
    error = sum(p["images"] * abs(p["observed"] - p["predicted"]) for p in points) / len(s.labels)
    assert ours(s)["calibration_error"] == pytest.approx(error, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(10, 900), ties=st.sampled_from([1, 3, 1000]))
def test_curves_lie_on_scikit_learns(seed: int, images: int, ties: int) -> None:
    s = scored(seed, images, 2, ties)
    lines = curves(s, 1, 0.95)
    fpr, tpr, threshold = sk.roc_curve(s.labels, s.probabilities[:, 1], drop_intermediate=False)
    ours_roc = lines["roc"]
    known = {t: (x, y) for x, y, t in zip(fpr, tpr, threshold, strict=True)}
    assert len(ours_roc["fpr"]) <= 200
    assert (ours_roc["fpr"][0], ours_roc["tpr"][0], ours_roc["threshold"][0]) == (0, 0, 1)
    assert (ours_roc["fpr"][-1], ours_roc["tpr"][-1]) == (1, 1)
    for x, y, t in list(zip(ours_roc["fpr"], ours_roc["tpr"], ours_roc["threshold"], strict=True))[1:]:
        assert known[t] == pytest.approx((x, y), abs=1e-9)
    if len(ours_roc["fpr"]) < 200:  # nothing was thinned: the area is the AUC
        assert np.trapezoid(ours_roc["tpr"], ours_roc["fpr"]) == pytest.approx(estimates(s)["auc"].value, abs=1e-9)
    precision, recall, cut = sk.precision_recall_curve(s.labels, s.probabilities[:, 1])
    points = {t: (p, r) for p, r, t in zip(precision[:-1], recall[:-1], cut, strict=True)}
    for p, r, t in zip(lines["pr"]["precision"], lines["pr"]["recall"], lines["pr"]["threshold"], strict=True):
        assert points[t] == pytest.approx((p, r), abs=1e-9)


def test_a_class_without_images_has_no_figures_and_is_left_out_of_means() -> None:
    s = scored(1, 60, 3, 1000)
    two = s.subset(s.labels != 2)
    figures = ours(two)
    missing = ("sensitivity", "precision", "f1", "auc", "pr_auc", "balanced_accuracy", "kappa", "calibration_error")
    assert all(np.isnan(figures[f"{name}/2"]) for name in missing)
    assert figures["auc"] == pytest.approx((figures["auc/0"] + figures["auc/1"]) / 2)
    one = s.subset(s.labels == 0)
    assert np.isnan(ours(one)["auc"])
    assert curves(one, 0, 0.95)["roc"] is None


def test_a_finding_without_images_has_no_figures_and_is_left_out_of_means() -> None:
    s = findings(1, 80, 3, 1000)
    labels = s.labels.copy()
    labels[:, 2] = 0
    figures = ours(Predictions(labels, s.predicted, s.probabilities, s.patients))
    assert all(np.isnan(figures[f"{name}/2"]) for name in ("sensitivity", "precision", "f1", "auc", "pr_auc", "kappa"))
    for name in ("sensitivity", "auc", "kappa"):
        assert figures[name] == pytest.approx((figures[f"{name}/0"] + figures[f"{name}/1"]) / 2)
