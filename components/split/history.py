"""Read and write a split's history: splits and folds of patients, splits of images, and owners of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.shared.contracts import read_record
from components.shared.datasets.parquet_tables import SPLIT, read_table, write_table
from components.shared.errors import RefusedError
from components.split.codes import NONE, Codes, distinct, group_minimum, names_of_codes, positions, split_codes

PATIENTS = pa.schema(
    [(name, pa.string()) for name in ("patient_id", "side", "why")] + [(name, pa.int32()) for name in ("fold", "folds")]
)
"""Every patient ever assigned to a split, even if no longer in the source; with fold and number of folds."""

LINKED = "same image"
"""Reason for a patient's split: they share an image with a patient who is in that split."""

SEEN = pa.schema([("image_id", pa.string()), ("side", pa.string()), ("since", pa.int32())])
"""Every image of this and earlier data sets, with its last split and the version in which it was assigned."""

OWNERS = pa.schema([("hash", pa.string()), ("patient_id", pa.string())])
"""All patients that each image id and each digest of pixels ever belonged to."""


@dataclass(frozen=True)
class Assignment:
    """The split of each patient, NONE if there is none yet, and the reason for it."""

    splits: Codes
    reasons: NDArray[np.object_]

    def assign(self, mask: NDArray[np.bool_], splits: Codes, reason: str) -> Assignment:
        """Assign a split to the selected patients that have none."""
        mask = mask & (self.splits == NONE) & (splits != NONE)
        return Assignment(np.where(mask, splits, self.splits), np.where(mask, reason, self.reasons))

    @property
    def is_linked(self) -> NDArray[np.bool_]:
        """Which patients have their split because of an image shared with another."""
        return np.asarray(self.reasons == LINKED, bool)


@dataclass(frozen=True)
class History:
    """The previous split; all tables are empty if there is none."""

    version: int
    patients: pa.Table
    images: pa.Table
    owners: pa.Table
    present: pa.Table


def read_history(folder: Path, key_id: str) -> History:
    """Read the previous split; raise a ValueError for another hash key."""
    if not (folder / "split.json").exists():
        return History(0, PATIENTS.empty_table(), SEEN.empty_table(), OWNERS.empty_table(), SPLIT.empty_table())
    about: dict[str, Any] = read_record("split", folder / "split.json")
    if about["key_id"] != key_id:
        raise RefusedError(
            f"The previous split was made with the hash key {about['key_id']}, but this data set with {key_id}. Every "
            "patient would seem new, and test images could enter train. Set the key of the previous split."
        )
    return History(
        about["version"],
        read_table(folder / "patients.parquet", schema=PATIENTS),
        read_table(folder / "seen.parquet", schema=SEEN),
        read_table(folder / "owners.parquet", schema=OWNERS),
        read_table(folder / "splits.parquet", schema=SPLIT),
    )


class Owners:
    """All patients that each image of a data set ever belonged to, including now."""

    def __init__(self, previous: pa.Table, index: pa.Table) -> None:
        current = [
            pa.table([index[name].cast(pa.string()), index["patient_id"]], schema=OWNERS)
            for name in ("image_id", "pixel_digest")
        ]
        pairs = pa.concat_tables([previous, *current])
        self.table = pairs.group_by(OWNERS.names).aggregate([]).sort_by([(name, "ascending") for name in OWNERS.names])
        self.patients = distinct(self.table["patient_id"])
        self._patient = positions(self.table["patient_id"], self.patients)
        hashes = pc.unique(self.table["hash"])
        self._hash = positions(self.table["hash"], hashes)
        self._hashes = len(hashes)
        self._rows = [positions(index[name], hashes) for name in ("image_id", "pixel_digest")]

    def owner_minimum(self, ids: pa.Array, values: Codes, default: int = NONE) -> Codes:
        """Return each row's minimum value among all patients its image belonged to."""
        value_of_patient = np.full(len(self.patients), default)
        if len(values):
            position = positions(self.patients, ids)
            value_of_patient = np.where(position >= 0, values[position], default)
        value_of_hash = group_minimum(self._hash, value_of_patient[self._patient], self._hashes, default)
        return np.minimum(*(value_of_hash[rows] for rows in self._rows))

    def strictest(self, previous: History, ids: pa.Array, assignment: Assignment) -> Codes:
        """Return each row's strictest split among all patients its image belonged to."""
        return np.minimum(
            self.owner_minimum(
                previous.patients["patient_id"].combine_chunks(), split_codes(previous.patients["side"])
            ),
            self.owner_minimum(ids, assignment.splits),
        )


def known_assignment(previous: History, ids: pa.Array, folds: int) -> tuple[Assignment, Codes]:
    """Return each patient's split and fold so far, -1 for another number of folds."""
    previous_rows = _rows(previous.patients, ids)
    fold = np.where(previous_rows["folds"].to_numpy() == folds, previous_rows["fold"].to_numpy(), -1).astype(np.int64)
    return Assignment(split_codes(previous_rows["side"]), np.array(previous_rows["why"].to_pylist(), object)), fold


def _rows(patients: pa.Table, ids: pa.Array) -> pa.Table:
    """Return the rows of these patients, with defaults for missing ones."""
    position = positions(ids, patients["patient_id"].combine_chunks())
    rows = patients.take(pa.array(position, mask=position < 0))
    missing = {"side": "", "why": "", "fold": -1, "folds": 0}
    return pa.table({"patient_id": ids, **{name: rows[name].fill_null(value) for name, value in missing.items()}})


def write_history(
    folder: Path,
    previous: History,
    ids: pa.Array,
    assignment: Assignment,
    fold: Codes,
    folds: int,
    images: pa.Table,
    owners: Owners,
) -> None:
    """Write the history, including patients who left the source but may return."""
    previous_rows = _rows(previous.patients, ids)
    columns = [
        ids,
        names_of_codes(assignment.splits),
        pa.array(assignment.reasons, pa.string()),
        np.where(fold >= 0, fold, previous_rows["fold"].to_numpy()),
        np.where(fold >= 0, folds, previous_rows["folds"].to_numpy()),
    ]
    current = pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, PATIENTS, strict=True)], PATIENTS
    )
    current = current.filter(pc.not_equal(current["side"], ""))
    write_table(_update(previous.patients, current), folder / "patients.parquet")
    write_table(_update(previous.images, images.select(SEEN.names)), folder / "seen.parquet")
    write_table(owners.table, folder / "owners.parquet")


def _update(previous: pa.Table, current: pa.Table) -> pa.Table:
    """Return the rows of both, sorted by id; for ids in both the newer row."""
    name = previous.schema.names[0]
    others = previous.filter(pc.invert(pc.is_in(previous[name], value_set=current[name].combine_chunks())))
    return pa.concat_tables([others, current.cast(previous.schema)]).sort_by(name)
