"""Mark duplicates and near duplicates, and remove images whose duplicates have other labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.merge.near_duplicates import group_names, group_near_duplicates
from components.shared.datasets.parquet_tables import INDEX

Row = dict[str, Any]

MAX_SHOWN = 5
"""Maximum number of images of a group in a warning."""


def remove_contrary(rows: pa.Table) -> tuple[pa.Table, list[Row]]:
    """Quarantine images whose pixels also occur with other labels."""
    content = _codes(rows["pixel_digest"])
    labels = _codes(pc.binary_join(pc.cast(rows["labels"], pa.list_(pa.string())), ","))
    order = np.lexsort((labels, content))
    differs = (content[order][1:] == content[order][:-1]) & (labels[order][1:] != labels[order][:-1])
    contrary = np.isin(content, content[order][1:][differs])
    detail = "the same pixels also occur with other labels"
    quarantine = [
        {**row, "reason": "contrary label", "detail": detail}
        for row in rows.filter(pa.array(contrary)).select(["image_id", "source_digest"]).to_pylist()
    ]
    return rows.filter(pa.array(~contrary)), quarantine


def mark_duplicates(rows: pa.Table) -> pa.Table:
    """Set `duplicate_of` to the first image with the same pixels."""
    content = _codes(rows["pixel_digest"])
    first = np.unique(content, return_index=True)[1][content] if len(content) else content
    return _set_column(rows, "duplicate_of", first, first != np.arange(len(first)))


def mark_near_duplicates(rows: pa.Table, max_bits: int) -> tuple[pa.Table, list[Row]]:
    """Return the rows with groups of near duplicates in `near`, and warnings."""
    number = group_near_duplicates(rows["look"].to_pylist(), max_bits)
    pairs = np.unique(np.stack([number, _codes(rows["pixel_digest"])]), axis=1)[0]
    group_numbers, contents = np.unique(pairs, return_counts=True)
    several = np.where(np.isin(number, group_numbers[contents > 1]), number, -1)
    near = pa.array(group_names(several, rows["image_id"].to_pylist()), pa.string())
    marked = rows.set_column(INDEX.get_field_index("near"), INDEX.field("near"), near)
    return marked, _duplicate_warnings(marked, number)


def _duplicate_warnings(rows: pa.Table, number: NDArray[np.int64]) -> list[Row]:
    """Return a warning for each group, except for copies of one patient's image."""
    images, patients = (rows[name].to_pylist() for name in ("image_id", "patient_id"))
    content = _codes(rows["pixel_digest"])
    members = np.flatnonzero(number >= 0)
    members = members[np.argsort(number[members], kind="stable")]
    warnings = []
    for group in np.split(members, np.flatnonzero(np.diff(number[members])) + 1):
        patients_in_group = {patients[position] for position in group}
        is_identical = len(np.unique(content[group])) == 1
        if len(group) < 2 or (is_identical and len(patients_in_group) == 1):
            continue
        reason = "copies" if is_identical else "look-alikes"
        shown = ", ".join(images[position][:12] for position in group[:MAX_SHOWN]) + ", …" * (len(group) > MAX_SHOWN)
        detail = (
            f"{len(group)} images of {len(patients_in_group)} patient{'s' * (len(patients_in_group) != 1)}: {shown}"
        )
        across = " across patients" if len(patients_in_group) > 1 else ""
        first = group[0]
        warnings.append(
            {"image_id": images[first], "patient_id": patients[first], "reason": reason + across, "detail": detail}
        )
    return warnings


def _set_column(rows: pa.Table, column: str, first: NDArray[np.int64], where: NDArray[np.bool_]) -> pa.Table:
    names = pc.if_else(pa.array(where), pc.take(rows["image_id"], pa.array(first)), "")
    return rows.set_column(INDEX.get_field_index(column), INDEX.field(column), names)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(pc.dictionary_encode(column).combine_chunks().indices, np.int64)
