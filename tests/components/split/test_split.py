"""A patient has one side, for good, however the data grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from components.split.assign import check_patients
from tests.components.split.loop import Image, Loop, base, sides


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def test_the_shares_are_those_that_were_asked_for(tmp_path: Path) -> None:
    loop = Loop(tmp_path, test_fraction=0.2, val_fraction=0.1)
    loop.split(base(40))
    for label in range(2):
        found = [side for patient, side in loop.patients.items() if patient.startswith(f"patient{label}")]
        assert (found.count("test"), found.count("val"), found.count("train")) == (8, 4, 28)
    assert loop.about["patients"] == {"test": 16, "val": 8, "train": 56}
    assert loop.about["images"] == {"test": 32, "val": 16, "train": 112}


def test_the_seed_decides_the_draw(tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        (tmp_path / str(number)).mkdir()
        found.append(sides(Loop(tmp_path / str(number), seed=seed).split(base())))
    assert found[0] == found[1] != found[2]


def test_the_test_side_grows_by_whole_new_patients_and_each_version_is_named(loop: Loop) -> None:
    first = loop.split(base())
    assert loop.about["version"] == 1
    new = [Image(f"new{n}", f"new{n}", n % 2) for n in range(24)]
    again = loop.split(base() + new)
    assert loop.about["version"] == 2
    assert {name: again[name] for name in first} == first
    grown = {name for name, row in again.items() if row["side"] == "test" and row["since"] == 2}
    assert grown
    assert grown <= {image.name for image in new}


def test_the_version_stands_while_nothing_changes(loop: Loop) -> None:
    loop.split(base())
    loop.split(base())
    assert loop.about["version"] == 1


def test_a_patient_whose_images_are_gone_is_remembered(loop: Loop) -> None:
    loop.split(base())
    before = loop.patients
    loop.split([image for image in base() if image.patient != "patient0-3"])
    assert loop.about["version"] == 2
    assert loop.patients == before
    back = loop.split(base())
    assert back["base0-3-0"]["side"] == before["patient0-3"]
    assert back["base0-3-0"]["since"] == 1
    assert back["base0-2-0"]["since"] == 1


def test_new_images_of_a_known_patient_join_them(loop: Loop) -> None:
    rows = loop.split(base())
    patient = next(row["patient_id"] for row in rows.values() if row["side"] == "test")
    again = loop.split([*base(), Image("late", patient, 0)])
    assert (again["late"]["side"], again["late"]["since"]) == ("test", 2)


def test_a_published_test_side_is_kept_and_not_added_to(loop: Loop) -> None:
    images = [*base(6, "train"), *base(3, "test")]
    rows = loop.split(images)
    assert {name for name, row in rows.items() if row["side"] == "test"} == {i.name for i in base(3, "test")}
    assert {row["why"] for name, row in rows.items() if name.startswith("test")} == {"official"}
    assert {row["side"] for name, row in rows.items() if name.startswith("train")} == {"train", "val"}
    grown = loop.split([*images, *[Image(f"new{n}", f"new{n}", n % 2) for n in range(20)]])
    assert {name for name, row in grown.items() if row["side"] == "test"} == {i.name for i in base(3, "test")}


def test_a_published_validation_side_alone_leaves_the_test_side_to_the_draw(loop: Loop) -> None:
    rows = loop.split([*base(8, "train"), *base(3, "val")])
    assert {row["side"] for name, row in rows.items() if name.startswith("val")} == {"val"}
    assert {row["side"] for name, row in rows.items() if name.startswith("train")} == {"train", "test"}


def test_a_patient_on_two_published_sides_is_on_the_strictest(loop: Loop) -> None:
    both = [Image("in-train", "both", 0, "", "train"), Image("in-test", "both", 0, "", "test")]
    rows = loop.split([*base(6, "train"), *base(3, "test"), *both])
    assert (rows["in-train"]["side"], rows["in-test"]["side"]) == ("test", "test")


def test_the_side_a_patient_has_goes_before_a_published_one(loop: Loop) -> None:
    before = sides(loop.split(base()))
    published = [Image(i.name, i.patient, i.label, "", "test") for i in base()]
    assert sides(loop.split(published)) == before


def test_a_copy_of_a_test_image_that_comes_later_is_left_out(loop: Loop) -> None:
    rows = loop.split(base())
    tested = next(name for name, row in rows.items() if row["side"] == "test")
    trained = next(row["patient_id"] for row in rows.values() if row["side"] == "train")
    again = loop.split([*base(), Image("copy", trained, int(trained[7]), tested)])
    assert (again["copy"]["side"], again["copy"]["why"]) == ("", "duplicate")
    assert again[tested] == rows[tested]
    assert loop.about["left_out"] == 1


def test_a_copy_of_a_train_image_on_the_test_side_drives_the_train_image_out(loop: Loop) -> None:
    rows = loop.split(base())
    trained = next(name for name, row in rows.items() if row["side"] == "train")
    tested = next(row["patient_id"] for row in rows.values() if row["side"] == "test" and row["patient_id"][7] == "0")
    again = loop.split([*base(), Image("copy", tested, 0, trained)])
    assert again["copy"]["side"] == "test"
    assert (again[trained]["side"], again[trained]["why"]) == ("", "duplicate")


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_patients_are_refused_with_what_is_needed(count: int, loop: Loop) -> None:
    images = [image for image in base() if image.label == 0 or int(image.patient[-1]) < count]
    with pytest.raises(ValueError, match=f"Class 'PNEUMONIA' has {count} patients?; the split needs at least 3"):
        loop.split(images)


def test_three_patients_of_a_class_are_enough(loop: Loop) -> None:
    loop.split(base(3))
    assert loop.about["patients"] == {"test": 2, "val": 2, "train": 2}


def test_fractions_that_leave_a_side_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The train split has no image of class 'NORMAL'"):
        Loop(tmp_path, test_fraction=0.5, val_fraction=0.5).split(base(3))


def test_a_side_that_lost_a_class_is_named(loop: Loop) -> None:
    rows = loop.split(base())
    held = {row["patient_id"] for row in rows.values() if row["side"] == "test"}
    left = [image for image in base() if image.label == 0 or image.patient not in held]
    with pytest.raises(ValueError, match="The test split has no image of class 'PNEUMONIA'"):
        loop.split(left)


def test_a_damaged_previous_split_is_refused(loop: Loop) -> None:
    loop.split(base())
    record = (loop.folder / "split.json").read_text()
    (loop.folder / "split.json").write_text(record[:30])
    with pytest.raises(ValueError, match=r"split\.json is not a JSON split"):
        loop.split(base())


def test_images_that_look_the_same_stay_on_the_strictest_side_alone(loop: Loop) -> None:
    rows = loop.split(base())
    of = {side: [name for name, row in rows.items() if row["side"] == side] for side in ("train", "test")}
    alike = {of["train"][0], of["test"][0], of["test"][1]}
    images = [replace(image, near=min(alike) if image.name in alike else "") for image in base()]
    again = loop.split(images)
    assert (again[of["train"][0]]["side"], again[of["train"][0]]["why"]) == ("", "near duplicate")
    assert {name: again[name] for name in of["test"]} == {name: rows[name] for name in of["test"]}
    assert loop.about["left_out"] == 1


def test_images_that_look_the_same_on_one_side_all_stay(loop: Loop) -> None:
    rows = loop.split(base())
    trained = sorted(name for name, row in rows.items() if row["side"] == "train")[:4]
    again = loop.split([replace(image, near=trained[0] if image.name in trained else "") for image in base()])
    assert sides(again) == sides(rows)


def test_an_image_whose_patient_was_corrected_takes_the_side_along(loop: Loop) -> None:
    rows = loop.split(base())
    for side in ("test", "train"):
        name = next(name for name, row in rows.items() if row["side"] == side)
        old = rows[name]["patient_id"]
        corrected = [replace(i, patient=f"corrected-{side}") if i.patient == old else i for i in base()]
        again = loop.split([*corrected, Image(f"more-{side}", f"corrected-{side}", int(old[7]))])
        assert {again[n]["side"] for n in (name, f"more-{side}")} == {side}
        assert again[name]["why"] == "same image"


def test_a_test_image_under_another_name_and_patient_stays_in_the_test(loop: Loop) -> None:
    rows = loop.split(base())
    name, row = next((name, row) for name, row in rows.items() if row["side"] == "test")
    rest = [image for image in base() if image.patient != row["patient_id"]]
    again = loop.split([*rest, Image("renamed", "new", int(row["patient_id"][7]), name)])
    assert (again["renamed"]["side"], again["renamed"]["why"]) == ("test", "same image")


@pytest.mark.parametrize("pixels", ["the same name", "the same pixels"])
def test_a_test_image_that_comes_to_a_train_patient_is_never_trained_on(pixels: str, loop: Loop) -> None:
    rows = loop.split(base())
    tested = next(row for row in rows.values() if row["side"] == "test")
    trained = next(row for row in rows.values() if row["side"] == "train")
    moved = Image(tested["image_id"], trained["patient_id"], int(trained["patient_id"][7]))
    if pixels == "the same pixels":
        moved = replace(moved, name="renamed", pixels=tested["image_id"])
    rest = [image for image in base() if image.patient != tested["patient_id"]]
    for _ in range(3):
        again = loop.split([*rest, moved])
        assert (again[moved.name]["side"], again[moved.name]["why"]) == ("", "seen on test")


def test_the_pixels_of_a_test_image_that_was_replaced_are_never_trained_on(loop: Loop) -> None:
    rows = loop.split(base())
    tested = next(name for name, row in rows.items() if row["side"] == "test")
    trained = next(row["patient_id"] for row in rows.values() if row["side"] == "train")
    replaced = [replace(image, pixels="other") if image.name == tested else image for image in base()]
    late = Image("late", trained, int(trained[7]), tested)
    for _ in range(3):
        assert loop.split([*replaced, late])["late"]["why"] == "seen on test"


def test_another_hash_key_is_refused(loop: Loop) -> None:
    loop.split(base())
    with pytest.raises(ValueError, match="The previous split was made with the hash key made, but this data set with "):
        loop.split(base(), key_id="another")


def test_the_counts_of_each_side_are_told(loop: Loop) -> None:
    images = [replace(i, sex="F" if i.label else "", age=70, site="unknown" if i.label else "") for i in base(20)]
    loop.split(images, test_fraction=0.2, val_fraction=0.1)
    sides = {"test": {"patients": 4, "images": 8}, "val": {"patients": 2, "images": 4}}
    each = {**sides, "train": {"patients": 14, "images": 28}}
    both = {side: {what: 2 * number for what, number in counts.items()} for side, counts in each.items()}
    none = {side: dict.fromkeys(counts, 0) for side, counts in each.items()}
    assert loop.about["shares"] == {
        "class": {"NORMAL": each, "PNEUMONIA": each},
        "sex": {"F": each, "unknown": each},
        "age": {"<18": none, "18–39": none, "40–64": none, "65+": both},
        "site": {"unknown": both},
    }


def test_a_data_set_without_images_is_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match="Class 'NORMAL' has 0 patients"):
        loop.split([])


def test_a_refusal_that_rests_on_guessed_patients_says_so() -> None:
    people: Any = SimpleNamespace(findings=None, count_by_class=lambda _members, _classes: [1, 7])
    about = {"classes": ["NORMAL", "SICK"], "counts": {"guessed": {"file name": 1200}}}
    with pytest.raises(ValueError, match=r"Class 'NORMAL' has 1 patient.*The patients of 1,200 images were guessed"):
        check_patients(people, np.ones(8, bool), about)
