"""Images that are there more than once: copies, look-alikes, and the same picture under contrary labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.merge.near import groups, named
from components.shared.datasets.parquet_tables import INDEX

Row = dict[str, Any]

SHOWN = 5
"""How many images of a group a warning names."""


def without_contrary(rows: pa.Table) -> tuple[pa.Table, list[Row]]:
    """The rows less those whose pixels stand under other labels too, and the quarantine of these."""
    content = _codes(rows["pixel_digest"])
    labels = _codes(pc.binary_join(pc.cast(rows["labels"], pa.list_(pa.string())), ","))
    order = np.lexsort((labels, content))
    differs = (content[order][1:] == content[order][:-1]) & (labels[order][1:] != labels[order][:-1])
    contrary = np.isin(content, content[order][1:][differs])
    detail = "the same pixels stand under other labels too"
    aside = [
        {**row, "reason": "contrary label", "detail": detail}
        for row in rows.filter(pa.array(contrary)).select(["image_id", "source_digest"]).to_pylist()
    ]
    return rows.filter(pa.array(~contrary)), aside


def mark_repeated(rows: pa.Table) -> pa.Table:
    """The rows, by image, with the first of those of the same pixels named in each further one."""
    content = _codes(rows["pixel_digest"])
    first = np.unique(content, return_index=True)[1][content] if len(content) else content
    return _set(rows, "duplicate_of", first, first != np.arange(len(first)))


def mark_near(rows: pa.Table, within: int) -> tuple[pa.Table, list[Row]]:
    """The rows with their group of images that look the same though they are no copies, and what is to be told."""
    number = groups(rows["look"].to_pylist(), within)
    together = np.unique(np.stack([number, _codes(rows["pixel_digest"])]), axis=1)[0]
    groups_, contents = np.unique(together, return_counts=True)
    several = np.where(np.isin(number, groups_[contents > 1]), number, -1)
    near = pa.array(named(several, rows["image_id"].to_pylist()), pa.string())
    marked = rows.set_column(INDEX.get_field_index("near"), INDEX.field("near"), near)
    return marked, _look_alikes(marked, number)


def _look_alikes(rows: pa.Table, number: NDArray[np.int64]) -> list[Row]:
    """A warning for each group that holds more than the copies of one patient's image."""
    images, patients = (rows[name].to_pylist() for name in ("image_id", "patient_id"))
    content = _codes(rows["pixel_digest"])
    members = np.flatnonzero(number >= 0)
    members = members[np.argsort(number[members], kind="stable")]
    told = []
    for group in np.split(members, np.flatnonzero(np.diff(number[members])) + 1):
        whose = {patients[place] for place in group}
        equal = len(np.unique(content[group])) == 1
        if len(group) < 2 or (equal and len(whose) == 1):
            continue
        reason = "copies" if equal else "look-alikes"
        shown = ", ".join(images[place][:12] for place in group[:SHOWN]) + ", …" * (len(group) > SHOWN)
        detail = f"{len(group)} images of {len(whose)} patient{'s' * (len(whose) != 1)}: {shown}"
        across = " across patients" if len(whose) > 1 else ""
        first = group[0]
        told.append(
            {"image_id": images[first], "patient_id": patients[first], "reason": reason + across, "detail": detail}
        )
    return told


def _set(rows: pa.Table, column: str, first: NDArray[np.int64], where: NDArray[np.bool_]) -> pa.Table:
    names = pc.if_else(pa.array(where), pc.take(rows["image_id"], pa.array(first)), "")
    return rows.set_column(INDEX.get_field_index(column), INDEX.field(column), names)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each distinct text."""
    return np.asarray(pc.dictionary_encode(column).combine_chunks().indices, np.int64)
