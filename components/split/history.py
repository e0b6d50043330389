"""What a split remembers for the next: sides and folds of patients, sides of images, and whose each picture was."""

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
from components.split.columns import NONE, Codes, distinct, least, named, positions, side_codes

PATIENTS = pa.schema(
    [
        ("patient_id", pa.string()),
        ("side", pa.string()),
        ("why", pa.string()),
        ("fold", pa.int32()),
        ("folds", pa.int32()),
    ]
)
"""Every patient ever given a side, also those whose images are gone from the source; and their fold, of how many."""

LINKED = "same image"
"""Why a patient has a side: a picture of theirs was another patient's, who has it."""

SEEN = pa.schema([("image_id", pa.string()), ("side", pa.string()), ("since", pa.int32())])
"""Every image ever seen, with the side it had last and since which version."""

OWNERS = pa.schema([("hash", pa.string()), ("patient_id", pa.string())])
"""Under which patients each image id and each digest of pixels has ever been seen."""


@dataclass(frozen=True)
class Given:
    """The side of each patient, NONE where there is none yet, and what decided it."""

    side: Codes
    why: NDArray[np.object_]

    def give(self, which: NDArray[np.bool_], side: Codes, why: str) -> Given:
        """With a side for those of them who have none."""
        which = which & (self.side == NONE) & (side != NONE)
        return Given(np.where(which, side, self.side), np.where(which, why, self.why))

    @property
    def linked(self) -> NDArray[np.bool_]:
        """Who is taken to be another patient, by a picture that was that one's before."""
        return np.asarray(self.why == LINKED, bool)


@dataclass(frozen=True)
class History:
    """The previous split, or an empty one where there is none."""

    version: int
    patients: pa.Table
    images: pa.Table
    owners: pa.Table
    present: pa.Table


def read_history(folder: Path, key_id: str) -> History:
    """The split in this directory; a ValueError if its ids were made with another hash key."""
    if not (folder / "split.json").exists():
        return History(0, PATIENTS.empty_table(), SEEN.empty_table(), OWNERS.empty_table(), SPLIT.empty_table())
    about: dict[str, Any] = read_record("split", folder / "split.json")
    if about["key_id"] != key_id:
        raise RefusedError(
            f"The previous split was made with the hash key {about['key_id']}, and this data set with {key_id}: every "
            "patient would look new, and test images would come into train. Set the key of the previous split."
        )
    return History(
        about["version"],
        read_table(folder / "patients.parquet", schema=PATIENTS),
        read_table(folder / "seen.parquet", schema=SEEN),
        read_table(folder / "owners.parquet", schema=OWNERS),
        read_table(folder / "splits.parquet", schema=SPLIT),
    )


class Owners:
    """Under which patients each picture of a data set has ever been, this time included."""

    def __init__(self, before: pa.Table, index: pa.Table) -> None:
        now = [
            pa.table([index[name].cast(pa.string()), index["patient_id"]], schema=OWNERS)
            for name in ("image_id", "pixel_digest")
        ]
        pairs = pa.concat_tables([before, *now])
        self.table = pairs.group_by(OWNERS.names).aggregate([]).sort_by([(name, "ascending") for name in OWNERS.names])
        self.patients = distinct(self.table["patient_id"])
        self._patient = positions(self.table["patient_id"], self.patients)
        hashes = pc.unique(self.table["hash"])
        self._hash = positions(self.table["hash"], hashes)
        self._hashes = len(hashes)
        self._rows = [positions(index[name], hashes) for name in ("image_id", "pixel_digest")]

    def least(self, ids: pa.Array, values: Codes, otherwise: int = NONE) -> Codes:
        """For each row of the index the least value among all patients its picture has been seen under."""
        place = positions(self.patients, ids)
        of_patient = np.where(place >= 0, values[place], otherwise) if len(values) else np.full(len(place), otherwise)
        of_hash = least(self._hash, of_patient[self._patient], self._hashes, otherwise)
        return np.minimum(*(of_hash[rows] for rows in self._rows))

    def strictest(self, before: History, ids: pa.Array, given: Given) -> Codes:
        """For each row of the index the strictest side of all patients its picture has been seen under, ever."""
        return np.minimum(
            self.least(before.patients["patient_id"].combine_chunks(), side_codes(before.patients["side"])),
            self.least(ids, given.side),
        )


def known(before: History, ids: pa.Array, folds: int) -> tuple[Given, Codes]:
    """The side that each patient has, and the fold, -1 where they have none of so many folds."""
    earlier = _rows(before.patients, ids)
    fold = np.where(earlier["folds"].to_numpy() == folds, earlier["fold"].to_numpy(), -1).astype(np.int64)
    return Given(side_codes(earlier["side"]), np.array(earlier["why"].to_pylist(), object)), fold


def _rows(patients: pa.Table, ids: pa.Array) -> pa.Table:
    """The rows of these patients, in this order, with "", -1 and 0 for those who are not there."""
    place = positions(ids, patients["patient_id"].combine_chunks())
    found = patients.take(pa.array(place, mask=place < 0))
    missing = {"side": "", "why": "", "fold": -1, "folds": 0}
    return pa.table({"patient_id": ids, **{name: found[name].fill_null(value) for name, value in missing.items()}})


def remember(
    folder: Path,
    before: History,
    ids: pa.Array,
    given: Given,
    fold: Codes,
    folds: int,
    placed: pa.Table,
    owners: Owners,
) -> None:
    """Write what the next split has to know, of those that left the source too: they come back to where they were."""
    earlier = _rows(before.patients, ids)
    columns = [
        ids,
        named(given.side),
        pa.array(given.why, pa.string()),
        np.where(fold >= 0, fold, earlier["fold"].to_numpy()),
        np.where(fold >= 0, folds, earlier["folds"].to_numpy()),
    ]
    now = pa.table([pa.array(column, field.type) for column, field in zip(columns, PATIENTS, strict=True)], PATIENTS)
    now = now.filter(pc.not_equal(now["side"], ""))
    write_table(_over(before.patients, now), folder / "patients.parquet")
    write_table(_over(before.images, placed.select(SEEN.names)), folder / "seen.parquet")
    write_table(owners.table, folder / "owners.parquet")


def _over(before: pa.Table, now: pa.Table) -> pa.Table:
    """The rows of both, in the order of their ids; where both have one it is the newer."""
    name = before.schema.names[0]
    others = before.filter(pc.invert(pc.is_in(before[name], value_set=now[name].combine_chunks())))
    return pa.concat_tables([others, now.cast(before.schema)]).sort_by(name)
