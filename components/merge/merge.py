"""From the portions of a source to one data set: what only all images together can tell is found here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from components.merge.crowd import crowds
from components.merge.repeats import mark_near, mark_repeated, without_contrary
from components.shared.contracts import Between, Ins, Out, read_record, write_record
from components.shared.datasets.parquet_tables import (
    INDEX,
    QUARANTINE,
    WARNINGS,
    read_csv,
    read_table,
    write_csv,
    write_table,
)
from components.shared.errors import RefusedError
from components.shared.runtime.events import log

Row = dict[str, Any]

DETAILS = 3
"""How many details of a reason for which files were set aside are told with the counts."""
MANY = 5
"""More classes than these, each of a single patient, are no classes."""


def merge(
    portions: Ins,
    dataset: Out,
    *,
    near_duplicates: bool = True,
    near_bits: Annotated[int, Between(0, 31)] = 23,
    most_images: Annotated[int, Between(2, 1000000)] = 500,
) -> dict[str, Any]:
    """Make one data set of the portions that were ingested side by side, whatever their number.

    Images with the same pixels and other labels are set aside; copies and look-alikes are marked.

    near_duplicates: look for images that look the same though their pixels differ
    near_bits: how many of the 256 bits of their looks may differ between images that look the same
    most_images: the most images of one patient that are plausible; fewer are, where patients usually have few
    """
    parts = [_read(folder) for folder in sorted(portions.iterdir())]
    about = _agreed(parts)
    rows, shards = _together(parts)
    quarantine = [row for part in parts for row in part.quarantine]
    warnings = [row for part in parts for row in part.warnings]
    rows, contrary = without_contrary(rows)
    quarantine += contrary
    rows = mark_repeated(rows)
    if near_duplicates:
        rows, alike = mark_near(rows, near_bits)
        warnings += alike
    _refuse_people_as_classes(rows, about)
    warnings += _crowds(rows, most_images) + _each_alone(rows)
    counts = _counts(rows, about, quarantine, warnings)
    _require_classes(about, counts)
    write_table(rows, dataset / "index.parquet")
    write_csv(quarantine, QUARANTINE, dataset / "quarantine.csv")
    write_csv(warnings, WARNINGS, dataset / "warnings.csv")
    record = {
        **{name: about[name] for name in ("name", "task", "classes", "key_id", "decoding")},
        "shards": shards,
        "fingerprint": _fingerprint(rows, about["classes"]),
        "source_revision": _revision(rows, quarantine),
        "counts": counts,
    }
    write_record("dataset", dataset / "dataset.json", record)
    _tell(warnings)
    names = ("images", "patients", "duplicates", "near_duplicates", "quarantined", "left_out")
    return {**{name: counts[name] for name in names}, "set_aside": _set_aside(quarantine)}


class Portion(NamedTuple):
    """What one partition of the source gave."""

    about: dict[str, Any]
    rows: pa.Table
    quarantine: list[Row]
    warnings: list[Row]


def _read(folder: Path) -> Portion:
    if not (folder / "portion.json").exists():
        raise RefusedError("What was handed in is no portion: it has no portion.json. Hand in what ingest gave.")
    return Portion(
        read_record("portion", folder / "portion.json"),
        read_table(folder / "index.parquet", schema=INDEX),
        [*read_csv(folder / "quarantine.csv")],
        [*read_csv(folder / "warnings.csv")],
    )


def _agreed(parts: Sequence[Portion]) -> dict[str, Any]:
    """What all portions say alike; a ValueError where they are not the portions of one source."""
    if not parts:
        raise RefusedError("No portion was handed in, and at least 1 is needed. Ingest the source first.")
    count = int(parts[0].about["part"].partition("/")[2])
    there = sorted(part.about["part"] for part in parts)
    if there != sorted(f"{number}/{count}" for number in range(1, count + 1)):
        raise RefusedError(
            f"The portions {', '.join(there)} are not the {count} of one source, each once. Hand in all that were "
            "ingested together."
        )
    for name in ("name", "task", "classes", "key_id", "decoding", "asked", "files"):
        for part in parts:
            if part.about[name] != parts[0].about[name]:
                what = {"asked": "what was asked of ingest", "files": "the files of the source"}.get(name, name)
                raise RefusedError(
                    f"The portions {parts[0].about['part']} and {part.about['part']} differ in {what}. Ingest all of "
                    "one source with the same parameters."
                )
    left_out: Counter[str] = Counter()
    for part in parts:
        left_out.update(part.about["left_out"])
    return {**parts[0].about, "left_out": dict(sorted(left_out.items()))}


def _together(parts: Sequence[Portion]) -> tuple[pa.Table, list[Row]]:
    """All rows, by image, and all shards in an order that does not depend on the portions."""
    shards = sorted((shard for part in parts for shard in part.about["shards"]), key=_place)
    place = {_place(shard): number for number, shard in enumerate(shards)}
    tables = []
    for part in parts:
        now = pa.array([place[_place(shard)] for shard in part.about["shards"]] or [0], pa.int32())
        column = pc.take(now, part.rows["shard"]) if part.rows.num_rows else part.rows["shard"]
        tables.append(part.rows.set_column(INDEX.get_field_index("shard"), INDEX.field("shard"), column))
    rows = pa.concat_tables(tables).combine_chunks().sort_by("image_id")
    return rows, [{name: shard[name] for name in ("digest", "bytes", "rows")} for shard in shards]


def _refuse_people_as_classes(rows: pa.Table, about: dict[str, Any]) -> None:
    """Folders that are people's, taken for classes, would stand in every record by their names."""
    classes = about["classes"]
    if len(classes) <= MANY:
        return
    patients = pc.dictionary_encode(rows["patient_id"]).combine_chunks().indices.to_numpy()
    lists = rows["labels"].combine_chunks()
    pairs = {
        (label, patients[row])
        for row, label in zip(pc.list_parent_indices(lists).to_pylist(), lists.flatten().to_pylist(), strict=True)
    }
    if len(pairs) == len({label for label, _ in pairs}):
        raise RefusedError(
            f"Each of the {len(classes)} classes has one patient, so they are people rather than classes (not named "
            "here). Put a folder for each class above the folders of patients, or give the labels in a table."
        )


def _crowds(rows: pa.Table, most: int) -> list[Row]:
    found = crowds(rows["patient_id"].to_pylist(), rows["source_digest"].to_pylist(), most)
    return [
        {"image_id": "", "patient_id": patient, "reason": "many images of one patient", "detail": detail}
        for patient, detail in found.items()
    ]


def _place(shard: Row) -> tuple[str, int]:
    return shard["group"], shard["number"]


def _each_alone(rows: pa.Table) -> list[Row]:
    patients = pc.count_distinct(rows["patient_id"]).as_py()
    if not patients == rows.num_rows > 1:
        return []
    detail = (
        f"{rows.num_rows} images of as many patients: if patients have several images, name them in patients.csv or by "
        "patient_pattern, for neither file names nor headers tell here, and the split would part a patient's images"
    )
    return [{"image_id": "", "patient_id": "", "reason": "every image is a patient of its own", "detail": detail}]


def _counts(rows: pa.Table, about: dict[str, Any], quarantine: Sequence[Row], warnings: Sequence[Row]) -> Row:
    of_class = Counter(rows["labels"].combine_chunks().flatten().to_pylist())
    return {
        "images": rows.num_rows,
        "patients": pc.count_distinct(rows["patient_id"]).as_py(),
        "by_class": {name: of_class[label] for label, name in enumerate(about["classes"])},
        "without_finding": pc.sum(pc.equal(pc.list_value_length(rows["labels"]), 0)).as_py() or 0,
        "duplicates": pc.sum(pc.not_equal(rows["duplicate_of"], "")).as_py() or 0,
        "near_duplicates": pc.sum(pc.not_equal(rows["near"], "")).as_py() or 0,
        "quarantined": len(quarantine),
        "reasons": _by_reason(quarantine),
        "warnings": _by_reason(warnings),
        "left_out": about["left_out"],
    }


def _by_reason(rows: Sequence[Row]) -> dict[str, int]:
    return dict(sorted(Counter(row["reason"] for row in rows).items()))


def _set_aside(quarantine: Sequence[Row]) -> dict[str, int]:
    """How many files were set aside for what, the most frequent first; of each reason a few details, then the rest."""
    found = Counter((row["reason"], row["detail"]) for row in quarantine)
    told: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for (reason, detail), number in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        shown[reason] += 1
        told[f"{reason}: {detail if shown[reason] <= DETAILS else 'for other reasons'}"] += number
    return dict(told)


def _require_classes(about: dict[str, Any], counts: Row) -> None:
    empty = [name for name, count in counts["by_class"].items() if not count]
    aside = f"{counts['quarantined']} files were set aside: {', '.join(counts['reasons']) or 'none'}"
    if about["task"] == "classification" and empty:
        raise RefusedError(
            f"No usable image of class {empty[0]!r} is left; {aside}. Check the files of that class, or leave the "
            "class out with ingest_options classes."
        )
    if not counts["images"] or len(empty) == len(about["classes"]):
        raise RefusedError(f"No usable image with a finding is left; {aside}. Check the source and its table.")


def _fingerprint(rows: pa.Table, classes: Sequence[str]) -> str:
    """Names the pixels with their labels, in whatever files and under whatever key."""
    names = ["\0".join(classes[label] for label in labels) for labels in rows["labels"].to_pylist()]
    return _digest(f"{digest}\0{name}" for digest, name in zip(rows["pixel_digest"].to_pylist(), names, strict=True))


def _revision(rows: pa.Table, quarantine: Sequence[Row]) -> str:
    """Names the files' contents, set aside or not, under their keyed names."""
    used = zip(rows["image_id"].to_pylist(), rows["source_digest"].to_pylist(), strict=True)
    return _digest([*map("\0".join, used), *(f"{row['image_id']}\0{row['source_digest']}" for row in quarantine)])


def _digest(lines: Any) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _tell(warnings: Sequence[Row]) -> None:
    for reason, count in _by_reason(warnings).items():
        detail = next(row["detail"] for row in warnings if row["reason"] == reason)
        log.warning(reason, extra={"fields": {"stage": "merge", "count": count, "why": detail}})
