"""Puts every patient on one side, for good: train, validation, or the locked test set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.shared.contracts import Between, In, Out, fingerprint, read_record, write_record
from components.shared.datasets.parquet_tables import SPLIT, read_table, write_table
from components.shared.errors import RefusedError
from components.shared.runtime.events import log
from components.split.columns import NONE, SIDES, Codes, named, once, positions, side_codes
from components.split.consent import withdrawn_ids, withdrawn_images, withdrawn_patients
from components.split.draw import lots
from components.split.folds import check_fold, draw_folds, rotate, shares_of_folds, uneven
from components.split.history import History, Owners, known, read_history, remember
from components.split.images import leave_out, much_left_out
from components.split.labels import changed_labels
from components.split.leakage import leaks
from components.split.shares import shares
from components.split.sides import draw_sides, enough, follow_official, link, missing
from components.split.strata import labels_of, read_people

COLUMNS = ["image_id", "patient_id", "labels", "pixel_digest", "near", "official", "sex", "age", "site"]


def split(
    dataset: In,
    previous: In,
    splits: Out,
    *,
    test_fraction: Annotated[float, Between(0.05, 0.5)] = 0.25,
    val_fraction: Annotated[float, Between(0.05, 0.5)] = 0.15,
    seed: Annotated[int, Between(0, 2147483647)] = 7,
    folds: Annotated[int, Between(0, 20)] = 0,
    fold: Annotated[int, Between(0, 19)] = 0,
    withdrawn: list[str] = [],  # noqa: B006 - the signature states the default; nobody changes it
) -> dict[str, Any]:
    """Divide the patients among train, validation and test; a patient who has a side keeps it.

    Who withdrew consent is on no side. Then the previous split decides, then an official one, then a draw that gives
    each side its share of every class or finding, and of sexes, age bands and sites. Of copies, and of images that
    look the same, those on the strictest side are used. With folds, validation and train change places among
    themselves, and the test stays as it is.

        test_fraction: share of each class's patients that are locked away for testing
        val_fraction: share of each class's patients on which thresholds are chosen
        seed: the draw's seed
        folds: into how many folds the patients outside the test are divided, from 2; 0 for none
        fold: the fold that validates while the others train, from 0
        withdrawn: patients who withdrew consent, by 12 or more digits of their keyed hash; none of their images is used
    """
    check_fold(folds, fold)
    about = read_record("dataset", dataset / "dataset.json")
    index = read_table(dataset / "index.parquet", columns=COLUMNS).sort_by("image_id")
    before = read_history(previous, about["key_id"])
    people, owners = read_people(index, about), Owners(before.owners, index)
    lot = lots(people.ids, seed)
    given, in_fold = known(before, people.ids, folds)

    gone = withdrawn_ids(withdrawn, owners.patients)
    shown = withdrawn_images(owners, gone)
    absent = withdrawn_patients(people.ids, gone, people.of, shown, (given.side == NONE) | given.linked)
    there = ~absent
    given = link(given, there, people, owners, before)
    given = follow_official(given, there, people, index)
    warnings = enough(people, there, about)
    given = draw_sides(given, there, people, (test_fraction, val_fraction), lot)

    now, why = np.where(there, given.side, NONE), given.why
    if folds:
        warnings += uneven(people, now, folds, about["classes"])
        in_fold = draw_folds(people, now, given.linked, owners, in_fold, folds, lot)
        now, why = rotate(now, in_fold, fold), np.where(in_fold >= 0, "fold", why)
    strictest = owners.strictest(before, people.ids, given)
    placed = _place(index, now[people.of], strictest, shown | absent[people.of], why[people.of], before)
    placed = placed.append_column(SPLIT.field("fold"), pa.array(in_fold[people.of], pa.int32()))
    side = side_codes(placed["side"])
    warnings += missing(labels_of(index), side, about, SIDES) + much_left_out(placed)

    write_table(placed, splits / "splits.parquet")
    remember(splits, before, people.ids, given, in_fold, folds, placed, owners)
    told = {
        "dataset": about["fingerprint"],
        "key_id": about["key_id"],
        "shares": shares(index, people.of, side, about),
        "folds": shares_of_folds(people, in_fold, side != NONE, folds),
        "withdrawn": int((placed["why"].to_numpy() == "withdrawn").sum()),
        "warnings": warnings,
    }
    values = _tell(splits, placed, side, people.of, before, told)
    if changed := changed_labels(previous, splits, index, about):  # no part of the split: made again it has to be equal
        log.warning("changed labels", extra={"fields": {"stage": "split", "why": changed}})
    _refuse_leaks(dataset, splits)
    return values


def _place(
    index: pa.Table,
    side: Codes,
    strictest: Codes,
    withdrawn: NDArray[np.bool_],
    why: NDArray[np.object_],
    before: History,
) -> pa.Table:
    """The side of each image, since when, and what decided it."""
    place = positions(index["image_id"], before.images["image_id"].combine_chunks())
    at = pa.array(place, mask=place < 0)
    side_before = np.where(place < 0, -1, side_codes(before.images["side"].take(at).fill_null("")))
    since_before = before.images["since"].take(at).fill_null(0).to_numpy()

    def since(side: Codes) -> Codes:
        return np.where(side == side_before, since_before, before.version + 1)

    used, reason = leave_out(index, side, strictest, withdrawn)
    columns = [
        index["image_id"],
        index["patient_id"],
        named(used),
        pa.array(since(used), pa.int32()),
        pa.array(np.where(reason == "", why, reason), pa.string()),
    ]
    return pa.table(columns, names=SPLIT.names[:5])


def _tell(
    folder: Path, placed: pa.Table, side: Codes, of: Codes, before: History, told: dict[str, Any]
) -> dict[str, Any]:
    images = np.bincount(side, minlength=NONE + 1).tolist()
    patients = [len(once(of[side == place])) for place in range(NONE)]
    same = ["image_id", "side"]
    pairs = zip(*(placed[name].to_pylist() for name in same), strict=True)
    changed = not placed.select(same).equals(before.present.select(same))
    about = {
        "version": before.version + 1 if changed else before.version,
        "fingerprint": fingerprint([list(pair) for pair in pairs]),
        "images": dict(zip(SIDES[:NONE], images[:NONE], strict=True)),
        "patients": dict(zip(SIDES[:NONE], patients, strict=True)),
        "left_out": images[NONE],
        **told,
    }
    write_record("split", folder / "split.json", about)
    for warning in told["warnings"]:
        log.warning("doubtful split", extra={"fields": {"stage": "split", "why": warning}})
    return {name: about["images"][name] for name in ("train", "val", "test")}


def _refuse_leaks(dataset: Path, splits: Path) -> None:
    found = leaks(dataset, splits)
    if found:
        raise RefusedError(" ".join(leak.sentence for leak in found))
