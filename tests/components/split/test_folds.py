"""Folds divide those outside the test, for good, and never touch the test."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.components.split.loop import Image, Loop, base, found, sides


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def on(rows: dict[str, str], side: str) -> set[str]:
    return {name for name, found in rows.items() if found == side}


def test_each_fold_validates_once_and_the_test_stays(loop: Loop) -> None:
    plain = sides(loop.split(base(20)))
    validated: list[str] = []
    for fold in range(5):
        rows = loop.split(base(20), folds=5, fold=fold)
        assert on(sides(rows), "test") == on(plain, "test")
        assert all(
            row["fold"] == (-1 if row["side"] == "test" else loop.folds[row["patient_id"]]) for row in rows.values()
        )
        assert {row["fold"] for row in rows.values() if row["side"] == "val"} == {fold}
        assert {row["why"] for row in rows.values() if row["side"] != "test"} == {"fold"}
        validated += on(sides(rows), "val")
    assert sorted(validated) == sorted(name for name, side in plain.items() if side != "test")


def test_folds_are_even_in_classes(loop: Loop) -> None:
    rows = loop.split(base(20), folds=5)
    for label in "01":
        patients = {row["patient_id"]: row["fold"] for row in rows.values() if row["patient_id"][7] == label}
        assert Counter(patients.values()) == {-1: 5, **dict.fromkeys(range(5), 3)}
    assert loop.about["folds"] == [{"patients": 6, "images": 12}] * 5


def test_folds_are_even_in_findings(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "multilabel")
    images = found(120)
    loop.split(images, folds=4)
    for finding in range(3):
        counts = Counter(loop.folds[p] for p in {i.patient for i in images if finding in i.labels})
        of_folds = [counts[fold] for fold in range(4)]
        assert max(of_folds) - min(of_folds) <= 1


def test_whoever_has_a_fold_keeps_it_and_new_patients_fill_the_smallest(loop: Loop) -> None:
    loop.split(base(10), folds=3)
    before = loop.folds
    more = [Image(f"new{n}", f"new{n}", n % 2) for n in range(30)]
    loop.split([*more, *base(10)], folds=3, fold=2)
    assert before.items() <= loop.folds.items()
    assert {fold for patient, fold in loop.folds.items() if loop.patients[patient] == "test"} == {-1}
    of_folds = Counter(fold for fold in loop.folds.values() if fold >= 0)
    assert max(of_folds.values()) - min(of_folds.values()) <= 2


def test_folds_are_remembered_through_a_time_without(loop: Loop) -> None:
    plain = sides(loop.split(base()))
    loop.split(base(), folds=4, fold=1)
    folds = loop.folds
    assert sides(loop.split(base())) == plain
    assert {row["fold"] for row in loop.split(base()).values()} == {-1}
    loop.split(base(), folds=4)
    assert loop.folds == folds
    loop.split(base(), folds=2)
    assert set(loop.folds.values()) == {-1, 0, 1}


def test_a_copy_of_an_image_that_validates_is_not_trained_on(loop: Loop) -> None:
    loop.split(base(), folds=4)
    a, b = (next(p for p, f in loop.folds.items() if f == fold and p[7] == "0") for fold in (0, 1))
    images = [*base(), Image("copy", b, 0, f"base{a[7:]}-0")]
    for fold, alone in ((0, f"base{a[7:]}-0"), (1, "copy")):
        rows = loop.split(images, folds=4, fold=fold)
        pair = {"copy": rows["copy"]["side"], f"base{a[7:]}-0": rows[f"base{a[7:]}-0"]["side"]}
        assert pair == {name: "val" if name == alone else "" for name in pair}


@pytest.mark.parametrize("folds", [(4, 4), (4, 3)])
def test_a_patient_who_is_taken_to_be_another_shares_their_fold(folds: tuple[int, int], loop: Loop) -> None:
    loop.split(base(), folds=folds[0])
    known = [patient for patient, fold in loop.folds.items() if fold >= 0]
    images = base()
    for patient in known:
        images.append(Image(f"other-{patient}", f"other-{patient}", int(patient[7])))
        images = [replace(i, patient=f"other-{patient}") if i.name == f"base{patient[7:]}-0" else i for i in images]
    loop.split(images, folds=folds[1])
    assert {patient: loop.folds[f"other-{patient}"] for patient in known} == {p: loop.folds[p] for p in known}


def test_one_fold_is_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match="folds is 1; it must be 0 for none, or from 2 to 20"):
        loop.split(base(), folds=1)


@pytest.mark.parametrize(("folds", "fold"), [(0, 1), (3, 3)])
def test_a_fold_that_is_not_there_is_refused(folds: int, fold: int, loop: Loop) -> None:
    with pytest.raises(ValueError, match=f"fold is {fold}; it must be below folds, which is {folds}"):
        loop.split(base(), folds=folds, fold=fold)


def test_fewer_patients_of_a_class_than_folds_are_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match="Class 'NORMAL' has 6 patients outside the test split, but 7 folds need"):
        loop.split(base(), folds=7)


def test_fewer_patients_of_a_finding_than_folds_are_a_warning(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "multilabel")
    loop.split(found(), folds=6)
    assert loop.about["warnings"][0].startswith("Finding 'Hernia' has ")
