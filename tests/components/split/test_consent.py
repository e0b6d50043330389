"""Who withdraws consent is on no side, whatever else is known of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.components.split.loop import Image, Loop, base, hashed, sides


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def images(patients: int = 8) -> list[Image]:
    return [replace(image, patient=hashed(image.patient)) for image in base(patients)]


def in_test(rows: dict[str, Any]) -> str:
    return str(min(row["patient_id"] for row in rows.values() if row["side"] == "test"))


@pytest.mark.parametrize("digits", [12, 32])
def test_a_test_patient_who_withdraws_makes_a_new_version(digits: int, loop: Loop) -> None:
    before = loop.split(images())
    patient = in_test(before)
    rows = loop.split(images(), withdrawn=[patient[:digits]])
    assert {(row["side"], row["why"]) for row in rows.values() if row["patient_id"] == patient} == {("", "withdrawn")}
    others = [name for name, row in rows.items() if row["patient_id"] != patient]
    assert {name: rows[name] for name in others} == {name: before[name] for name in others}
    assert loop.about["version"] == 2
    assert loop.about["withdrawn"] == 2
    assert loop.about["patients"]["test"] == 3
    assert sides(loop.split(images())) == sides(before)


def test_a_patient_who_never_had_a_side_gets_none(loop: Loop) -> None:
    patient = images()[0].patient
    for _ in range(2):
        rows = loop.split(images(), withdrawn=[patient])
        assert {row["side"] for row in rows.values() if row["patient_id"] == patient} == {""}
        assert patient not in loop.patients


def test_a_withdrawn_picture_is_not_used_under_another_name(loop: Loop) -> None:
    rows = loop.split(images())
    patient = in_test(rows)
    picture = next(name for name, row in rows.items() if row["patient_id"] == patient)
    known = next(row["patient_id"] for row in rows.values() if row["side"] == "train")
    label = next(image.label for image in images() if image.patient == known)
    rest = [image for image in images() if image.patient != patient]
    new = [
        Image("renamed", hashed("new"), 0, picture),
        Image("more", hashed("new"), 0),
        Image("copy", known, label, picture),
    ]
    for _ in range(2):
        rows = loop.split([*rest, *new], withdrawn=[patient])
        assert {rows[name]["why"] for name in ("renamed", "more", "copy")} == {"withdrawn"}
        assert all(
            row["side"] == "train" for name, row in rows.items() if row["patient_id"] == known and name != "copy"
        )


def test_a_patient_who_was_taken_to_be_another_goes_with_them(loop: Loop) -> None:
    rows = loop.split(images())
    patient = in_test(rows)
    corrected = [replace(i, patient=hashed("new")) if i.patient == patient else i for i in images()]
    loop.split(corrected)
    assert loop.patients[hashed("new")] == "test"
    rows = loop.split([*corrected, Image("more", hashed("new"), 0)], withdrawn=[patient])
    assert rows["more"]["why"] == "withdrawn"


def test_too_few_that_are_left_are_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match="Class 'NORMAL' has 2 patients"):
        loop.split(images(3), withdrawn=[images()[0].patient])


@pytest.mark.parametrize("named", ["0123456789a", "Miller^Anna", "", 12, "0123456789AB"])
def test_what_is_no_hash_is_refused_and_not_repeated(named: Any, loop: Loop) -> None:
    with pytest.raises(ValueError, match="must contain patients' keyed hashes, at least 12 of their digits") as told:
        loop.split(images(), withdrawn=[named])
    assert "Miller" not in str(told.value)


def test_a_hash_that_nobody_has_is_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match="withdrawn contains 0123456789ab, but the ids of none of the 16 patients"):
        loop.split(images(), withdrawn=["0123456789abcdef"])


def test_a_beginning_that_two_have_is_refused(loop: Loop) -> None:
    twins = [Image("a", "0123456789abc1", 0), Image("b", "0123456789abc2", 0)]
    with pytest.raises(ValueError, match="withdrawn contains 0123456789ab, but the ids of 2 of the 18 patients"):
        loop.split([*images(), *twins], withdrawn=["0123456789ab"])
