"""From a share of a source's images to masters and an index of them, and what was set aside and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from components.ingest.asked import Asked
from components.ingest.groups import Group, group, partition
from components.ingest.index import index
from components.ingest.labels import Labelled, Labels, read_labels
from components.ingest.masters import masters
from components.ingest.records import Masters
from components.shared.contracts import Between, OneOf, Out, fingerprint, write_record
from components.shared.datasets.parquet_tables import QUARANTINE, WARNINGS, write_csv, write_table
from components.shared.errors import UnavailableError
from components.shared.imaging.pixels import Decoding
from components.shared.privacy import hash_keys
from components.shared.privacy.hash_keys import HashKey
from components.shared.runtime.events import progress
from components.shared.storage import source as sources
from components.shared.storage.source import Source

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

Row = dict[str, Any]


def ingest(
    portion: Out,
    work: Work,
    *,
    source: str,
    revision: str,
    key_id: str,
    part: str = "1/1",
    classes: list[str] = [],  # noqa: B006 - the signature states the defaults; nobody changes them
    label_map: dict[str, str] = {},  # noqa: B006
    task: Annotated[str, OneOf(("auto", "classification", "multilabel"))] = "auto",
    table: str = "patients.csv",
    columns: dict[str, str] = {},  # noqa: B006
    separator: str = "",
    no_finding: str = "",
    label_pattern: str = "",
    patient_pattern: str = "",
    official: dict[str, str] = {},  # noqa: B006
    limit_per_class: Annotated[int, Between(0, 10000000)] = 0,
    missing_files: Annotated[str, OneOf(("refuse", "skip"))] = "refuse",
    keep_sites: list[str] = [],  # noqa: B006
    keep_text: bool = False,
    max_side: Annotated[int, Between(64, 8192)] = 1024,
    colour: Annotated[str, OneOf(("gray", "rgb"))] = "gray",
    window_center: Annotated[float, Between(-1e6, 1e6)] = 0.0,
    window_width: Annotated[float, Between(0, 1e6)] = 0.0,
    frames: Annotated[int, Between(0, 100000)] = 0,
) -> dict[str, Any]:
    """Decode a share of a source's images once, index them under keyed hashes, and set aside what cannot be used.

    Every image ends in the index, in quarantine.csv with its reason, or is counted as left out on purpose.

    source: the images, a directory or s3://bucket/prefix: a folder for each class; train, val and test may stand above
    revision: the listing digest that resolve saw; the source must still be as it was
    key_id: the id of the hash key that must be at hand
    part: which share of the images: 2/8 is the second of eight
    classes: the classes to take, the one without a finding first; all when empty. Other labels count for nothing: an
        image that has no more is left out, or in a multilabel task has no finding
    label_map: published label to class; '' leaves its images out. If given, it must name every label there is
    task: classification (one class an image), multilabel (any number of findings), or auto: multilabel if separator is
        given
    table: the CSV file in the source's root with a line an image
    columns: our name of a column to the table's, for those to read; without it the table must use our names, which are
        file, patient_id, label, official, sex, age, site, view, modality, label_source, text, and have no others
    separator: what stands between the labels of one image, as in Effusion|Mass
    no_finding: the label that means none; in a multilabel task an image that has it has no finding
    label_pattern: a regular expression, searched for in each file's name relative to the source, that holds the label
        in a group; of several groups the first that matched. It goes before the folders
    patient_pattern: likewise for the patient; it goes before a DICOM header and the rule for file names
    official: lists of files in the source's root, one name a line, and the side of each: train, val or test. They go
        before folders of those names
    limit_per_class: how many images of each class to take on each published side, 0 for all. Patients come in an order
        that the hash key gives, each with all images; an image is taken while one of its classes is below the limit
    missing_files: what becomes of lines of the table or a list that name files which the source lacks: refuse or skip
    keep_sites: names of sites that the table may show as they are; the others are shown by a keyed hash
    keep_text: keep the table's free text, which may name patients
    max_side: the longest side of a master, in pixels; larger images are reduced to it
    colour: gray masters, or colour ones
    window_center: middle of the values that are shown, after rescaling; with width 0 the file's own window counts
    window_width: width of the values that are shown; 0 takes the file's own window
    frames: of a file with several frames or slices, so many, evenly spaced; 0 takes all
    """
    key = _key(key_id)
    how = Decoding(max_side, colour, window_center, window_width, frames)
    asked = Asked(
        classes=classes,
        label_map=label_map,
        task=task,
        table=table,
        columns=columns,
        separator=separator,
        no_finding=no_finding,
        label_pattern=label_pattern,
        patient_pattern=patient_pattern,
        official=official,
        limit_per_class=limit_per_class,
        missing_files=missing_files,
    )
    place = sources.open_source(source)
    listing = place.entries()
    if sources.revision(listing) != revision:
        raise UnavailableError("The source changed since this run first looked at it. Let it settle, and run again.")
    labels = read_labels(place, listing, asked, lambda patient: key.hash("limit", patient))
    entries = {entry.name: entry for entry in listing}
    hashed = {key.hash("image", item.name): item for item in labels.files}
    usable = [(file, entries[item.name]) for file, item in hashed.items() if not item.problem]
    groups = partition(group(usable), part)
    found = _all(work, place, groups, how)
    rows, unreadable, noted = index(found, hashed, key, keep_sites, keep_text)
    first = part.startswith("1/")  # what concerns the whole source is said once
    quarantine = unreadable + (_unlabelled(hashed) if first else [])
    warnings = noted + (_of_the_source(place, labels) if first else [])
    write_table(rows, portion / "index.parquet")
    write_csv(quarantine, QUARANTINE, portion / "quarantine.csv")
    write_csv(warnings, WARNINGS, portion / "warnings.csv")
    about = {
        "name": place.name,
        "task": labels.task,
        "classes": labels.classes,
        "key_id": key_id,
        "asked": fingerprint([asdict(asked), keep_sites, keep_text]),
        "files": fingerprint(sorted(file for file, _ in usable)),
        "part": part,
        "decoding": asdict(how),
        "shards": [
            {"group": each.name, "number": number, **shard._asdict()}
            for each in found
            for number, shard in enumerate(each.shards)
        ],
        "left_out": dict(sorted(labels.left_out.items())) if first else {},
    }
    write_record("portion", portion / "portion.json", about)
    return {"images": rows.num_rows, "quarantined": len(quarantine)}


def _key(key_id: str) -> HashKey:
    key = hash_keys.from_environment()
    if key.id != key_id:
        raise UnavailableError(
            f"The hash key here has the id {key.id}, and the run began with {key_id}. Set the same key."
        )
    return key


def _all(work: Work, place: Source, groups: Sequence[Group], how: Decoding) -> list[Masters]:
    work.store.tidy()
    total, done, new, found = sum(len(each.members) for each in groups), 0, 0, []
    members = {each.name: len(each.members) for each in groups}
    for each in masters(work.store, place, groups, how):
        found.append(each)
        done += members[each.name]
        new += each.decoded
        progress("ingest", done, total, f"images: {new} new, {done - new} known")
    return sorted(found, key=lambda each: each.name)


def _unlabelled(files: Mapping[str, Labelled]) -> list[Row]:
    return [
        {"image_id": file, "source_digest": "", "reason": item.problem[0], "detail": item.problem[1]}
        for file, item in files.items()
        if item.problem
    ]


def _of_the_source(place: Source, labels: Labels) -> list[Row]:
    """What is to be told of the source as a whole."""
    told = [*labels.warnings]
    for what, count in sorted(place.left_out.items()):
        told.append(("not in the listing", f"{count} file{'s' * (count != 1)} of the source left out: {what}"))
    return [{"image_id": "", "patient_id": "", "reason": reason, "detail": detail} for reason, detail in told]
