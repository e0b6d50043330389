"""Agreement among readers: Cohen's kappa as scikit-learn has it, Fleiss' as in the example that everyone uses."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from medloop.reader_study.kappa import agreement

TABLE = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip
"""How many of 14 raters put each of ten subjects into each of five categories; Fleiss' kappa is 0.210."""


def test_fleiss_kappa_of_the_known_example() -> None:
    calls = np.array([np.repeat(np.arange(5), row) for row in TABLE]).T
    found = agreement(calls, np.arange(10), 5, 0.95)
    assert (found["method"], found["readers"], found["images"]) == ("Fleiss", 14, 10)
    assert found["kappa"]["value"] == pytest.approx(0.20993, abs=1e-5)
    assert found["kappa"]["low"] < 0.20993 < found["kappa"]["high"]


def test_cohens_kappa_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, 150)
    second = np.where(rng.random(150) < 0.6, first, rng.integers(0, 3, 150))
    found = agreement(np.stack([first, second]), np.arange(150) // 2, 3, 0.95)
    assert found["method"] == "Cohen"
    assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score(first, second))
    assert found["patients"] == 75


def test_full_agreement_on_few_patients_is_not_certain() -> None:
    calls = np.tile(np.arange(20) % 2, (3, 1))
    few, many = (agreement(np.tile(calls, times), np.arange(20 * times), 2, 0.95)["kappa"] for times in (1, 20))
    assert few["value"] == many["value"] == few["high"] == 1
    assert 0.5 < few["low"] < 0.8 < many["low"] < 1


def test_one_class_alone_leaves_no_kappa() -> None:
    for readers in (2, 3):
        found = agreement(np.ones((readers, 12), np.int64), np.arange(12), 2, 0.95)
        assert found["kappa"] == {"value": None, "low": None, "high": None}


@pytest.mark.slow
def test_the_interval_holds_in_simulation() -> None:
    """Two readers who agree by a known kappa: 95 of 100 intervals should hold it; of 200, 178 or more do."""
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        truth = rng.random(120) < 0.4
        first, second = (np.where(rng.random(120) < 0.85, truth, ~truth).astype(np.int64) for _ in range(2))
        kappa = agreement(np.stack([first, second]), np.arange(120), 2, 0.95)["kappa"]
        p = 0.4 * 0.85 + 0.6 * 0.15
        chance, observed = p * p + (1 - p) ** 2, 0.85**2 + 0.15**2
        held += kappa["low"] <= (observed - chance) / (1 - chance) <= kappa["high"]
    assert held >= 178
