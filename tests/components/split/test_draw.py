"""The draw gives each side its share of every finding, class, sex, age band and site."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.split.codes import TEST, TRAIN, VAL
from components.split.draw import draw, draw_ranks, places_per_fold, places_per_split
from components.split.strata import Features, majority
from tests.components.split.loop import FINDINGS, Image, Loop, base, found, shares

ASKED = {"test": 0.25, "val": 0.15, "train": 0.6}


def crowd(patients: int, seed: int = 3) -> list[Image]:
    """Patients as they come: findings of all frequencies, often together, and most with none."""
    rng = np.random.default_rng(seed)
    sick = rng.gamma(0.5, 2, patients)
    return [
        Image(
            f"crowd{patient}-{number}",
            f"crowd{patient}",
            tuple(np.flatnonzero(rng.random(3) < np.array([0.15, 0.08, 0.01]) * sick[patient]).tolist()),
            sex="MF"[int(rng.random() < 0.4)],
            age=int(rng.integers(5, 95)),
            site="abc"[int(rng.choice(3, p=[0.7, 0.25, 0.05]))],
        )
        for patient in range(patients)
        for number in range(int(rng.geometric(0.4)))
    ]


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path, "multilabel")


def having(images: list[Image], finding: int) -> set[str]:
    return {image.patient for image in images if finding in image.labels}


@pytest.mark.slow
def test_every_finding_and_stratum_has_its_share_on_each_side(loop: Loop) -> None:
    images = crowd(2000)
    loop.split(images)
    for finding in range(3):
        patients = having(images, finding)
        counts = {side: sum(loop.patients[patient] == side for patient in patients) for side in ASKED}
        assert counts == pytest.approx({side: share * len(patients) for side, share in ASKED.items()}, abs=1.5)
    assert loop.about["patients"] == {"test": 500, "val": 300, "train": 1200}
    total = sum(loop.about["images"].values())
    assert {side: count / total for side, count in loop.about["images"].items()} == pytest.approx(ASKED, abs=0.03)


@pytest.mark.slow
def test_a_draw_by_chance_would_not_have_given_these_shares(loop: Loop) -> None:
    images = crowd(2000)
    loop.split(images)
    rarest = having(images, 2)
    by_chance = np.random.default_rng(0).permutation(2000)[: len(rarest)] < 500
    assert abs(by_chance.mean() - 0.25) > abs(np.mean([loop.patients[patient] == "test" for patient in rarest]) - 0.25)


@pytest.mark.slow
def test_within_a_class_sex_and_site_are_shared_out_evenly(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    images = [
        Image(f"{label}-{number}", f"{label}-{number}", label, sex="MMF"[number % 3], age=age, site="ab"[number % 2])
        for label in range(2)
        for number, age in enumerate(range(20, 80))
    ]
    loop.split(images)
    for label in range(2):
        assert shares(loop, images, label=label) == ASKED
        for stratum in ({"sex": "M"}, {"sex": "F"}, {"site": "a"}, {"site": "b"}):
            assert shares(loop, images, label=label, **stratum) == pytest.approx(ASKED, abs=0.06)


@pytest.mark.slow
def test_growth_brings_the_shares_back_to_those_asked_for(loop: Loop) -> None:
    images = crowd(2000)
    first = [image for image in images if 2 not in image.labels][:500]
    loop.split([*first, *[Image(f"rare{n}", f"rare{n}", 2) for n in range(3)]])
    loop.split([*images, *[Image(f"rare{n}", f"rare{n}", 2) for n in range(3)]])
    for finding in range(3):
        patients = having(images, finding)
        assert np.mean([loop.patients[patient] == "test" for patient in patients]) == pytest.approx(0.25, abs=0.03)


@pytest.mark.slow
def test_a_published_test_set_leaves_its_findings_as_they_are_and_the_rest_is_shared_out(loop: Loop) -> None:
    images = [
        Image(i.name, i.patient, i.label, official="test" if int(i.patient[5:]) % 5 == 0 and 0 in i.labels else "train")
        for i in crowd(1500)
    ]
    published = {image.patient for image in images if image.official == "test"}
    loop.split(images)
    assert {patient for patient, side in loop.patients.items() if side == "test"} == published
    for finding in range(1, 3):
        open_ = having(images, finding) - published
        share = np.mean([loop.patients[patient] == "val" for patient in open_])
        assert share == pytest.approx(0.15 * 1500 / (1500 - len(published)), abs=0.02)


def test_three_patients_with_a_finding_are_one_each(loop: Loop) -> None:
    images = [*crowd(300), *[Image(f"rare{n}", f"rare{n}", (0, 2)) for n in range(3)]]
    images = [image for image in images if image.patient.startswith("rare") or 2 not in image.labels]
    loop.split(images)
    assert {loop.patients[f"rare{n}"] for n in range(3)} == {"test", "val", "train"}
    assert loop.about["warnings"] == []


def test_a_finding_with_too_few_patients_is_a_warning(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    images = [image for image in found() if 2 not in image.labels]
    logging.getLogger("medloop").propagate = True
    with caplog.at_level("WARNING", "medloop"):
        loop.split([*images, Image("rare1", "rare1", 2), Image("rare2", "rare2", 2)])
    few, *lacking = loop.about["warnings"]
    assert few.startswith("Finding 'Hernia' has 2 patients; at least 3 are needed")
    assert [sentence for sentence in lacking if "has no image with the finding 'Hernia'" in sentence] == lacking
    assert lacking
    assert [record.__dict__["fields"]["why"] for record in caplog.records] == loop.about["warnings"]


def test_no_finding_at_all_is_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match="No image of the data set has any of its 3 findings"):
        loop.split([Image(f"{n}", f"{n}") for n in range(20)])


def test_two_patients_are_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match="The data set has 2 patients; the split needs at least 3"):
        loop.split([Image(f"{n}", f"{n}", 0) for n in range(2)])


def test_a_side_without_any_finding_is_refused(loop: Loop) -> None:
    images = [Image(f"{n}", f"{n}", (0,) if n < 2 else ()) for n in range(20)]
    with pytest.raises(ValueError, match=r"The (test|val|train) split has no image with a finding"):
        loop.split(images)


def test_those_without_a_finding_are_counted_by_that_name(loop: Loop) -> None:
    images = found(60)
    loop.split(images)
    counted = loop.about["shares"]["class"]
    assert list(counted) == sorted([*FINDINGS, "no finding"])
    none = [image for image in images if not image.labels]
    assert sum(side["images"] for side in counted["no finding"].values()) == len(none)
    assert sum(side["patients"] for side in counted["Mass"].values()) == len(having(images, 0))


def test_room_is_what_is_missing_to_the_shares() -> None:
    assert places_per_split(100, (0, 0, 0), (0.25, 0.15), False) == [25, 15, 60]
    assert places_per_split(20, (10, 30, 40), (0.25, 0.15), False) == [15, 0, 5]
    assert places_per_split(20, (10, 0, 0), (0.25, 0.15), True) == [0, 4, 16]
    assert places_per_split(3, (0, 0, 0), (0.05, 0.05), False) == [1, 1, 1]
    assert places_per_split(1, (0, 0, 5), (0.5, 0.5), False) == [1, 0, 0]
    assert places_per_fold(7, (3, 0, 1)) == [1, 4, 2]
    assert places_per_fold(0, (3, 0)) == [0, 0]


def test_a_patient_who_has_a_place_keeps_it_and_the_room_is_filled() -> None:
    place = np.array([TEST, -1, TRAIN, -1, -1, VAL])
    features = Features(np.array([1, 2, 3]), np.array([0, 1, 0]), np.array([1.0, 1.0]))
    members = np.array([True] * 5 + [False])
    drawn = draw(features, members, place, [0, 1, 2], draw_ranks(pa.array("abcdef"), 0))
    assert (drawn[[0, 2, 5]] == [TEST, TRAIN, VAL]).all()
    assert sorted(drawn[[1, 3, 4]]) == [VAL, TRAIN, TRAIN]
    assert place[1] == -1


def test_most_images_decide_and_the_higher_code_where_it_is_even() -> None:
    of, codes = np.array([0, 0, 0, 1, 1, 2, 3]), np.array([1, 0, 0, 0, 1, -1, 2])
    assert majority(of, codes, 5).tolist() == [0, 1, -1, 2, -1]


def test_one_age_among_the_bands(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    images = [Image(f"{i.name}", i.patient, i.label, age=[17, 18, 200, 201][n % 4]) for n, i in enumerate(base(12))]
    loop.split(images)
    counted = loop.about["shares"]["age"]
    total = {band: sum(side["images"] for side in sides.values()) for band, sides in counted.items()}
    assert total == {"<18": 12, "18–39": 12, "40–64": 0, "65+": 12, "unknown": 12}
