"""The check on a finished split: does anything of the test, or of validation, stand on another side too?

It reads what was written and uses nothing of what wrote it, so that a mistake there cannot hide itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

KNOWN = ("train", "val", "test", "")
SHOWN = 3
"""How many ids a finding names; the first digits of keyed hashes."""


@dataclass(frozen=True)
class Leak:
    """One kind of leak or fault: how many there are, the beginnings of some of their ids, and a sentence."""

    kind: str
    count: int
    ids: tuple[str, ...]
    sentence: str


def leaks(dataset: Path, splits: Path) -> list[Leak]:
    """Everything that leaks, or is not as it must be, in the split in `splits` of the data set in `dataset`."""
    index = pq.read_table(
        dataset / "index.parquet", columns=["image_id", "patient_id", "pixel_digest", "near"], use_threads=False
    )
    rows = pq.read_table(splits / "splits.parquet", columns=["image_id", "patient_id", "side"], use_threads=False)
    joined = index.join(rows, "image_id", join_type="inner", right_suffix=" in the split")
    used = joined.filter(pc.not_equal(joined["side"], ""))
    looks = used.filter(pc.not_equal(used["near"], ""))
    counts = rows.group_by("image_id").aggregate([("image_id", "count")])
    other = joined.filter(pc.not_equal(joined["patient_id"], joined["patient_id in the split"]))
    found = {
        "patients on two sides": _on_two_sides(used, "patient_id"),
        "exact duplicates on two sides": _on_two_sides(used, "pixel_digest"),
        "near duplicates on two sides": _on_two_sides(looks, "near"),
        "images of the test on another side": _tested_before(used, splits),
        "images without a side": _without(index["image_id"], rows["image_id"]),
        "images that are not in the data set": _without(rows["image_id"], index["image_id"]),
        "images that stand there twice": _ids(counts.filter(pc.greater(counts["image_id_count"], 1))),
        "images with another patient than in the data set": _ids(other),
        "images on a side that is none of train, val and test": _ids(
            rows.filter(pc.invert(pc.is_in(rows["side"], value_set=pa.array(KNOWN))))
        ),
    }
    return [_leak(kind, sorted(ids)) for kind, ids in found.items() if ids]


def _leak(kind: str, ids: list[str]) -> Leak:
    shown = tuple(name[:12] for name in ids[:SHOWN])
    sentence = (
        f"The split has {kind}: {len(ids)}, {'among them' if len(ids) > SHOWN else 'namely'} {', '.join(shown)}. "
        "Do not train on it; restore the split before it, or make it anew."
    )
    return Leak(kind, len(ids), shown, sentence)


def _ids(table: pa.Table) -> list[str]:
    return [str(name) for name in table["image_id"].to_pylist()]


def _without(these: pa.ChunkedArray, those: pa.ChunkedArray) -> list[str]:
    missing = these.filter(pc.invert(pc.is_in(these, value_set=those.combine_chunks())))
    return [str(name) for name in missing.to_pylist()]


def _on_two_sides(used: pa.Table, name: str) -> list[str]:
    sides = used.group_by(name).aggregate([("side", "count_distinct")])
    return [str(found) for found in sides.filter(pc.greater(sides["side_count_distinct"], 1))[name].to_pylist()]


def _tested_before(used: pa.Table, splits: Path) -> list[str]:
    """Images in use outside the test that are, or whose pixels are, of a patient who was ever given to the test."""
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
