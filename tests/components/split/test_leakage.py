"""The check finds each kind of leak that is planted into a split that was in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.shared.datasets.parquet_tables import SPLIT
from components.split.leakage import Leak, leaks
from tests.components.split.loop import Image, Loop, base, hashed

Rows = dict[str, dict[str, Any]]


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    """A split with an exact and a near duplicate left out, each of an image of the test."""
    loop = Loop(tmp_path)
    images = [replace(image, patient=hashed(image.patient), name=hashed(image.name)) for image in base()]
    rows = loop.split(images)
    tested = [name for name, row in rows.items() if row["side"] == "test"]
    trained = next(row["patient_id"] for row in rows.values() if row["side"] == "train")
    label = next(image.label for image in images if image.patient == trained)
    alike = [replace(image, near=tested[1]) if image.name == tested[1] else image for image in images]
    extra = [Image(hashed("copy"), trained, label, tested[0]), Image(hashed("near"), trained, label, near=tested[1])]
    loop.split([*alike, *extra])
    return loop


def planted(loop: Loop, change: Callable[[Rows], None]) -> list[Leak]:
    rows = {row["image_id"]: row for row in pq.read_table(loop.folder / "splits.parquet").to_pylist()}
    change(rows)
    pq.write_table(pa.Table.from_pylist(list(rows.values()), schema=SPLIT), loop.folder / "splits.parquet")
    return leaks(loop.dataset, loop.folder)


def one(rows: Rows, side: str) -> dict[str, Any]:
    return next(row for row in rows.values() if row["side"] == side)


def test_a_split_in_order_has_none(loop: Loop) -> None:
    assert leaks(loop.dataset, loop.folder) == []


def test_a_patient_on_two_sides(loop: Loop) -> None:
    patients = []

    def change(rows: Rows) -> None:
        row = one(rows, "train")
        row["side"] = "val"
        patients.append(row["patient_id"][:12])

    (leak,) = planted(loop, change)
    assert (leak.kind, leak.count, list(leak.ids)) == ("patients in two splits", 1, patients)
    assert leak.sentence.startswith(f"The split has patients in two splits: 1, namely {patients[0]}. Do not")


def test_a_patient_is_the_one_that_the_data_set_names(loop: Loop) -> None:
    def change(rows: Rows) -> None:
        row = one(rows, "train")
        row.update(side="val", patient_id="other")

    assert {leak.kind for leak in planted(loop, change)} == {
        "patients in two splits",
        "images with another patient than in the data set",
    }


def test_an_exact_duplicate_on_two_sides(loop: Loop) -> None:
    found = planted(loop, lambda rows: rows[hashed("copy")].update(side="train"))
    assert {leak.kind: leak.count for leak in found} == {
        "exact duplicates in two splits": 1,
        "test images in another split": 1,
    }


def test_a_near_duplicate_on_two_sides(loop: Loop) -> None:
    (leak,) = planted(loop, lambda rows: rows[hashed("near")].update(side="train"))
    assert (leak.kind, leak.count) == ("near duplicates in two splits", 1)


def test_a_test_patient_who_came_to_train_altogether(loop: Loop) -> None:
    def change(rows: Rows) -> None:
        patient = one(rows, "test")["patient_id"]
        for row in rows.values():
            if row["patient_id"] == patient:
                row["side"] = "train"
        rows[hashed("near")]["side"] = rows[hashed("copy")]["side"] = ""

    found = {leak.kind: leak.count for leak in planted(loop, change)}
    assert found == {"test images in another split": 2}


def test_images_without_a_side_and_sides_without_an_image(loop: Loop) -> None:
    def change(rows: Rows) -> None:
        row = one(rows, "train")
        row["image_id"] = "nobody"

    assert {leak.kind: leak.count for leak in planted(loop, change)} == {
        "images without a split": 1,
        "images that are not in the data set": 1,
    }


def test_an_image_twice(loop: Loop) -> None:
    (leak,) = planted(loop, lambda rows: rows.update(again=dict(one(rows, "test"))))
    assert (leak.kind, leak.count) == ("images with several rows", 1)


def test_a_side_that_is_none(loop: Loop) -> None:
    def change(rows: Rows) -> None:
        patient = one(rows, "train")["patient_id"]
        for row in rows.values():
            row["side"] = "holdout" if row["side"] and row["patient_id"] == patient else row["side"]

    (leak,) = planted(loop, change)
    assert (leak.kind, leak.count) == ("images in a split other than train, val and test", 2)


def test_many_are_counted_and_a_few_named(loop: Loop) -> None:
    def change(rows: Rows) -> None:
        for row in rows.values():
            row["side"] = "other" if row["side"] else ""

    (leak,) = [leak for leak in planted(loop, change) if leak.kind.startswith("images in a split other")]
    assert leak.count == 32
    assert len(leak.ids) == 3
    assert all(len(name) == 12 for name in leak.ids)
    assert f"32, including {', '.join(leak.ids)}." in leak.sentence


def test_a_split_without_a_memory_can_be_checked(loop: Loop) -> None:
    for name in ("patients.parquet", "owners.parquet", "seen.parquet"):
        (loop.folder / name).unlink()
    assert leaks(loop.dataset, loop.folder) == []


def test_a_previous_split_that_contradicts_itself_blocks_the_run(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.split(base())
    patients = pq.read_table(loop.folder / "patients.parquet").to_pylist()
    twice = [{**row, "side": "train"} for row in patients if row["side"] == "test"]
    schema = pq.read_schema(loop.folder / "patients.parquet")
    pq.write_table(pa.Table.from_pylist([*twice, *patients], schema=schema), loop.folder / "patients.parquet")
    with pytest.raises(ValueError, match=r"(has no image of class|test images in another split)"):
        loop.split(base())
