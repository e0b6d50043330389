"""Which pictures had other labels in the data set before: nobody changes a label by chance, or somebody did."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.shared.datasets.parquet_tables import read_table, write_table

FILE = "labels.parquet"
LABELS = pa.schema([("pixel_digest", pa.string()), ("labels", pa.string())])
"""The names of each picture's labels in the data set that was divided, parted by NUL."""


def changed_labels(previous: Path, splits: Path, index: pa.Table, about: Mapping[str, Any]) -> str:
    """A sentence where pictures have other labels than when the previous split was made; keeps those of now.

    It is "" where none has, and where the previous split is of a time in which labels were not kept.
    """
    now = _labels(index, about["classes"])
    write_table(now, splits / FILE)
    if not (previous / FILE).exists():
        return ""
    before = read_table(previous / FILE, schema=LABELS)
    both = now.join(before, "pixel_digest", join_type="inner", right_suffix="_before")
    count = pc.sum(pc.not_equal(both["labels"], both["labels_before"])).as_py() or 0
    if not count:
        return ""
    have = "image that was known has" if count == 1 else "images that were known have"
    return (
        f"{count} {have} another label than in the data set of the split before, of {both.num_rows} that are in both. "
        "Look whether that is meant: earlier figures rest on the old ones"
    )


def _labels(index: pa.Table, classes: list[str]) -> pa.Table:
    names = pa.array(["\0".join(classes[label] for label in labels) for labels in index["labels"].to_pylist()])
    pairs = pa.table([index["pixel_digest"].combine_chunks(), names.cast(pa.string())], schema=LABELS)
    each = pairs.group_by("pixel_digest").aggregate([("labels", "min")]).sort_by("pixel_digest")
    return each.rename_columns(LABELS.names).cast(LABELS)
