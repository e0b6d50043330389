"""Subgroups say what they are too small for, and gaps between them hold for whichever pair is picked."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluate.subgroups import gaps, make_subgroups
from components.shared.statistics.bootstrapped_metrics import Predictions


def scored(right: list[float], patients: int, seed: int = 1) -> tuple[Predictions, list[str]]:
    """A group of so many patients with two images each for every share of right answers; and the groups' names."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(right)), 2 * patients)
    labels = np.tile([0, 0, 1, 1], len(group) // 4)
    hit = rng.random(len(group)) < np.array(right)[group]
    predicted = np.where(hit, labels, 1 - labels)
    positive = np.where(predicted == 1, 0.6, 0.4) + rng.uniform(-0.3, 0.3, len(group))
    return Predictions(labels, predicted, np.stack([1 - positive, positive], 1), np.arange(len(group)) // 2), [
        f"group{number}" for number in group
    ]


def test_gaps_lie_between_the_best_and_the_worst() -> None:
    whole, names = scored([0.95, 0.9, 0.6], 80)
    groups = make_subgroups(whole, {"site": names})
    found = {gap["figure"]: gap for gap in gaps(groups, 0.95, whole.number_of_patients)}
    assert set(found) == {"accuracy", "auc", "sensitivity", "specificity"}
    gap = found["accuracy"]
    values = {group.value: group.estimates["accuracy"].value for group in groups}
    assert (gap["field"], gap["best"], gap["worst"]) == ("site", "group0", "group2")
    assert gap["gap"] == pytest.approx(values["group0"] - values["group2"])
    assert 0.1 < gap["low"] < gap["gap"] < gap["high"] < 0.6


def test_small_and_unknown_groups_are_left_out_of_gaps() -> None:
    whole, names = scored([0.9, 0.9, 0.2], 40)
    for worst in ("few", "unknown"):
        named = [worst if name == "group2" else name for name in names]
        keep = np.ones(len(named), bool)
        if worst == "few":
            keep[np.flatnonzero(np.array(named) == "few")[38:]] = False  # 19 patients
        some = whole.subset(keep)
        groups = make_subgroups(some, {"site": [name for name, kept in zip(named, keep, strict=True) if kept]})
        assert next(group for group in groups if group.value == worst).why == (
            "19 patients; at least 20 are needed." if worst == "few" else ""
        )
        found = gaps(groups, 0.95, some.number_of_patients)
        assert found
        assert all(worst not in (gap["best"], gap["worst"]) for gap in found)


def test_the_same_patients_in_both_groups_narrow_the_gap() -> None:
    """Every patient has an image of each view; images of one patient are right or wrong together."""
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(200), 2)
    labels = patients % 2
    hit = (rng.random(200) < 0.8)[patients] ^ (rng.random(400) < 0.02)
    predicted = np.where(hit, labels, 1 - labels)
    positive = np.where(predicted == 1, 0.9, 0.1)
    probabilities = np.stack([1 - positive, positive], 1)
    together = Predictions(labels, predicted, probabilities, patients)
    views = ["PA", "AP"] * 200
    mixed = Predictions(labels, predicted, probabilities, np.arange(400))
    narrow, wide = (
        next(gap for gap in gaps(make_subgroups(each, {"view": views}), 0.95, each.number_of_patients))
        for each in (together, mixed)
    )
    assert narrow["figure"] == wide["figure"] == "accuracy"
    assert narrow["high"] - narrow["gap"] < 0.5 * (wide["high"] - wide["gap"])


@pytest.mark.slow
def test_gaps_hold_where_there_is_none() -> None:
    """Of five equal groups the best and the worst always differ; the interval must still reach down to 0."""
    excluded = 0
    for seed in range(50):
        whole, names = scored([0.85] * 5, 50, seed)
        found = gaps(make_subgroups(whole, {"site": names}), 0.95, whole.number_of_patients)
        excluded += next(gap for gap in found if gap["figure"] == "accuracy")["low"] > 0
    assert excluded <= 6  # 5 % of 50, and what chance allows


def test_a_finding_tells_no_images_apart() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((120, 2)) < 0.4).astype(np.int64)
    labels[60:] = 0
    whole = Predictions(labels, labels, labels.astype(float), np.arange(120))
    groups = make_subgroups(whole, {"sex": ["F"] * 60 + ["M"] * 60})
    assert [group.why for group in groups] == ["", "Each finding is on all or none of the images."]
    assert groups[1].record(0.95)["figures"]["auc"] is None
