"""Merge the portions of a source into one data set, and run the checks that need all images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from components.merge.duplicates import mark_duplicates, mark_near_duplicates, remove_contrary
from components.merge.plausibility import find_implausible_patients
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

MAX_DETAILS = 3
"""Maximum number of details per reason in the summary of quarantined files."""
MAX_CLASSES_OF_ONE_PATIENT = 5
"""Maximum number of classes if each has only one patient; more are probably folders of patients."""

REMEDY = "If that is wrong, name the patients in patients.csv, or set ingest_options patient_pattern"
GUESSES = {
    "folder": ("patients guessed from folders", "each folder below a class folder counts as a patient"),
    "file name": ("patients guessed from file names", "the file's name without its last number counts as the patient"),
    "file": (
        "each file counted as a patient",
        "their names show no patient, so one patient's images may be in several splits",
    ),
}
"""Warnings about guessed patients, by the basis of the guess."""


def merge(
    portions: Ins,
    dataset: Out,
    *,
    near_duplicates: bool = True,
    near_bits: Annotated[int, Between(0, 31)] = 23,
    most_images: Annotated[int, Between(2, 1000000)] = 500,
) -> dict[str, Any]:
    """Merge any number of ingested portions into one data set.

    Images whose pixels also occur with other labels are quarantined; duplicates and near duplicates are marked.

    near_duplicates: whether to search for near duplicates, which look the same but have different pixels
    near_bits: maximum number of the 256 bits of perceptual hashes in which near duplicates may differ
    most_images: maximum plausible number of images per patient; the limit is lower if patients usually have few
    """
    contents = [_read(folder) for folder in sorted(portions.iterdir())]
    common = _check_portions(contents)
    rows, shards = _join_rows(contents)
    quarantine = [row for portion in contents for row in portion.quarantine]
    warnings = [row for portion in contents for row in portion.warnings]
    rows, contrary = remove_contrary(rows)
    quarantine += contrary
    rows = mark_duplicates(rows)
    if near_duplicates:
        rows, near_warnings = mark_near_duplicates(rows, near_bits)
        warnings += near_warnings
    _refuse_people_as_classes(rows, common)
    warnings += _implausible_patients(rows, most_images) + _guessed_patients(common["guessed"])
    warnings += [] if common["guessed"].get("file") else _single_images(rows)
    counts = _counts(rows, common, quarantine, warnings)
    _require_classes(common, counts)
    write_table(rows, dataset / "index.parquet")
    write_csv(quarantine, QUARANTINE, dataset / "quarantine.csv")
    write_csv(warnings, WARNINGS, dataset / "warnings.csv")
    record = {
        **{name: common[name] for name in ("name", "task", "classes", "key_id", "decoding")},
        "shards": shards,
        "fingerprint": _fingerprint(rows, common["classes"]),
        "source_revision": _revision(rows, quarantine),
        "counts": counts,
    }
    write_record("dataset", dataset / "dataset.json", record)
    _log_warnings(warnings)
    names = ("images", "patients", "duplicates", "near_duplicates", "quarantined", "left_out")
    return {**{name: counts[name] for name in names}, "set_aside": _set_aside(quarantine)}


class Portion(NamedTuple):
    """An ingested part of the source."""

    common: dict[str, Any]
    rows: pa.Table
    quarantine: list[Row]
    warnings: list[Row]


def _read(folder: Path) -> Portion:
    if not (folder / "portion.json").exists():
        raise RefusedError("An input is not a portion: it has no portion.json. Use the output of ingest.")
    return Portion(
        read_record("portion", folder / "portion.json"),
        read_table(folder / "index.parquet", schema=INDEX),
        [*read_csv(folder / "quarantine.csv")],
        [*read_csv(folder / "warnings.csv")],
    )


def _check_portions(portions: Sequence[Portion]) -> dict[str, Any]:
    """Return the common record; raise a ValueError unless portions fit together."""
    if not portions:
        raise RefusedError("There are 0 portions; at least 1 is needed. Ingest the source first.")
    count = int(portions[0].common["part"].partition("/")[2])
    parts_present = sorted(portion.common["part"] for portion in portions)
    if parts_present != sorted(f"{number}/{count}" for number in range(1, count + 1)):
        raise RefusedError(
            f"The portions are {', '.join(parts_present)}; they must be all {count} of one source, each once. Use all "
            "portions that were ingested together."
        )
    for name in ("name", "task", "classes", "key_id", "decoding", "asked", "files"):
        for portion in portions:
            if portion.common[name] != portions[0].common[name]:
                what = {"asked": "the parameters of ingest", "files": "the files of the source"}.get(name, name)
                raise RefusedError(
                    f"The portions {portions[0].common['part']} and {portion.common['part']} differ in {what}. Ingest "
                    "all of one source with the same parameters."
                )
    totals = {}
    for name in ("left_out", "guessed"):
        total: Counter[str] = Counter()
        for portion in portions:
            total.update(portion.common.get(name, {}))
        totals[name] = dict(sorted(total.items()))
    return {**portions[0].common, **totals}


def _join_rows(portions: Sequence[Portion]) -> tuple[pa.Table, list[Row]]:
    """Return rows and shards in an order that does not depend on the portions."""
    shards = sorted((shard for portion in portions for shard in portion.common["shards"]), key=_shard_key)
    position = {_shard_key(shard): number for number, shard in enumerate(shards)}
    tables = []
    for portion in portions:
        now = pa.array([position[_shard_key(shard)] for shard in portion.common["shards"]] or [0], pa.int32())
        column = pc.take(now, portion.rows["shard"]) if portion.rows.num_rows else portion.rows["shard"]
        tables.append(portion.rows.set_column(INDEX.get_field_index("shard"), INDEX.field("shard"), column))
    rows = pa.concat_tables(tables).combine_chunks().sort_by("image_id")
    return rows, [{name: shard[name] for name in ("digest", "bytes", "rows")} for shard in shards]


def _refuse_people_as_classes(rows: pa.Table, common: dict[str, Any]) -> None:
    """Refuse classes that are patients: their names would be in every record."""
    classes = common["classes"]
    if len(classes) <= MAX_CLASSES_OF_ONE_PATIENT:
        return
    patients = pc.dictionary_encode(rows["patient_id"]).combine_chunks().indices.to_numpy()
    lists = rows["labels"].combine_chunks()
    pairs = {
        (label, patients[row])
        for row, label in zip(pc.list_parent_indices(lists).to_pylist(), lists.flatten().to_pylist(), strict=True)
    }
    if len(pairs) == len({label for label, _ in pairs}):
        raise RefusedError(
            f"Each of the {len(classes)} classes has one patient, so they are probably patients (not named here). Put "
            "a folder for each class above the folders of patients, or provide the labels in a table."
        )


def _implausible_patients(rows: pa.Table, most_images: int) -> list[Row]:
    patients, files = rows["patient_id"].to_pylist(), rows["source_digest"].to_pylist()
    return [
        {"image_id": "", "patient_id": patient, "reason": "many images of one patient", "detail": detail}
        for patient, detail in find_implausible_patients(patients, files, most_images).items()
    ]


def _guessed_patients(guessed: dict[str, int]) -> list[Row]:
    """Return warnings about patients that no table, pattern or header names."""
    return [
        {"image_id": "", "patient_id": "", "reason": reason, "detail": f"{guessed[basis]:,} images: {detail}. {REMEDY}"}
        for basis, (reason, detail) in GUESSES.items()
        if guessed.get(basis)
    ]


def _shard_key(shard: Row) -> tuple[str, int]:
    return shard["group"], shard["number"]


def _single_images(rows: pa.Table) -> list[Row]:
    patients = pc.count_distinct(rows["patient_id"]).as_py()
    if not patients == rows.num_rows > 1:
        return []
    detail = (
        f"{rows.num_rows} images of as many patients: if patients have several images, identify them in patients.csv "
        "or with patient_pattern; otherwise one patient's images may be in several splits"
    )
    return [{"image_id": "", "patient_id": "", "reason": "every image is a patient of its own", "detail": detail}]


def _counts(rows: pa.Table, common: dict[str, Any], quarantine: Sequence[Row], warnings: Sequence[Row]) -> Row:
    images_of_class = Counter(rows["labels"].combine_chunks().flatten().to_pylist())
    return {
        "images": rows.num_rows,
        "patients": pc.count_distinct(rows["patient_id"]).as_py(),
        "by_class": {name: images_of_class[label] for label, name in enumerate(common["classes"])},
        "without_finding": pc.sum(pc.equal(pc.list_value_length(rows["labels"]), 0)).as_py() or 0,
        "duplicates": pc.sum(pc.not_equal(rows["duplicate_of"], "")).as_py() or 0,
        "near_duplicates": pc.sum(pc.not_equal(rows["near"], "")).as_py() or 0,
        "quarantined": len(quarantine),
        "reasons": _by_reason(quarantine),
        "warnings": _by_reason(warnings),
        "left_out": common["left_out"],
        "guessed": common["guessed"],
    }


def _by_reason(rows: Sequence[Row]) -> dict[str, int]:
    return dict(sorted(Counter(row["reason"] for row in rows).items()))


def _set_aside(quarantine: Sequence[Row]) -> dict[str, int]:
    """Count quarantined files by reason and detail, with few details per reason."""
    counts = Counter((row["reason"], row["detail"]) for row in quarantine)
    summary: Counter[str] = Counter()
    shown_details: Counter[str] = Counter()
    for (reason, detail), number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        shown_details[reason] += 1
        summary[f"{reason}: {detail if shown_details[reason] <= MAX_DETAILS else 'for other reasons'}"] += number
    return dict(summary)


def _require_classes(common: dict[str, Any], counts: Row) -> None:
    empty = [name for name, count in counts["by_class"].items() if not count]
    aside = f"{counts['quarantined']} files were quarantined: {', '.join(counts['reasons']) or 'none'}"
    if common["task"] == "classification" and empty:
        raise RefusedError(
            f"No usable image of class {empty[0]!r} is left; {aside}. Check the files of that class, or leave the "
            "class out with ingest_options classes."
        )
    if not counts["images"] or len(empty) == len(common["classes"]):
        raise RefusedError(f"No usable image with a finding is left; {aside}. Check the source and its table.")


def _fingerprint(rows: pa.Table, classes: Sequence[str]) -> str:
    """Return the digest of all pixels with their labels."""
    names = ["\0".join(classes[label] for label in labels) for labels in rows["labels"].to_pylist()]
    pixels = rows["pixel_digest"].to_pylist()
    return _hash_lines(f"{digest}\0{name}" for digest, name in zip(pixels, names, strict=True))


def _revision(rows: pa.Table, quarantine: Sequence[Row]) -> str:
    """Return the digest of all files, used or quarantined, with their keyed names."""
    used = zip(rows["image_id"].to_pylist(), rows["source_digest"].to_pylist(), strict=True)
    return _hash_lines([*map("\0".join, used), *(f"{row['image_id']}\0{row['source_digest']}" for row in quarantine)])


def _hash_lines(lines: Any) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _log_warnings(warnings: Sequence[Row]) -> None:
    for reason, count in _by_reason(warnings).items():
        detail = next(row["detail"] for row in warnings if row["reason"] == reason)
        log.warning(reason, extra={"fields": {"stage": "merge", "count": count, "why": detail}})
