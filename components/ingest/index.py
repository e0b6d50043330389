"""The index of a share of the images: what their files hold, joined with what names, folders and the table tell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.ingest.labels import Labelled
from components.ingest.names import patient_of
from components.ingest.records import FACTS, Masters
from components.shared.datasets.parquet_tables import INDEX
from components.shared.imaging import header
from components.shared.privacy.hash_keys import HashKey

Row = dict[str, Any]

BOTH = ("sex", "age", "site", "view", "modality")
"""What the table may say and the header, too; the table goes first."""

TABLE_ONLY = ("label_source", "text")
"""What the table alone may say."""


def index(
    found: Sequence[Masters], files: Mapping[str, Labelled], key: HashKey, keep_sites: Sequence[str], keep_text: bool
) -> tuple[pa.Table, list[Row], list[Row]]:
    """The index, by image; the quarantine of what has no pixels; and the warnings that decoding gave.

    `files` tells of each file, by the keyed hash of its name.
    """
    facts = pa.concat_tables(_with_places(found) or [FACTS.empty_table()])
    sound = pc.equal(facts["problem"], "")
    problems = facts.filter(pc.invert(sound)).select(["image_id", "source_digest", "problem"])
    unreadable = [
        {"image_id": image, "source_digest": digest, "reason": "unreadable", "detail": problem}
        for image, digest, problem in zip(*(column.to_pylist() for column in problems.columns), strict=True)
    ]
    rows = _joined(facts.filter(sound), files, key, keep_sites, keep_text)
    return rows.select(INDEX.names).sort_by("image_id"), unreadable, _noted(rows)


def _with_places(found: Sequence[Masters]) -> list[pa.Table]:
    """Their facts, with each shard's number among all in place of that in its group."""
    placed, before = [], 0
    for each in found:
        number = pc.cast(pc.add(each.facts["shard"], before), pa.int32())
        placed.append(each.facts.set_column(FACTS.get_field_index("shard"), FACTS.field("shard"), number))
        before += len(each.shards)
    return placed


def _joined(
    facts: pa.Table, files: Mapping[str, Labelled], key: HashKey, keep_sites: Sequence[str], keep_text: bool
) -> pa.Table:
    names = facts["file"].to_pylist()
    items = [files[name] for name in names]
    columns: dict[str, Any] = {name: facts[name] for name in facts.schema.names}
    columns["labels"] = pa.array([item.labels for item in items], INDEX.field("labels").type)
    columns["official"] = pa.array([item.official for item in items], pa.string())
    said = [
        header.pseudonymous(item.table, key, keep_sites=keep_sites, keep_text=keep_text) if item.table else {}
        for item in items
    ]
    for name in BOTH:
        told = pc.cast(pa.array([each.get(name) or None for each in said], pa.string()), INDEX.field(name).type)
        columns[name] = pc.coalesce(told, facts[name])
    for name in TABLE_ONLY:
        columns[name] = pa.array([each.get(name, "") for each in said], pa.string())
    # The patient whom the table or a pattern names, else the header's, else the one whom the file's name tells.
    hashed = cache(lambda name: key.hash("patient", name))
    columns["patient_id"] = pa.array(
        [
            hashed(item.patient) if item.patient else in_header or hashed(patient_of(item.name))
            for item, in_header in zip(items, facts["patient"].to_pylist(), strict=True)
        ],
        pa.string(),
    )
    columns["duplicate_of"] = columns["near"] = pa.array([""] * facts.num_rows, pa.string())
    schema = pa.schema([*INDEX, FACTS.field("notes")])
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _noted(rows: pa.Table) -> list[Row]:
    noted = rows.filter(pc.not_equal(rows["notes"], "[]")).select(["image_id", "patient_id", "notes"]).to_pylist()
    return [
        {"image_id": row["image_id"], "patient_id": row["patient_id"], "reason": reason, "detail": detail}
        for row in noted
        for reason, detail in json.loads(row["notes"])
    ]
