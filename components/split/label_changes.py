"""Compare the labels of images with those in the previous split's data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.shared.datasets.parquet_tables import read_table, write_table

FILE = "labels.parquet"
LABELS = pa.schema([("pixel_digest", pa.string()), ("labels", pa.string())])
"""The names of each image's labels in the data set of the split, separated by NUL."""


def changed_labels(previous: Path, splits: Path, index: pa.Table, about: Mapping[str, Any]) -> str:
    """Write the current labels; return a warning if known ones changed.

    The warning is "" if no label changed or the previous split has no labels.
    """
    current = _labels(index, about["classes"])
    write_table(current, splits / FILE)
    if not (previous / FILE).exists():
        return ""
    previous_labels = read_table(previous / FILE, schema=LABELS)
    both = current.join(previous_labels, "pixel_digest", join_type="inner", right_suffix="_before")
    count = pc.sum(pc.not_equal(both["labels"], both["labels_before"])).as_py() or 0
    if not count:
        return ""
    have = "image has" if count == 1 else "images have"
    return (
        f"{count} {have} another label than in the data set of the previous split, of {both.num_rows} images in "
        "both. Check whether this is intended: earlier figures are based on the old labels"
    )


def _labels(index: pa.Table, classes: list[str]) -> pa.Table:
    names = pa.array(["\0".join(classes[label] for label in labels) for labels in index["labels"].to_pylist()])
    pairs = pa.table([index["pixel_digest"].combine_chunks(), names.cast(pa.string())], schema=LABELS)
    by_picture = pairs.group_by("pixel_digest").aggregate([("labels", "min")]).sort_by("pixel_digest")
    return by_picture.rename_columns(LABELS.names).cast(LABELS)
