"""The tables that pass between the stages: the index of a dataset, and the sides of a split. They need no pixels."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

INDEX = pa.schema(
    [
        ("image_id", pa.string()),
        ("patient_id", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("source_digest", pa.string()),
        ("pixel_digest", pa.string()),
        ("look", pa.string()),
        ("duplicate_of", pa.string()),
        ("near", pa.string()),
        ("official", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("frame", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bits", pa.int32()),
        ("sex", pa.string()),
        ("age", pa.int32()),
        ("site", pa.string()),
        ("view", pa.string()),
        ("modality", pa.string()),
        ("label_source", pa.string()),
        ("text", pa.string()),
    ]
)
"""One row an image. Unknown texts are "", an unknown age is -1; ids are keyed hashes.

`labels` holds one class where the task is classification, and any number of findings where it is multilabel. `look` is
the perceptual hash; `near` names the group of images that look the same, by the least image id in it. `frame` counts
within a file of several images, and is -1 where the file is one.
"""

QUARANTINE = ("image_id", "source_digest", "reason", "detail")
"""The columns of quarantine.csv: what was set aside, and why."""

WARNINGS = ("image_id", "patient_id", "reason", "detail")
"""The columns of warnings.csv: what to look at; both ids may be empty."""

SPLIT = pa.schema(
    [
        ("image_id", pa.string()),
        ("patient_id", pa.string()),
        ("side", pa.string()),
        ("since", pa.int32()),
        ("why", pa.string()),
        ("fold", pa.int32()),
    ]
)
"""One row an image of the dataset: its side (train, val, test, or "" for left out), the split version in which it
came to that side, what decided it, and the fold of its patient (-1 for test, and where nothing is folded)."""

AGES = {"<18": (0, 17), "18–39": (18, 39), "40–64": (40, 64), "65+": (65, 200)}
"""The age bands by which patients are divided and results are told, in whole years."""


def write_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    """Write rows, sorted, so that equal rows give equal bytes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: [row[name] for name in columns]))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of such a file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table so that equal tables give equal bytes."""
    pq.write_table(table, path, compression="zstd", store_schema=False)


def read_table(source: Any, **asked: Any) -> pa.Table:
    """Read a table, or those `columns` of it, or all as this `schema` says.

    Without pyarrow's threads: a process that ends just after they began, because what it read is refused, is aborted.
    """
    return pq.read_table(source, use_threads=False, **asked)
