"""Check a finished split for leakage between test, validation and training.

The check reads the written files and shares no code with the rest of the stage, so that it cannot repeat its mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SPLITS = ("train", "val", "test", "")
MAX_SHOWN = 3
"""Maximum number of ids in a message."""


@dataclass(frozen=True)
class Leak:
    """A kind of leak, its number of ids, the start of some ids, and a message."""

    kind: str
    count: int
    ids: tuple[str, ...]
    sentence: str


def leaks(dataset: Path, splits: Path) -> list[Leak]:
    """Return all leaks and inconsistencies of a split of a data set."""
    index = pq.read_table(
        dataset / "index.parquet", columns=["image_id", "patient_id", "pixel_digest", "near"], use_threads=False
    )
    rows = pq.read_table(splits / "splits.parquet", columns=["image_id", "patient_id", "side"], use_threads=False)
    joined = index.join(rows, "image_id", join_type="inner", right_suffix=" in the split")
    used = joined.filter(pc.not_equal(joined["side"], ""))
    near = used.filter(pc.not_equal(used["near"], ""))
    counts = rows.group_by("image_id").aggregate([("image_id", "count")])
    other_patient = joined.filter(pc.not_equal(joined["patient_id"], joined["patient_id in the split"]))
    ids_by_kind = {
        "patients in two splits": _in_two_splits(used, "patient_id"),
        "exact duplicates in two splits": _in_two_splits(used, "pixel_digest"),
        "near duplicates in two splits": _in_two_splits(near, "near"),
        "test images in another split": _ever_in_test(used, splits),
        "images without a split": _missing(index["image_id"], rows["image_id"]),
        "images that are not in the data set": _missing(rows["image_id"], index["image_id"]),
        "images with several rows": _ids(counts.filter(pc.greater(counts["image_id_count"], 1))),
        "images with another patient than in the data set": _ids(other_patient),
        "images in a split other than train, val and test": _ids(
            rows.filter(pc.invert(pc.is_in(rows["side"], value_set=pa.array(SPLITS))))
        ),
    }
    return [_leak(kind, sorted(ids)) for kind, ids in ids_by_kind.items() if ids]


def _leak(kind: str, ids: list[str]) -> Leak:
    shown = tuple(name[:12] for name in ids[:MAX_SHOWN])
    sentence = (
        f"The split has {kind}: {len(ids)}, {'including' if len(ids) > MAX_SHOWN else 'namely'} {', '.join(shown)}. "
        "Do not train on it; restore the previous split, or make a new one."
    )
    return Leak(kind, len(ids), shown, sentence)


def _ids(table: pa.Table) -> list[str]:
    return [str(name) for name in table["image_id"].to_pylist()]


def _missing(values: pa.ChunkedArray, reference: pa.ChunkedArray) -> list[str]:
    missing = values.filter(pc.invert(pc.is_in(values, value_set=reference.combine_chunks())))
    return [str(name) for name in missing.to_pylist()]


def _in_two_splits(used: pa.Table, name: str) -> list[str]:
    groups = used.group_by(name).aggregate([("side", "count_distinct")])
    return [str(value) for value in groups.filter(pc.greater(groups["side_count_distinct"], 1))[name].to_pylist()]


def _ever_in_test(used: pa.Table, splits: Path) -> list[str]:
    """Return used images outside test of which an owner was ever in test."""
    if not (splits / "patients.parquet").exists():
        return []
    patients = pq.read_table(splits / "patients.parquet", columns=["patient_id", "side"], use_threads=False)
    tested = patients.filter(pc.equal(patients["side"], "test"))["patient_id"].combine_chunks()
    owners = pq.read_table(splits / "owners.parquet", columns=["hash", "patient_id"], use_threads=False)
    hashes = owners.filter(pc.is_in(owners["patient_id"], value_set=tested))["hash"].combine_chunks()
    outside = used.filter(pc.not_equal(used["side"], "test"))
    columns = (outside["image_id"], hashes), (outside["pixel_digest"], hashes), (outside["patient_id"], tested)
    masks = [pc.is_in(column, value_set=among).to_numpy() for column, among in columns]
    return _ids(outside.filter(pa.array(np.logical_or.reduce(masks))))
