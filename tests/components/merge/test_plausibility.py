"""A patient with far more images than the others is named; one that only has many is not."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from components.merge.plausibility import find_implausible_patients


def told(counts: dict[str, int], most: int = 500) -> dict[str, str]:
    patients = [patient for patient, count in counts.items() for _ in range(count)]
    return find_implausible_patients(patients, [str(number) for number in range(len(patients))], most)


def test_an_id_that_stands_for_many_is_named_with_its_number_and_the_limit() -> None:
    found = told({"shared": 61, **{f"p{number}": 1 + number % 3 for number in range(40)}})
    assert set(found) == {"shared"}
    assert found["shared"].startswith("61 images of one patient; at most 30 are plausible: 19 patients in 20 have 3")


def test_up_to_ten_times_what_others_have_is_plausible() -> None:
    others = {f"p{number}": 8 for number in range(40)}
    assert told({"many": 80, **others}) == {}
    assert set(told({"many": 81, **others})) == {"many"}


def test_nobody_has_more_than_the_limit_for_any_patient() -> None:
    found = told({"a": 20, "b": 21, "c": 22}, most=20)
    assert set(found) == {"b", "c"}
    assert "at most 20 are plausible: the limit for any patient" in found["b"]


def test_the_patient_in_question_does_not_raise_its_own_limit() -> None:
    assert set(told({"shared": 300, "one": 1})) == {"shared"}
    assert told({"alone": 300}) == {}


def test_slices_of_one_file_count_once() -> None:
    patients = ["scan"] * 400 + [f"p{number}" for number in range(40)]
    assert find_implausible_patients(patients, ["volume"] * 400 + [f"f{number}" for number in range(40)], 100) == {}


def test_no_image_at_all_is_no_crowd() -> None:
    assert find_implausible_patients([], [], 500) == {}


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 120), max_size=12), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_images_does_not_matter(counts: dict[str, int], random: object) -> None:
    patients = [patient for patient, count in counts.items() for _ in range(count)]
    files = [str(number) for number in range(len(patients))]
    places = list(range(len(patients)))
    random.shuffle(places)  # type: ignore[attr-defined]
    assert find_implausible_patients(
        [patients[i] for i in places], [files[i] for i in places], 90
    ) == find_implausible_patients(patients, files, 90)
