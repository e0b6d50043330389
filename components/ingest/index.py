"""Build the index of a part of the images from their decoded rows, file names, folders and the table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.ingest.decoded_records import ROW_SCHEMA, DecodedGroup
from components.ingest.labels import SourceFile
from components.shared.datasets.parquet_tables import INDEX
from components.shared.privacy import pseudonyms
from components.shared.privacy.keyed_hash import HashKey

Row = dict[str, Any]

TABLE_OR_HEADER = ("sex", "age", "site", "view", "modality")
"""Columns that the table or the header provides; the table takes precedence."""

TABLE_ONLY = ("label_source", "text")
"""Columns that only the table provides."""


def build_index(
    groups: Sequence[DecodedGroup],
    files: Mapping[str, SourceFile],
    key: HashKey,
    keep_sites: Sequence[str],
    keep_text: bool,
) -> tuple[pa.Table, list[Row], list[Row], dict[str, int]]:
    """Return the index, the quarantined files, the warnings of decoding, and the number of images per guessed basis.

    The keys of `files` are the keyed hashes of the files' names.
    """
    image_rows = pa.concat_tables(_number_shards(groups) or [ROW_SCHEMA.empty_table()])
    is_usable = pc.equal(image_rows["problem"], "")
    problems = image_rows.filter(pc.invert(is_usable)).select(["image_id", "source_digest", "problem"])
    unreadable = [
        {"image_id": image, "source_digest": digest, "reason": "unreadable", "detail": problem}
        for image, digest, problem in zip(*(column.to_pylist() for column in problems.columns), strict=True)
    ]
    rows = _join(image_rows.filter(is_usable), files, key, keep_sites, keep_text)
    guessed = Counter(filter(None, rows["guessed"].to_pylist()))
    return rows.select(INDEX.names).sort_by("image_id"), unreadable, _decoding_warnings(rows), dict(guessed)


def _number_shards(groups: Sequence[DecodedGroup]) -> list[pa.Table]:
    """Return the groups' rows, with shards numbered across all groups."""
    tables, before = [], 0
    for group in groups:
        number = pc.cast(pc.add(group.rows["shard"], before), pa.int32())
        tables.append(group.rows.set_column(ROW_SCHEMA.get_field_index("shard"), ROW_SCHEMA.field("shard"), number))
        before += len(group.shards)
    return tables


def _join(
    image_rows: pa.Table, files: Mapping[str, SourceFile], key: HashKey, keep_sites: Sequence[str], keep_text: bool
) -> pa.Table:
    names = image_rows["file"].to_pylist()
    items = [files[name] for name in names]
    columns: dict[str, Any] = {name: image_rows[name] for name in image_rows.schema.names}
    columns["labels"] = pa.array([item.labels for item in items], INDEX.field("labels").type)
    columns["official"] = pa.array([item.official for item in items], pa.string())
    table_values = [
        pseudonyms.pseudonymise(item.table, key, keep_sites=keep_sites, keep_text=keep_text) if item.table else {}
        for item in items
    ]
    for name in TABLE_OR_HEADER:
        from_table = pa.array([values.get(name) or None for values in table_values], pa.string())
        columns[name] = pc.coalesce(pc.cast(from_table, INDEX.field(name).type), image_rows[name])
    for name in TABLE_ONLY:
        columns[name] = pa.array([values.get(name, "") for values in table_values], pa.string())
    # The patient comes from the table or a pattern, else from the header, else it is guessed.
    hashed = cache(lambda name: key.hash("patient", name))
    in_headers = image_rows["patient"].to_pylist()
    columns["patient_id"] = pa.array(
        [
            hashed(item.patient) if item.patient else in_header or hashed(item.guess[0])
            for item, in_header in zip(items, in_headers, strict=True)
        ],
        pa.string(),
    )
    columns["guessed"] = pa.array(
        ["" if item.patient or in_header else item.guess[1] for item, in_header in zip(items, in_headers, strict=True)],
        pa.string(),
    )
    columns["duplicate_of"] = columns["near"] = pa.array([""] * image_rows.num_rows, pa.string())
    schema = pa.schema([*INDEX, ROW_SCHEMA.field("notes"), pa.field("guessed", pa.string())])
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _decoding_warnings(rows: pa.Table) -> list[Row]:
    rows = rows.filter(pc.not_equal(rows["notes"], "[]")).select(["image_id", "patient_id", "notes"])
    return [
        {"image_id": row["image_id"], "patient_id": row["patient_id"], "reason": reason, "detail": detail}
        for row in rows.to_pylist()
        for reason, detail in json.loads(row["notes"])
    ]
