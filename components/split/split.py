"""Assign every patient permanently to one split: train, val, or the locked test set."""

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
from components.split.assign import assign_drawn, assign_linked, assign_official, check_patients, check_splits
from components.split.codes import NONE, SPLITS, Codes, names_of_codes, positions, sorted_unique, split_codes
from components.split.consent import withdrawn_ids, withdrawn_images, withdrawn_patients
from components.split.counts import count_by_value
from components.split.draw import draw_ranks
from components.split.exclusions import exclude_images, many_left_out
from components.split.folds import check_fold, check_folds, count_by_fold, draw_folds, rotate
from components.split.history import History, Owners, known_assignment, read_history, write_history
from components.split.label_changes import changed_labels
from components.split.leakage import leaks
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
    withdrawn: list[str] = [],  # noqa: B006 - the signature states the default; it is never modified
) -> dict[str, Any]:
    """Assign patients to train, val and test; they keep the split they have.

    Patients who withdrew consent are in no split. For the others the previous split takes precedence, then a published
    one, then a stratified draw that balances classes or findings, sex, age bands and sites. Of duplicates and near
    duplicates in several splits, only those in the strictest split are used. With folds, the assignment to train and
    val changes with the fold, and test remains the same.

        test_fraction: fraction of each class's patients in the locked test split
        val_fraction: fraction of each class's patients in the validation split, on which thresholds are chosen
        seed: seed of the draw
        folds: number of cross-validation folds for the patients outside test, at least 2; 0 disables folds
        fold: the fold used for validation, starting at 0
        withdrawn: patients who withdrew consent, by at least 12 digits of their keyed hash; their images are not used
    """
    check_fold(folds, fold)
    about = read_record("dataset", dataset / "dataset.json")
    index = read_table(dataset / "index.parquet", columns=COLUMNS).sort_by("image_id")
    previous_split = read_history(previous, about["key_id"])
    people, owners = read_people(index, about), Owners(previous_split.owners, index)
    patient_of_row = people.patient_of_row
    rank = draw_ranks(people.ids, seed)
    assignment, fold_of_patient = known_assignment(previous_split, people.ids, folds)

    excluded_ids = withdrawn_ids(withdrawn, owners.patients)
    excluded_rows = withdrawn_images(owners, excluded_ids)
    can_change = (assignment.splits == NONE) | assignment.is_linked
    excluded = withdrawn_patients(people.ids, excluded_ids, patient_of_row, excluded_rows, can_change)
    included = ~excluded
    assignment = assign_linked(assignment, included, people, owners, previous_split)
    assignment = assign_official(assignment, included, people, index)
    warnings = check_patients(people, included, about)
    assignment = assign_drawn(assignment, included, people, (test_fraction, val_fraction), rank)

    patient_splits, reasons = np.where(included, assignment.splits, NONE), assignment.reasons
    if folds:
        warnings += check_folds(people, patient_splits, folds, about["classes"])
        fold_of_patient = draw_folds(people, patient_splits, assignment.is_linked, owners, fold_of_patient, folds, rank)
        patient_splits = rotate(patient_splits, fold_of_patient, fold)
        reasons = np.where(fold_of_patient >= 0, "fold", reasons)
    strictest = owners.strictest(previous_split, people.ids, assignment)
    withdrawn_rows = excluded_rows | excluded[patient_of_row]
    rows = _assign_images(
        index, patient_splits[patient_of_row], strictest, withdrawn_rows, reasons[patient_of_row], previous_split
    )
    rows = rows.append_column(SPLIT.field("fold"), pa.array(fold_of_patient[patient_of_row], pa.int32()))
    image_splits = split_codes(rows["side"])
    warnings += check_splits(labels_of(index), image_splits, about) + many_left_out(rows)

    write_table(rows, splits / "splits.parquet")
    write_history(splits, previous_split, people.ids, assignment, fold_of_patient, folds, rows, owners)
    summary = {
        "dataset": about["fingerprint"],
        "key_id": about["key_id"],
        "shares": count_by_value(index, patient_of_row, image_splits, about),
        "folds": count_by_fold(people, fold_of_patient, image_splits != NONE, folds),
        "withdrawn": int((rows["why"].to_numpy() == "withdrawn").sum()),
        "warnings": warnings,
    }
    values = _write_summary(splits, rows, image_splits, patient_of_row, previous_split, summary)
    if changed := changed_labels(previous, splits, index, about):  # not recorded: a repeated split must be identical
        log.warning("changed labels", extra={"fields": {"stage": "split", "why": changed}})
    if problems := leaks(dataset, splits):
        raise RefusedError(" ".join(leak.sentence for leak in problems))
    return values


def _assign_images(
    index: pa.Table,
    splits: Codes,
    strictest: Codes,
    withdrawn: NDArray[np.bool_],
    reasons: NDArray[np.object_],
    previous_split: History,
) -> pa.Table:
    """Return the split of each image, since which version, and the reason."""
    position = positions(index["image_id"], previous_split.images["image_id"].combine_chunks())
    previous_row = pa.array(position, mask=position < 0)
    last_split = split_codes(previous_split.images["side"].take(previous_row).fill_null(""))
    last_since = previous_split.images["since"].take(previous_row).fill_null(0).to_numpy()
    image_splits, reason = exclude_images(index, splits, strictest, withdrawn)
    is_unchanged = (position >= 0) & (image_splits == last_split)
    since = np.where(is_unchanged, last_since, previous_split.version + 1)
    columns = [
        index["image_id"],
        index["patient_id"],
        names_of_codes(image_splits),
        pa.array(since, pa.int32()),
        pa.array(np.where(reason == "", reasons, reason), pa.string()),
    ]
    return pa.table(columns, names=SPLIT.names[:5])


def _write_summary(
    folder: Path, rows: pa.Table, splits: Codes, patient_of_row: Codes, previous_split: History, summary: dict[str, Any]
) -> dict[str, Any]:
    images = np.bincount(splits, minlength=NONE + 1).tolist()
    patients = [len(sorted_unique(patient_of_row[splits == code])) for code in range(NONE)]
    same = ["image_id", "side"]
    pairs = zip(*(rows[name].to_pylist() for name in same), strict=True)
    changed = not rows.select(same).equals(previous_split.present.select(same))
    about = {
        "version": previous_split.version + 1 if changed else previous_split.version,
        "fingerprint": fingerprint([list(pair) for pair in pairs]),
        "images": dict(zip(SPLITS[:NONE], images[:NONE], strict=True)),
        "patients": dict(zip(SPLITS[:NONE], patients, strict=True)),
        "left_out": images[NONE],
        **summary,
    }
    write_record("split", folder / "split.json", about)
    for warning in summary["warnings"]:
        log.warning("doubtful split", extra={"fields": {"stage": "split", "why": warning}})
    return {name: about["images"][name] for name in ("train", "val", "test")}
