"""Schemas of the tables that stages exchange, and functions to read and write them."""

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
"""One row per image. Unknown texts are "", an unknown age is -1; ids are keyed hashes.

`labels` has one class if the task is classification, and any number of findings if it is multilabel. `look` is the
perceptual hash; `near` names the group of near duplicates by its smallest image id. `frame` counts within a file of
several images, and is -1 if the file has one.
"""

QUARANTINE = ("image_id", "source_digest", "reason", "detail")
"""Columns of quarantine.csv, which lists unusable files with the reason."""

WARNINGS = ("image_id", "patient_id", "reason", "detail")
"""Columns of warnings.csv; both ids may be empty."""

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
"""One row per image of the data set. `side` is its split (train, val, test, or "" if excluded), `since` the version in
which it was assigned to it, `why` the reason, and `fold` the fold of its patient (-1 for test, and without folds)."""


def write_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    """Write rows, sorted, so that equal rows give equal bytes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: [row[name] for name in columns]))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table so that equal tables give equal bytes."""
    pq.write_table(table, path, compression="zstd", store_schema=False)


def read_table(source: Any, **options: Any) -> pa.Table:
    """Read a table; options are `columns`, or the `schema` it must have.

    pyarrow's threads are not used: a process that exits just after they started, after an error, would abort.
    """
    return pq.read_table(source, use_threads=False, **options)
