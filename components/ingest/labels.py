"""Collect what a source provides for each file besides pixels: labels, patient, published split, table row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from components.ingest.file_names import FileNames, class_and_split, guess_patients, split_of
from components.ingest.parameters import SourceParameters, compiled
from components.ingest.source_table import Table, read_table
from components.ingest.split_lists import read_split_lists
from components.ingest.subsets import BEYOND, ClassSelection, Meaning, within_limit
from components.shared.errors import RefusedError
from components.shared.runtime.stage_interface import nearest
from components.shared.storage.image_source import TABLE_SUFFIXES, Entry, Source

Problem = tuple[str, str]

CLASS_FOLDER = "class folder"

_NO_DETAILS: Mapping[str, str] = {}


class SourceFile(NamedTuple):
    """A file of the source, with everything known about it before it is opened."""

    name: str
    labels: tuple[int, ...]
    """Positions in the list of classes; empty if the file is to be quarantined or has no finding."""
    official: str
    patient: str
    """The patient's name from the table or the pattern; "" if it must come from the header or be guessed."""
    table: Mapping[str, str]
    """The table's other non-empty values: sex (M or F), age, site, view, modality, text."""
    problem: Problem | None
    """Why the file is to be quarantined: a reason and the detail."""
    guess: tuple[str, str]
    """The patient's name guessed from the file's name, and the basis of the guess."""


@dataclass(frozen=True)
class Labels:
    """The task, classes and files of a source, and warnings."""

    task: str
    classes: list[str]
    files: list[SourceFile]
    warnings: list[tuple[str, str]]
    left_out: dict[str, int]
    """Number of images that the parameters leave out, by reason."""


class _PublishedLabels(NamedTuple):
    """Each image's label as published, None if it has none."""

    labels: list[str | None]
    kind: str
    """What messages call a label."""
    problem: Problem
    """Why an image may have no label."""


def read_labels(
    source: Source, listing: Sequence[Entry], parameters: SourceParameters, hash_patient: Callable[[str], str]
) -> Labels:
    """Return the labels of all images of a source.

    `listing` must be complete, with the tables and lists in the source's root: limits, classes and file names without
    folders depend on all files.
    """
    images = [entry.name for entry in listing if entry.is_image]
    tables = {entry.name: entry for entry in listing if not entry.is_image}
    files = FileNames(images)

    def open_file(name: str) -> AbstractContextManager[Path]:
        if name not in tables:
            raise RefusedError(
                f"The source has no table or list {name!r} in its root.{nearest(name, tables)} Put it there; its name "
                f"must end in {' or '.join(sorted(TABLE_SUFFIXES))}."
            )
        return source.file(tables[name])

    table = Table(parameters.table)
    if parameters.needs_table or parameters.table in tables:
        with open_file(parameters.table) as path:
            table = read_table(path, parameters.table, parameters.columns, files, parameters.skips_missing)
    patients = compiled("patient_pattern", parameters.patient_pattern)
    _check_sources(parameters, table)
    published = _published(images, table, parameters)
    counts = Counter(label for label in published.labels if label)
    selection = ClassSelection(parameters, counts, published.kind, table)
    meanings: dict[str | None, Meaning] = {label: selection.meaning(label) for label in counts}
    meanings[None] = Meaning(problem=published.problem)
    meanings[""], unlabelled = _unlabelled(parameters, table, published)
    splits, split_warnings = _published_splits(images, table, parameters, open_file, files)
    guesses = guess_patients(images, published.kind == CLASS_FOLDER)
    source_files, left_out = _join(images, published.labels, meanings, splits, table, patients, guesses)
    if parameters.limit_per_class:
        source_files, beyond = _limited(source_files, parameters.limit_per_class, hash_patient)
        left_out[BEYOND] += beyond
    return Labels(
        "multilabel" if parameters.multilabel else "classification",
        selection.classes,
        source_files,
        [*table.warnings, *split_warnings, *selection.warnings(), *unlabelled],
        {reason: count for reason, count in sorted(left_out.items()) if count},
    )


def _check_sources(parameters: SourceParameters, table: Table) -> None:
    """Refuse two sources of the same information: one would be ignored silently."""
    for column, parameter in (("label", "label_pattern"), ("patient_id", "patient_pattern"), ("official", "official")):
        if column in table.columns and getattr(parameters, parameter):
            raise RefusedError(
                f"{table.name} has a column {column!r}, but {parameter} is set too. Remove one; they may differ."
            )


def _published(images: Sequence[str], table: Table, parameters: SourceParameters) -> _PublishedLabels:
    """Return the labels from the table, else the pattern, else the class folders."""
    if "label" in table.columns:
        rows, marks = table.rows, f"{parameters.separator} "
        labels = [row.label if (row := rows.get(name)) else None for name in images]
        if parameters.separator:
            labels = [label and (label if label.strip(marks) else "") for label in labels]
        return _PublishedLabels(labels, "label", ("not in the table", f"{table.name} has no row for it"))
    pattern = compiled("label_pattern", parameters.label_pattern)
    if pattern:
        matches = _matches("label_pattern", pattern, images)
        return _PublishedLabels(matches, "label", ("no class", "label_pattern does not match its name"))
    labels = [class_and_split(name.rpartition("/")[0])[0] or None for name in images]
    return _PublishedLabels(labels, CLASS_FOLDER, ("no class", "it is not in a class folder"))


def _matches(parameter: str, pattern: re.Pattern[str], images: Sequence[str]) -> list[str | None]:
    """Return for each name the first group that matched, None if none did."""
    search = pattern.search
    matches = [next(filter(None, match.groups()), None) if (match := search(name)) else None for name in images]
    if images and not any(matches):
        raise RefusedError(
            f"{parameter} is {pattern.pattern!r}, which matches none of the {len(images)} files' names. Correct it; it "
            "is searched for in the name relative to the source."
        )
    return matches


def _unlabelled(
    parameters: SourceParameters, table: Table, published: _PublishedLabels
) -> tuple[Meaning, list[tuple[str, str]]]:
    """Return what an empty label in the table means, and warnings about empty labels."""
    if not parameters.multilabel or parameters.no_finding:
        return Meaning(problem=("no class", f"{table.name} names no class for it")), []
    count = published.labels.count("")
    images = "1 image has" if count == 1 else f"{count} images have"
    detail = f"{images} an empty label in {table.name}, which counts as no finding"
    return Meaning(), [("no label", detail)] * bool(count)


def _patients(images: Sequence[str], table: Table, pattern: re.Pattern[str] | None) -> Sequence[str | None]:
    """Return each image's patient: None if the pattern does not match, "" if unknown."""
    if pattern:
        return _matches("patient_pattern", pattern, images)
    rows = table.rows
    return [row.patient if (row := rows.get(name)) else "" for name in images] if rows else [""] * len(images)


def _published_splits(
    images: Sequence[str],
    table: Table,
    parameters: SourceParameters,
    open_file: Callable[[str], AbstractContextManager[Path]],
    files: FileNames,
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return each image's published split, and warnings."""
    if "official" in table.columns:
        rows = table.rows
        return [row.official if (row := rows.get(name)) else "" for name in images], []
    if parameters.official:
        split_of_file, warnings = read_split_lists(parameters.official, open_file, files, parameters.skips_missing)
        unlisted = len(images) - len(split_of_file)
        images_are, drawn = ("1 image is", "its split is") if unlisted == 1 else (f"{unlisted} images are", "they are")
        detail = f"{images_are} in none of the lists {', '.join(sorted(parameters.official))}; {drawn} drawn at random"
        return [split_of_file.get(name, "") for name in images], [*warnings, *[("no side", detail)] * bool(unlisted)]
    has_class_folders = "label" not in table.columns and not parameters.label_pattern
    folders = [name.rpartition("/")[0] for name in images]
    return [class_and_split(folder)[1] if has_class_folders else split_of(folder) for folder in folders], []


def _join(
    images: Sequence[str],
    labels: Sequence[str | None],
    meanings: Mapping[str | None, Meaning],
    splits: Sequence[str],
    table: Table,
    pattern: re.Pattern[str] | None,
    guesses: Sequence[tuple[str, str]],
) -> tuple[list[SourceFile], Counter[str]]:
    """Return each image with all that is known about it, and the number of images left out, by reason."""
    # A table that names patients must name all: one person under two names could be in both train and test.
    must_name_patient = "patient_id" in table.columns
    no_row = ("not in the table", f"{table.name} has no row for it, so its patient is unknown")
    empty = ("no patient", f"{table.name} names no patient for it")
    unmatched = ("no patient", "patient_pattern does not match its name")
    rows = table.rows
    source_files: list[SourceFile] = []
    left_out: Counter[str] = Counter()
    patients = _patients(images, table, pattern)
    for name, label, split, patient, guess in zip(images, labels, splits, patients, guesses, strict=True):
        meaning = meanings[label]
        if meaning.left_out:
            left_out[meaning.left_out] += 1
            continue
        row = rows.get(name)
        unnamed = no_row if row is None else None if row.patient else empty
        no_patient = (unnamed if must_name_patient else None) or (unmatched if patient is None else None)
        problem = meaning.problem or no_patient
        details = row.details if row else _NO_DETAILS
        image_labels = () if problem else meaning.labels
        source_files.append(SourceFile(name, image_labels, split, patient or "", details, problem, guess))
    return source_files, left_out


def _limited(files: list[SourceFile], limit: int, hash_patient: Callable[[str], str]) -> tuple[list[SourceFile], int]:
    """Return the files within the limit per class, and the number beyond it."""
    usable = [item for item in files if not item.problem]
    images = [(item.patient or item.guess[0], item.official, item.labels) for item in usable]
    within = within_limit(images, limit, hash_patient)
    beyond = {item.name for item, is_within in zip(usable, within, strict=True) if not is_within}
    return [item for item in files if item.name not in beyond], len(beyond)
