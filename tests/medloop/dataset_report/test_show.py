"""A data set's figures: right to the last image, whatever its task, with a split and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.shared.storage.store import Store, open_store
from medloop.dataset_report.statistics import Figures
from medloop.dataset_report.verdicts import verdicts
from tests.made import make_dataset, make_split
from tests.medloop.dataset_report.made import change, look, place, tell


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def data(tmp_path: Path, store: Store) -> Path:
    return make_dataset(tmp_path / "dataset", store)


@pytest.fixture
def splits(tmp_path: Path, data: Path) -> Path:
    return make_split(tmp_path / "splits", data)


def counts(shown: Figures, by: str) -> dict[str, tuple[int, int]]:
    return {entry["value"]: (entry["images"], entry["patients"]) for entry in shown[by]}


def said(shown: Figures, state: str) -> str:
    return "\n".join(verdict.says for verdict in verdicts(shown) if verdict.state == state)


def test_counts_by_class_side_and_what_is_known(data: Path, splits: Path, store: Store) -> None:
    shown, _ = look(data, splits, store)
    assert (shown["all"]["images"], shown["all"]["patients"]) == (80, 40)
    assert shown["all"]["sides"] == {
        "train": {"images": 48, "patients": 24},
        "val": {"images": 16, "patients": 8},
        "test": {"images": 16, "patients": 8},
        "unused": {"images": 0, "patients": 0},
    }
    assert counts(shown, "by_class") == {"NORMAL": (40, 20), "PNEUMONIA": (40, 20)}
    assert shown["by_class"][1]["sides"]["test"] == {"images": 8, "patients": 4}
    assert counts(shown, "by_sex") == {"female": (40, 20), "male": (40, 20)}
    assert counts(shown, "by_age") == {"18–39": (40, 20), "40–64": (40, 20)}
    assert counts(shown, "by_site") == {"north": (40, 20), "south": (40, 20)}
    assert counts(shown, "by_view") == {"PA": (80, 40)}
    assert shown["by_site"][0]["classes"] == {"NORMAL": 20, "PNEUMONIA": 20}
    assert shown["leakage"] == {"patients": 0, "identical_images": 0, "near_duplicates": 0}
    assert shown["pixels"]["bits"] == {"8": 80}
    assert shown["pixels"]["longest_side"] == {"least": 36, "median": 36.0, "most": 36}
    assert "0 patients are in more than one split." in said(shown, "ok")
    assert said(shown, "problem") == ""


def test_without_a_split_there_are_no_sides(data: Path, store: Store) -> None:
    shown, _ = look(data, None, store)
    assert shown["split"] is None
    assert shown["leakage"] is None
    assert "sides" not in shown["all"]
    assert counts(shown, "by_class") == {"NORMAL": (40, 20), "PNEUMONIA": (40, 20)}
    assert "There is no split" in said(shown, "note")


def test_a_patient_on_two_sides_is_a_problem(data: Path, splits: Path, store: Store) -> None:
    _, rows = look(data, splits, store)
    train = next(row for row in range(80) if rows.split[row] == 0)
    place(splits, {rows.ids[train]: ("test", "draw")})
    shown, _ = look(data, splits, store)
    assert shown["leakage"]["patients"] == 1
    assert "1 patient is in more than one split" in said(shown, "problem")


def test_duplicates_and_look_alikes_are_counted_and_told_apart(data: Path, splits: Path, store: Store) -> None:
    def plant(rows: list[dict[str, Any]]) -> None:
        # Rows 0 and 1 are one patient's. 2 equals 0 to the pixel; 4 looks like 16, which lies on another side.
        rows[2].update(pixel_digest=rows[0]["pixel_digest"], duplicate_of=rows[0]["image_id"])
        rows[1].update(pixel_digest=rows[0]["pixel_digest"], duplicate_of=rows[0]["image_id"])
        for row in (0, 1, 2):
            rows[row]["near"] = min(rows[k]["image_id"] for k in (0, 1, 2))
        for row in (4, 16):
            rows[row]["near"] = min(rows[k]["image_id"] for k in (4, 16))

    change(data, plant)
    _, rows = look(data, splits, store)
    place(splits, {rows.ids[1]: ("", "duplicate"), rows.ids[2]: ("", "duplicate")})
    shown, rows = look(data, splits, store)
    assert (rows.split_names[rows.split[4]], rows.split_names[rows.split[16]]) == ("train", "test")
    assert shown["duplicates"] == {"images": 2, "groups": 1, "groups_of_several_patients": 1}
    assert shown["near_duplicates"] == {"images": 2, "groups": 1, "groups_of_several_patients": 1}
    assert shown["leakage"] == {"patients": 0, "identical_images": 0, "near_duplicates": 1}
    assert shown["split"]["left_out"] == {"duplicate": 2}
    assert shown["all"]["sides"]["unused"]["images"] == 2
    assert "1 group of near duplicates is in more than one split" in said(shown, "problem")


def test_images_with_any_number_of_findings(data: Path, splits: Path, store: Store) -> None:
    def plant(rows: list[dict[str, Any]]) -> None:
        for place_, row in enumerate(rows):
            row["labels"] = ([], [0], [1], [0, 1])[place_ % 4]

    change(data, plant)
    tell(data, task="multilabel", classes=["Mass", "Edema", "Hernia"])
    shown, _ = look(data, splits, store)
    assert {name: images for name, (images, _) in counts(shown, "by_class").items()} == {
        "Mass": 40,
        "Edema": 40,
        "Hernia": 0,
        "no finding": 20,
    }
    assert shown["findings"]["per_image"] == {"0": 20, "1": 40, "2": 20}
    assert shown["findings"]["together"] == [[40, 20, 0], [20, 40, 0], [0, 0, 0]]
    assert said(shown, "problem") == "There is no image of class Hernia."


def test_what_was_set_aside_is_told_by_reason_and_keyed_ids_are_cut(data: Path, splits: Path, store: Store) -> None:
    ids = [f"{number:012x}{0:020x}" for number in range(1, 10)]
    lines = [f"{name},unreadable,the file is empty" for name in ids[:3]] + [f"{ids[3]},blank,all one value"]
    (data / "quarantine.csv").write_text("\n".join(["image_id,reason,detail", *lines]) + "\n")
    (data / "warnings.csv").write_text(
        f'image_id,patient_id,reason,detail\n,{ids[4]},many images,"900, the next has 12"\n'
    )
    shown, _ = look(data, splits, store)
    assert [(entry["reason"], entry["count"]) for entry in shown["quarantine"]] == [("unreadable", 3), ("blank", 1)]
    assert shown["quarantine"][0]["details"] == [{"detail": "the file is empty", "count": 3}]
    assert [example["image_id"] for example in shown["quarantine"][0]["examples"]] == [name[:12] for name in ids[:3]]
    assert shown["warnings"][0]["examples"] == [{"patient_id": ids[4][:12], "detail": "900, the next has 12"}]
    assert "4 of 84 images were quarantined: 3 unreadable, 1 blank." in said(shown, "note")
    assert "1 warning: many images (1)." in said(shown, "note")


def test_a_site_that_gives_the_class_away_is_told(data: Path, splits: Path, store: Store) -> None:
    change(data, lambda rows: [row.update(site=("A", "B")[row["labels"][0]], sex="", age=-1) for row in rows])
    shown, _ = look(data, splits, store)
    assert "100 % of the images with site B show" in said(shown, "note")
    assert "may learn the site instead of the disease" in said(shown, "note")
    assert "Unknown for all images: sex, age." in said(shown, "note")
    assert counts(shown, "by_sex") == {"unknown": (80, 40)}


def test_many_sites_are_told_as_the_largest_and_the_others(data: Path, store: Store) -> None:
    change(
        data, lambda rows: [row.update(site=f"S{place_ // 4:02}" if place_ else "") for place_, row in enumerate(rows)]
    )
    shown, _ = look(data, None, store)
    by_site = counts(shown, "by_site")
    assert list(by_site)[-2:] == ["9 others", "unknown"]
    assert len(by_site) == 13
    assert sum(images for images, _ in by_site.values()) == 80


def test_a_class_that_a_side_lacks_is_a_problem(data: Path, splits: Path, store: Store) -> None:
    _, rows = look(data, splits, store)
    normal = rows.classes[0].mask & (rows.split == 1)
    place(splits, {rows.ids[row]: ("", "withdrawn") for row in range(80) if normal[row]})
    shown, _ = look(data, splits, store)
    assert said(shown, "problem") == "There is no image of NORMAL in val."


def test_a_split_of_another_data_set_is_refused(data: Path, splits: Path, store: Store) -> None:
    tell(data, fingerprint="f" * 64)
    with pytest.raises(ValueError, match="ffffffffffff"):
        look(data, splits, store)
