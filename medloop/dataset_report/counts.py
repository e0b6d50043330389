"""Groups of a data set's images by class, split, and metadata of patient and scan, with their counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.shared.datasets.age_bands import AGES
from components.shared.datasets.dataset import Data
from components.shared.datasets.parquet_tables import read_table
from components.shared.reporting.left_out import UNUSED

SPLITS = ("train", "val", "test")
OUT = UNUSED
UNKNOWN = "unknown"
NO_FINDING = "no finding"
FIELDS = ("sex", "age", "site", "view", "modality")
WORDS = {"F": "female", "M": "male"}
MAX_VALUES = 12
"""Maximum number of values of a field; the rarest values beyond it are combined."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """A named group of images."""

    name: str
    mask: Mask


class Rows:
    """The rows of a data set's index, with the split of each image."""

    def __init__(self, data: Data, splits: Path | None) -> None:
        self.data, self.index = data, data.index
        self.number = data.index.num_rows
        self.ids: list[str] = data.index["image_id"].to_pylist()
        self.split = np.full(self.number, -1)
        """For each image, the index of its split in SPLITS, 3 if it is unused, -1 without a split."""
        self.why = np.full(self.number, "", dtype=object)
        if splits is not None:
            self._read(splits)

    def _read(self, splits: Path) -> None:
        table = read_table(splits / "splits.parquet", columns=["image_id", "side", "why"])
        position = pc.index_in(self.index["image_id"], table["image_id"]).combine_chunks()
        known = np.asarray(position.is_valid())
        rows = np.asarray(position.fill_null(0))
        codes = np.asarray(pc.fill_null(pc.index_in(table["side"], pa.array(SPLITS)), len(SPLITS)))
        self.split = np.where(known, codes[rows] if len(codes) else len(SPLITS), len(SPLITS))
        out = self.split == len(SPLITS)
        why = np.array([*table["why"].to_pylist(), "not in the split"], dtype=object)
        self.why[out] = why[np.where(known, rows, -1)[out]]

    @property
    def has_split(self) -> bool:
        """Whether there is a split."""
        return bool((self.split >= 0).any())

    @property
    def split_names(self) -> list[str]:
        """The names of the splits in order; empty without a split."""
        return [*SPLITS, OUT] if self.has_split else []

    def codes(self, column: str) -> tuple[list[str], NDArray[np.int64]]:
        """Return the distinct texts of a column, and for each image the index of its text."""
        encoded = pc.fill_null(self.index[column].combine_chunks(), "").dictionary_encode()
        return encoded.dictionary.to_pylist(), np.asarray(encoded.indices, np.int64)

    @cached_property
    def patients(self) -> NDArray[np.int64]:
        """A number for the patient of each image."""
        return self.codes("patient_id")[1]

    @cached_property
    def roots(self) -> NDArray[np.int64]:
        """The row of the image of which each image is an exact duplicate, or -1."""
        return self._rows_of("duplicate_of")

    @cached_property
    def near(self) -> NDArray[np.int64]:
        """The row that identifies the group of near duplicates of each image, or -1."""
        near = self._rows_of("near")
        roots = np.unique(near[near >= 0])
        near[roots] = roots  # the identifying image also belongs to the group
        return near

    def _rows_of(self, column: str) -> NDArray[np.int64]:
        rows = pc.index_in(self.index[column], self.index["image_id"])
        return np.asarray(pc.fill_null(rows, -1), np.int64)

    @cached_property
    def all(self) -> Group:
        """All images."""
        return Group("all images", np.ones(self.number, bool))

    @cached_property
    def classes(self) -> list[Group]:
        """The images of each class; in multi-label data, images without a finding come last."""
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
        """Return the images of each value of a field: age bands, or values by number of images, unknown last."""
        if field == "age":
            ages = self.data.column("age")
            bands = [Group(name, (ages >= low) & (ages <= high)) for name, (low, high) in AGES.items()]
            unknown = ~np.stack([band.mask for band in bands]).any(axis=0)
            groups = [*bands, Group(UNKNOWN, np.asarray(unknown))]
            return [group for group in groups if group.mask.any()]
        values, codes = self.codes(field)
        counts = np.bincount(codes, minlength=len(values))
        known = sorted((k for k, value in enumerate(values) if value), key=lambda k: (-counts[k], values[k]))
        limit = len(known) if len(known) <= MAX_VALUES else MAX_VALUES - 1
        shown, others = known[:limit], known[limit:]
        groups = [Group(WORDS.get(values[k], values[k]), codes == k) for k in shown]
        if others:
            groups.append(Group(f"{len(others)} others", np.isin(codes, others)))
        if "" in values:
            groups.append(Group(UNKNOWN, codes == values.index("")))
        return groups

    def count(self, mask: Mask) -> dict[str, Any]:
        """Return the number of images and patients of a group, in total and per split."""
        counts: dict[str, Any] = self._count(mask)
        if self.has_split:
            counts["sides"] = {name: self._count(mask & (self.split == k)) for k, name in enumerate(self.split_names)}
        return counts

    def _count(self, mask: Mask) -> dict[str, int]:
        patients = np.count_nonzero(np.bincount(self.patients[mask])) if mask.any() else 0
        return {"images": int(mask.sum()), "patients": int(patients)}

    def in_several_splits(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the codes (ignoring -1) that occur in more than one of train, val and test."""
        used = (self.split >= 0) & (self.split < len(SPLITS)) & (codes >= 0)
        if not used.any():
            return np.empty(0, np.int64)
        present = np.zeros((int(codes.max()) + 1, len(SPLITS)), bool)
        present[codes[used], self.split[used]] = True
        return np.flatnonzero(present.sum(axis=1) > 1)
