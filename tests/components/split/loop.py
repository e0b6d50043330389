"""Data sets of a few images, made on the spot, and one split after another, each handed the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.shared import contracts
from components.shared.contracts import digest
from components.shared.datasets import parquet_tables
from components.split.split import split

CLASSES = ["NORMAL", "PNEUMONIA"]
FINDINGS = ["Mass", "Nodule", "Hernia"]
FILES = ("splits.parquet", "patients.parquet", "seen.parquet", "owners.parquet", "labels.parquet", "split.json")
Row = dict[str, Any]


@dataclass(frozen=True)
class Image:
    """One image: whose, with which class or findings, what it shows (equal pixels are one picture), of whom it is."""

    name: str
    patient: str
    label: int | tuple[int, ...] = ()
    pixels: str = ""
    official: str = ""
    near: str = ""
    sex: str = ""
    age: int = -1
    site: str = ""

    @property
    def picture(self) -> str:
        return self.pixels or self.name

    @property
    def labels(self) -> list[int]:
        return [self.label] if isinstance(self.label, int) else list(self.label)


def base(patients: int = 8, official: str = "") -> list[Image]:
    """So many patients of each class, two images each."""
    return [
        Image(f"{official}base{label}-{patient}-{number}", f"{official}patient{label}-{patient}", label, "", official)
        for label in range(2)
        for patient in range(patients)
        for number in range(2)
    ]


def found(patients: int = 30) -> list[Image]:
    """So many patients with one to two images and any number of findings, of two sexes and two sites."""
    return [
        Image(
            f"found{patient}-{number}",
            f"found{patient}",
            tuple(k for k, every in enumerate((3, 4, 7)) if patient % every == 0),
            sex="MF"[patient % 2],
            age=patient * 7 % 90,
            site="ab"[patient // 2 % 2],
        )
        for patient in range(patients)
        for number in range(1 + patient % 2)
    ]


def dataset_of(
    images: Sequence[Image], folder: Path, task: str = "classification", key_id: str = "made", parts: int = 1
) -> Path:
    """A data set of these images in this order, its index in so many row groups."""
    folder.mkdir(parents=True)
    unknown: Row = {"shard": 0, "row": 0, "frame": -1, "height": 8, "width": 8, "bits": 8}
    unknown |= dict.fromkeys(("source_digest", "look", "duplicate_of", "view", "modality", "label_source", "text"), "")
    rows = [
        {**unknown, "image_id": i.name, "patient_id": i.patient, "labels": i.labels, "official": i.official,
         "pixel_digest": i.picture, "near": i.near, "sex": i.sex, "age": i.age, "site": i.site}
        for i in images
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=parquet_tables.INDEX)
    pq.write_table(table, folder / "index.parquet", row_group_size=max(1, len(rows) // parts))
    about = {
        "task": task,
        "classes": CLASSES if task == "classification" else FINDINGS,
        "key_id": key_id,
        "fingerprint": contracts.fingerprint(sorted([r["pixel_digest"], *r["labels"]] for r in rows)),
    }
    contracts.write_record("dataset", folder / "dataset.json", about)
    return folder


def hashed(name: str) -> str:
    """A patient id as a real one looks."""
    return digest(name.encode())[:32]


class Loop:
    """Split after split, each handed the one before it."""

    def __init__(self, root: Path, task: str = "classification", **parameters: Any) -> None:
        self.root, self.task, self.parameters, self.count = root, task, parameters, 0
        self.folder = root / "nothing"
        self.folder.mkdir(parents=True)
        self.dataset = self.folder

    def split(self, images: Sequence[Image], parts: int = 1, key_id: str = "made", **parameters: Any) -> dict[str, Row]:
        """The rows of the split of these images, by image."""
        self.count += 1
        out = self.root / f"splits{self.count}"
        out.mkdir()
        made = dataset_of(images, self.root / f"dataset{self.count}", self.task, key_id, parts)
        split(made, self.folder, out, **{**self.parameters, **parameters})
        self.folder, self.dataset = out, made
        return {row["image_id"]: row for row in pq.read_table(out / "splits.parquet").to_pylist()}

    @property
    def patients(self) -> dict[str, str]:
        """The side of every patient ever seen, for good: with folds, the one they have without."""
        return {name: row["side"] for name, row in self._patients.items()}

    @property
    def folds(self) -> dict[str, int]:
        return {name: row["fold"] for name, row in self._patients.items()}

    @property
    def _patients(self) -> dict[str, Row]:
        return {row["patient_id"]: row for row in pq.read_table(self.folder / "patients.parquet").to_pylist()}

    @property
    def about(self) -> Row:
        return contracts.read_record("split", self.folder / "split.json")

    @property
    def bytes(self) -> list[bytes]:
        return [(self.folder / name).read_bytes() for name in FILES]


def sides(rows: dict[str, Row]) -> dict[str, str]:
    return {image: row["side"] for image, row in rows.items()}


def shares(loop: Loop, images: Sequence[Image], **of: Any) -> dict[str, float]:
    """The share of each side among the patients of images with these attributes."""
    patients = {image.patient for image in images if all(getattr(image, name) == value for name, value in of.items())}
    return {
        side: sum(loop.patients[patient] == side for patient in patients) / len(patients)
        for side in ("test", "val", "train")
    }
