"""Puts every patient on one side, for good: train, validation, or the locked test set."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.shared.contracts import Between, In, Out, digest, fingerprint, read_record, write_record
from components.shared.tables import INDEX, SPLIT, write_table

SIDES = ("test", "val", "train")
"""The sides, the strictest first: where two claim the same thing, the first wins."""

PATIENTS = pa.schema([("patient_id", pa.string()), ("side", pa.string()), ("why", pa.string())])
"""Every patient ever seen with their side, also those whose images are gone from the source."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Before:
    """The previous split: patients and images ever seen, with side and the version since; and its images then."""

    version: int
    patients: dict[str, Row]
    images: dict[str, Row]
    present: dict[str, str]


def split(
    dataset: In,
    previous: In,
    splits: Out,
    *,
    test_fraction: Annotated[float, Between(0.05, 0.5)] = 0.25,
    val_fraction: Annotated[float, Between(0.05, 0.5)] = 0.15,
    seed: Annotated[int, Between(0, 2147483647)] = 7,
) -> dict[str, Any]:
    """Divide the patients among train, validation and test; a patient who has a side keeps it.

    The previous split decides first, then an official one, then a draw within each class. Of identical images only
    one is used, the one on the strictest side.

        test_fraction: share of each class's patients that are locked away for testing
        val_fraction: share of each class's patients on which thresholds are chosen
        seed: the draw's seed
    """
    rows = pq.read_table(dataset / "index.parquet", schema=INDEX).to_pylist()
    about = read_record("dataset", dataset / "dataset.json")
    before = _before(previous)
    labels = _patient_labels(rows)
    sides = {patient: row for patient, row in before.patients.items() if patient in labels}
    sides |= _official(rows, sides)
    fractions = {"test": test_fraction, "val": val_fraction}
    for label, name in enumerate(about["classes"]):
        members = [patient for patient, of_class in labels.items() if of_class == label]
        _enough(name, members)
        sides |= _draw(name, members, sides, fractions, seed)
    placed = _place(rows, sides, before)
    _leak_free(placed)
    _every_class_everywhere(rows, placed, about["classes"])
    everyone = before.patients | sides
    return _write(splits, placed, everyone, about["fingerprint"], before)


def _before(folder: Path) -> Before:
    if not (folder / "split.json").exists():
        return Before(0, {}, {}, {})
    patients = pq.read_table(folder / "patients.parquet", schema=PATIENTS).to_pylist()
    images = pq.read_table(folder / "seen.parquet", schema=SPLIT).to_pylist()
    present = pq.read_table(folder / "splits.parquet", schema=SPLIT).to_pylist()
    return Before(
        read_record("split", folder / "split.json")["version"],
        {row["patient_id"]: {"side": row["side"], "why": row["why"]} for row in patients},
        {row["image_id"]: row for row in images},
        {row["image_id"]: row["side"] for row in present},
    )


def _patient_labels(rows: list[Row]) -> dict[str, int]:
    """Each patient's stratum: the class of most of their images, the higher one where it is even."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        counts[row["patient_id"]].update(row["labels"])
    return {patient: max(count, key=lambda label: (count[label], label)) for patient, count in sorted(counts.items())}


def _official(rows: list[Row], sides: dict[str, Row]) -> dict[str, Row]:
    published: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["official"] and row["patient_id"] not in sides:
            published[row["patient_id"]].add(row["official"])
    return {
        patient: {"side": min(named, key=SIDES.index), "why": "official"}
        for patient, named in published.items()
        if named != {"train"}  # an official train side may still give some of its patients to validation
    }


def _enough(name: str, members: list[str]) -> None:
    if len(members) < len(SIDES):
        raise ValueError(
            f"Class {name!r} has {len(members)} patient{'s' * (len(members) != 1)}; the split needs at least "
            f"{len(SIDES)}, one each for train, validation and test. Add patients of that class, or leave it out."
        )


def _draw(
    name: str, members: list[str], sides: dict[str, Row], fractions: dict[str, float], seed: int
) -> dict[str, Row]:
    new = sorted((p for p in members if p not in sides), key=lambda p: digest(f"{seed} {name} {p}".encode()))
    held = Counter(sides[patient]["side"] for patient in members if patient in sides)
    official = any(sides[patient] == {"side": "test", "why": "official"} for patient in members if patient in sides)
    drawn: dict[str, Row] = {}
    for side, fraction in fractions.items():
        if side == "test" and official:
            continue  # a published test set is not added to
        wanted = max(1, round(fraction * len(members))) - held[side]
        for patient in new[: max(0, wanted)]:
            drawn[patient] = {"side": side, "why": "draw"}
        new = new[max(0, wanted) :]
    return drawn | {patient: {"side": "train", "why": "draw"} for patient in new}


def _place(rows: list[Row], sides: dict[str, Row], before: Before) -> list[Row]:
    placed = []
    for row in rows:
        side = sides[row["patient_id"]]
        known = before.images.get(row["image_id"])
        since = known["since"] if known and known["side"] == side["side"] else before.version + 1
        placed.append({**row, "side": side["side"], "why": side["why"], "since": since})
    # Of identical pixels the strictest side keeps one: the image that was there first.
    kept: set[str] = set()
    for row in sorted(placed, key=lambda r: (SIDES.index(r["side"]), r["since"], r["image_id"])):
        if row["pixel_digest"] in kept:
            known = before.images.get(row["image_id"])
            since = known["since"] if known and known["side"] == "" else before.version + 1
            row.update(side="", why="duplicate", since=since)
        kept.add(row["pixel_digest"])
    return placed


def _leak_free(placed: list[Row]) -> None:
    for field, what in (("patient_id", "patient"), ("pixel_digest", "image")):
        seen: dict[str, str] = {}
        for row in placed:
            if row["side"] and seen.setdefault(row[field], row["side"]) != row["side"]:
                raise ValueError(
                    f"The {what} {row[field][:12]} stands on two sides, {seen[row[field]]} and {row['side']}. "
                    "The previous split is damaged; restore it."
                )


def _every_class_everywhere(rows: list[Row], placed: list[Row], classes: list[str]) -> None:
    for side in SIDES:
        present = {label for row in placed if row["side"] == side for label in row["labels"]}
        missing = [name for label, name in enumerate(classes) if label not in present]
        if missing:
            raise ValueError(
                f"The {side} side has no image of class {missing[0]!r} ({len(rows)} images in all). "
                "Add patients of that class, or change the fractions in split_options."
            )


def _write(folder: Path, placed: list[Row], everyone: dict[str, Row], dataset: str, before: Before) -> dict[str, Any]:
    rows = [{name: row[name] for name in SPLIT.names} for row in placed]
    write_table(pa.Table.from_pylist(rows, schema=SPLIT), folder / "splits.parquet")
    # Images that left the source are remembered, so that they come back to where, and since when, they were.
    seen = before.images | {row["image_id"]: row for row in rows}
    remembered = [row for _, row in sorted(seen.items())]
    write_table(pa.Table.from_pylist(remembered, schema=SPLIT), folder / "seen.parquet")
    patients = [{"patient_id": patient, **row} for patient, row in sorted(everyone.items())]
    write_table(pa.Table.from_pylist(patients, schema=PATIENTS), folder / "patients.parquet")
    changed = before.present != {row["image_id"]: row["side"] for row in placed}
    images = Counter(row["side"] for row in placed)
    about = {
        "version": before.version + 1 if changed else before.version,
        "fingerprint": fingerprint(sorted([row["image_id"], row["side"]] for row in placed)),
        "dataset": dataset,
        "images": {side: images[side] for side in SIDES},
        "patients": {side: len({r["patient_id"] for r in placed if r["side"] == side}) for side in SIDES},
        "left_out": images[""],
    }
    write_record("split", folder / "split.json", about)
    return {"train": images["train"], "val": images["val"], "test": images["test"]}
