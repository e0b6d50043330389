"""A limit takes so many images of each class, whole patients first, and next month mostly the same ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.ingest.subsets import order_classes, within_limit
from tests.components.ingest.sources import add, by_name, order, read

pytestmark = pytest.mark.usefixtures("shared_template")

Image = tuple[str, str, tuple[int, ...]]

PATIENTS, SIDES, LABELS = (
    st.integers(0, 30).map("p{}".format),
    st.sampled_from(["", "train", "test"]),
    st.integers(0, 2),
)
SOURCES = st.lists(st.tuples(PATIENTS, SIDES, LABELS.map(lambda label: (label,))), max_size=60)


def taken(images: list[Image], limit: int) -> list[Image]:
    chosen = within_limit(images, limit, order)
    return [image for image, is_taken in zip(images, chosen, strict=True) if is_taken]


@given(SOURCES, st.integers(1, 8))
def test_each_class_has_its_limit_on_each_side_or_all_there_is(images: list[Image], limit: int) -> None:
    there = Counter((side, labels) for _, side, labels in images)
    assert Counter((side, labels) for _, side, labels in taken(images, limit)) == {
        group: min(limit, count) for group, count in there.items()
    }


@given(SOURCES, st.integers(1, 8))
def test_at_most_one_patient_of_a_class_and_side_is_parted(images: list[Image], limit: int) -> None:
    there, chosen = Counter(images), Counter(taken(images, limit))
    parted = Counter(image[1:] for image in chosen if chosen[image] < there[image])
    assert not parted or max(parted.values()) == 1


@given(SOURCES, SOURCES, st.integers(1, 8))
def test_a_new_patient_takes_no_more_places_than_the_patient_has_images(
    images: list[Image], new: list[Image], limit: int
) -> None:
    came: list[Image] = [("new", side, labels) for _, side, labels in new[:5]]
    before, after = Counter(taken(images, limit)), Counter(taken([*images, *came], limit))
    assert (before - after).total() <= len(came)
    assert (after - before).total() <= len(came)


def test_a_rare_finding_goes_on_after_a_frequent_one_is_full() -> None:
    images: list[Image] = [(f"p{number}", "", labels) for number, labels in enumerate([(0,), (0, 1), (1,), ()] * 25)]
    images += [("rare", "", (0, 2))]
    chosen = taken(images, 10)
    count = Counter(label for *_, labels in chosen for label in labels)
    assert min(count[0], count[1]) >= 10
    assert count[2] == 1, "an image is taken while any of its findings is below the limit"
    assert sum(not labels for *_, labels in chosen) == 10
    assert len(chosen) < len(images)


def test_a_limit_counts_only_what_can_be_used_and_is_told(tmp_path: Path) -> None:
    add(tmp_path, [f"train/{label}/p{number // 2}_{number}.png" for label in "AB" for number in range(10)])
    add(tmp_path, [f"test/{label}/q{number}_1.png" for label in "AB" for number in range(3)])
    add(tmp_path, ["stray.png"])
    found = read(tmp_path, limit_per_class=4)
    sides = Counter((item.official, item.labels) for item in found.files if not item.problem)
    assert sides == {("train", (0,)): 4, ("train", (1,)): 4, ("test", (0,)): 3, ("test", (1,)): 3}
    assert found.left_out == {"limit_per_class": 12}
    assert by_name(found)["stray.png"].problem
    assert read(tmp_path, limit_per_class=4) == found
    assert read(tmp_path, limit_per_class=100).left_out == {}


def test_the_class_without_a_finding_comes_first() -> None:
    assert order_classes(["b", "Normal", "a"]) == ["Normal", "a", "b"]
    assert order_classes(["b", "Normal", "a"], "b") == ["b", "Normal", "a"]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_another_key_takes_others(limit: int) -> None:
    images: list[Image] = [(f"p{number}", "", (0,)) for number in range(40)]
    other = within_limit(images, limit, lambda patient: order(f"other {patient}"))
    assert sum(other) == limit
    assert other != within_limit(images, limit, order)
