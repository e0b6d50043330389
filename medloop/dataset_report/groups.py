"""The images of a data set in groups: by class, by side, by what is known of patient and scan; counted fast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.shared.datasets.dataset import Data
from components.shared.datasets.parquet_tables import AGES, read_table
from components.shared.reporting.left_out import UNUSED

SIDES = ("train", "val", "test")
OUT = UNUSED
UNKNOWN = "unknown"
NO_FINDING = "no finding"
FIELDS = ("sex", "age", "site", "view", "modality")
WORDS = {"F": "female", "M": "male"}
MOST = 12
"""How many values of a field are told apart; the rarest beyond are counted as one."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """A name, and which images belong to it."""

    name: str
    mask: Mask


class Rows:
    """A data set's index with the sides of its split, as columns of numbers."""

    def __init__(self, data: Data, splits: Path | None) -> None:
        self.data, self.index = data, data.index
        self.number = data.index.num_rows
        self.ids: list[str] = data.index["image_id"].to_pylist()
        self.side = np.full(self.number, -1)
        """For each image: the place of its side in SIDES, 3 where the split leaves it out, -1 where there is none."""
        self.why = np.full(self.number, "", dtype=object)
        if splits is not None:
            self._read(splits)

    def _read(self, splits: Path) -> None:
        table = read_table(splits / "splits.parquet", columns=["image_id", "side", "why"])
        place = pc.index_in(self.index["image_id"], table["image_id"]).combine_chunks()
        known = np.asarray(place.is_valid())
        rows = np.asarray(place.fill_null(0))
        sides = np.asarray(pc.fill_null(pc.index_in(table["side"], pa.array(SIDES)), len(SIDES)))
        self.side = np.where(known, sides[rows] if len(sides) else len(SIDES), len(SIDES))
        out = self.side == len(SIDES)
        why = np.array([*table["why"].to_pylist(), "not in the split"], dtype=object)
        self.why[out] = why[np.where(known, rows, -1)[out]]

    @property
    def divided(self) -> bool:
        """Whether there is a split."""
        return bool((self.side >= 0).any())

    @property
    def sides(self) -> list[str]:
        """The sides there are, in order; none without a split."""
        return [*SIDES, OUT] if self.divided else []

    def codes(self, column: str) -> tuple[list[str], NDArray[np.int64]]:
        """The distinct texts of a column, and for each image which of them it has."""
        encoded = pc.fill_null(self.index[column].combine_chunks(), "").dictionary_encode()
        return encoded.dictionary.to_pylist(), np.asarray(encoded.indices, np.int64)

    @cached_property
    def patients(self) -> NDArray[np.int64]:
        """For each image a number that stands for its patient."""
        return self.codes("patient_id")[1]

    @cached_property
    def roots(self) -> NDArray[np.int64]:
        """For each image the row of the image that it is an exact duplicate of, or -1."""
        return self._rows_of("duplicate_of")

    @cached_property
    def near(self) -> NDArray[np.int64]:
        """For each image the row that names its group of images that look the same, or -1."""
        near = self._rows_of("near")
        named = np.unique(near[near >= 0])
        near[named] = named  # the one that gives its name belongs to the group too
        return near

    def _rows_of(self, column: str) -> NDArray[np.int64]:
        found = pc.index_in(self.index[column], self.index["image_id"])
        return np.asarray(pc.fill_null(found, -1), np.int64)

    @cached_property
    def all(self) -> Group:
        """Every image."""
        return Group("all images", np.ones(self.number, bool))

    @cached_property
    def classes(self) -> list[Group]:
        """The images of each class; where images have any number of findings, those without one come last."""
        lists = self.index["labels"].combine_chunks()
        rows = np.repeat(np.arange(self.number), np.asarray(pc.fill_null(lists.value_lengths(), 0)))
        labels = np.asarray(lists.flatten())
        masks = np.zeros((len(self.data.classes), self.number), bool)
        masks[labels, rows] = True
        groups = [Group(name, mask) for name, mask in zip(self.data.classes, masks, strict=True)]
        if self.data.about["task"] != "classification":
            groups.append(Group(NO_FINDING, np.asarray(~masks.any(axis=0))))
        return groups

    def by(self, field: str) -> list[Group]:
        """The images of each value of a field: ages in bands, other values by number of images, unknown last."""
        if field == "age":
            ages = self.data.column("age")
            bands = [Group(name, (ages >= low) & (ages <= high)) for name, (low, high) in AGES.items()]
            unknown = ~np.stack([band.mask for band in bands]).any(axis=0)
            groups = [*bands, Group(UNKNOWN, np.asarray(unknown))]
            return [group for group in groups if group.mask.any()]
        values, codes = self.codes(field)
        counts = np.bincount(codes, minlength=len(values))
        known = sorted((k for k, value in enumerate(values) if value), key=lambda k: (-counts[k], values[k]))
        shown, others = (known, []) if len(known) <= MOST else (known[: MOST - 1], known[MOST - 1 :])
        groups = [Group(WORDS.get(values[k], values[k]), codes == k) for k in shown]
        if others:
            groups.append(Group(f"{len(others)} others", np.isin(codes, others)))
        if "" in values:
            groups.append(Group(UNKNOWN, codes == values.index("")))
        return groups

    def count(self, mask: Mask) -> dict[str, Any]:
        """How many images and patients a group has, in all and on each side."""
        counted: dict[str, Any] = self._count(mask)
        if self.divided:
            counted["sides"] = {name: self._count(mask & (self.side == k)) for k, name in enumerate(self.sides)}
        return counted

    def _count(self, mask: Mask) -> dict[str, int]:
        patients = np.count_nonzero(np.bincount(self.patients[mask])) if mask.any() else 0
        return {"images": int(mask.sum()), "patients": int(patients)}

    def on_several_sides(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of these numbers (-1 is none) stand on more than one of train, val and test."""
        used = (self.side >= 0) & (self.side < len(SIDES)) & (codes >= 0)
        if not used.any():
            return np.empty(0, np.int64)
        present = np.zeros((int(codes.max()) + 1, len(SIDES)), bool)
        present[codes[used], self.side[used]] = True
        return np.flatnonzero(present.sum(axis=1) > 1)
