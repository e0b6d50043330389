"""What a source says of each file besides its pixels: labels, patient, published side, and the line of its table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from components.ingest.lists import read_lists
from components.ingest.names import Files, class_and_side, patient_of, side_of
from components.ingest.parameters import SourceParameters, compiled
from components.ingest.subsets import BEYOND, Choice, Meaning, within_limit
from components.ingest.tables import Table, read_table
from components.shared.errors import RefusedError
from components.shared.runtime.interface import nearest
from components.shared.storage.source import TABLE_SUFFIXES, Entry, Source

Problem = tuple[str, str]

_NOTHING: Mapping[str, str] = {}


class Labelled(NamedTuple):
    """A file of the source with what is known of it before it is opened."""

    name: str
    labels: tuple[int, ...]
    """Positions in the classes; none, where it is to be set aside or has no finding."""
    official: str
    patient: str
    """The patient's name from the table or the pattern; "" where the header or the file's name is to tell it."""
    table: Mapping[str, str]
    """What the table says besides, without what is empty: sex (M or F), age, site, view, modality, text."""
    problem: Problem | None
    """Why it is to be set aside: a reason and the detail."""


@dataclass(frozen=True)
class Labels:
    """A source's labels: what is learned, the files that take part or are set aside, and what else is to be told."""

    task: str
    classes: list[str]
    files: list[Labelled]
    warnings: list[tuple[str, str]]
    left_out: dict[str, int]
    """How many images were left out on purpose, by the reason."""


class _Published(NamedTuple):
    """Each image's label as it is written (None where there is none), and why one may be without."""

    labels: list[str | None]
    what: str
    problem: Problem


def read_labels(
    source: Source, listing: Sequence[Entry], parameters: SourceParameters, order: Callable[[str], str]
) -> Labels:
    """What a source says of its images, as it is asked for; `order` is the keyed hash by which a limit chooses.

    The listing is the whole one, with the tables and lists in the source's root: limits, classes, and names without
    folders cannot be judged on a part.
    """
    images = [entry.name for entry in listing if entry.is_image]
    tables = {entry.name: entry for entry in listing if not entry.is_image}
    files = Files(images)

    def opened(name: str) -> AbstractContextManager[Path]:
        if name not in tables:
            raise RefusedError(
                f"The source has no table or list {name!r} in its root.{nearest(name, tables)} Put it there; its name "
                f"ends in {' or '.join(sorted(TABLE_SUFFIXES))}."
            )
        return source.file(tables[name])

    table = Table(parameters.table)
    if parameters.needs_table or parameters.table in tables:
        with opened(parameters.table) as path:
            table = read_table(path, parameters.table, parameters.columns, files, parameters.skips_missing)
    patients = compiled("patient_pattern", parameters.patient_pattern)
    _check_sources(parameters, table)
    published = _published(images, table, parameters)
    counts = Counter(label for label in published.labels if label)
    choice = Choice(parameters, counts, published.what, table)
    meanings: dict[str | None, Meaning] = {label: choice.meaning(label) for label in counts}
    meanings[None] = Meaning(problem=published.problem)
    meanings[""], unlabelled = _unlabelled(parameters, table, published)
    sides, side_warnings = _sides(images, table, parameters, opened, files)
    found, left_out = _join(images, published.labels, meanings, sides, table, patients)
    if parameters.limit_per_class:
        found, beyond = _limited(found, parameters.limit_per_class, order)
        left_out[BEYOND] += beyond
    return Labels(
        "multilabel" if parameters.multilabel else "classification",
        choice.classes,
        found,
        [*table.warnings, *side_warnings, *choice.warnings(), *unlabelled],
        {reason: count for reason, count in sorted(left_out.items()) if count},
    )


def _check_sources(parameters: SourceParameters, table: Table) -> None:
    """Refuse to be told the same thing in two ways, of which one would be passed over in silence."""
    for column, parameter in (("label", "label_pattern"), ("patient_id", "patient_pattern"), ("official", "official")):
        if column in table.columns and getattr(parameters, parameter):
            raise RefusedError(
                f"{table.name} has {column!r}, and {parameter} is given too. Take one of them out, for they may differ."
            )


def _published(images: Sequence[str], table: Table, parameters: SourceParameters) -> _Published:
    """The label of each image, from the table, the pattern or the class folder, whichever there is first."""
    if "label" in table.columns:
        lines, marks = table.lines, f"{parameters.separator} "
        told = [line.label if (line := lines.get(name)) else None for name in images]
        if parameters.separator:
            told = [label and (label if label.strip(marks) else "") for label in told]
        return _Published(told, "label", ("not in the table", f"{table.name} has no line for it"))
    pattern = compiled("label_pattern", parameters.label_pattern)
    if pattern:
        found = _matches("label_pattern", pattern, images)
        return _Published(found, "label", ("no class", "label_pattern does not fit its name"))
    folders = {folder: class_and_side(folder)[0] or None for folder in {name.rpartition("/")[0] for name in images}}
    told = [folders[name.rpartition("/")[0]] for name in images]
    return _Published(told, "class folder", ("no class", "it lies in no class folder"))


def _matches(parameter: str, pattern: re.Pattern[str], images: Sequence[str]) -> list[str | None]:
    """What the first group that matched holds, for each name; None where none did."""
    search = pattern.search
    found = [next(filter(None, match.groups()), None) if (match := search(name)) else None for name in images]
    if images and not any(found):
        raise RefusedError(
            f"{parameter} is {pattern.pattern!r}, and fits none of the {len(images)} files' names. Mend it; it is "
            "searched for in the name relative to the source."
        )
    return found


def _unlabelled(
    parameters: SourceParameters, table: Table, published: _Published
) -> tuple[Meaning, list[tuple[str, str]]]:
    """What an empty label in the table means, and what is to be warned of."""
    count = published.labels.count("")
    if not parameters.multilabel or parameters.no_finding:
        return Meaning(problem=("no class", f"{table.name} names no class for it")), []
    images = "1 image has" if count == 1 else f"{count} images have"
    detail = f"{images} an empty label in {table.name}, which counts as without a finding"
    return Meaning(), [("no label", detail)] * bool(count)


def _patients(images: Sequence[str], table: Table, pattern: re.Pattern[str] | None) -> Sequence[str | None]:
    """The patient of each image from the table or the pattern: None where it does not fit, "" where there is none."""
    if pattern:
        return _matches("patient_pattern", pattern, images)
    lines = table.lines
    return [line.patient if (line := lines.get(name)) else "" for name in images] if lines else [""] * len(images)


def _sides(
    images: Sequence[str],
    table: Table,
    parameters: SourceParameters,
    opened: Callable[[str], AbstractContextManager[Path]],
    files: Files,
) -> tuple[list[str], list[tuple[str, str]]]:
    """The published side of each image, from the table, the lists or the folders; and what is to be warned of."""
    if "official" in table.columns:
        lines = table.lines
        return [line.official if (line := lines.get(name)) else "" for name in images], []
    if parameters.official:
        listed, warnings = read_lists(parameters.official, opened, files, parameters.skips_missing)
        without = len(images) - len(listed)
        stand, drawn = ("1 image stands", "it is") if without == 1 else (f"{without} images stand", "they are")
        detail = f"{stand} in none of the lists {', '.join(sorted(parameters.official))}; {drawn} drawn"
        return [listed.get(name, "") for name in images], [*warnings, *[("no side", detail)] * bool(without)]
    with_classes = "label" not in table.columns and not parameters.label_pattern
    folders = {
        folder: class_and_side(folder)[1] if with_classes else side_of(folder)
        for folder in {name.rpartition("/")[0] for name in images}
    }
    return [folders[name.rpartition("/")[0]] for name in images], []


def _join(
    images: Sequence[str],
    labels: Sequence[str | None],
    meanings: Mapping[str | None, Meaning],
    sides: Sequence[str],
    table: Table,
    pattern: re.Pattern[str] | None,
) -> tuple[list[Labelled], Counter[str]]:
    """All that is known of each image that is not left out."""
    # Where a table names patients it must name them all: the same person under two names could part at the split.
    must = "patient_id" in table.columns
    unnamed = ("not in the table", f"{table.name} has no line for it, so its patient is not known")
    empty = ("no patient", f"{table.name} names no patient for it")
    unfit = ("no patient", "patient_pattern does not fit its name")
    lines = table.lines
    found: list[Labelled] = []
    left_out: Counter[str] = Counter()
    for name, label, side, patient in zip(images, labels, sides, _patients(images, table, pattern), strict=True):
        meaning = meanings[label]
        if meaning.left_out:
            left_out[meaning.left_out] += 1
            continue
        line = lines.get(name)
        nobody = unnamed if line is None else None if line.patient else empty
        problem = meaning.problem or (nobody if must else None) or (unfit if patient is None else None)
        about = line.about if line else _NOTHING
        found.append(Labelled(name, () if problem else meaning.labels, side, patient or "", about, problem))
    return found, left_out


def _limited(files: list[Labelled], limit: int, order: Callable[[str], str]) -> tuple[list[Labelled], int]:
    """The files within the limit and those to be set aside, and how many are beyond it."""
    usable = [item for item in files if not item.problem]
    images = [(item.patient or patient_of(item.name), item.official, item.labels) for item in usable]
    taken = within_limit(images, limit, order)
    beyond = {item.name for item, is_taken in zip(usable, taken, strict=True) if not is_taken}
    return [item for item in files if item.name not in beyond], len(beyond)
