"""From a share of a source's images to masters and an index of them, and what was set aside and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from components.ingest.groups import Group, group, partition
from components.ingest.index import index
from components.ingest.labels import Labelled, Labels, read_labels
from components.ingest.masters import masters
from components.ingest.parameters import SourceParameters
from components.ingest.records import Masters
from components.shared.contracts import Out, fingerprint, write_record
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
    parameters: SourceParameters,
    decoding: Decoding,
) -> dict[str, Any]:
    """Decode a share of a source's images once, index them under keyed hashes, and set aside what cannot be used.

    Every image ends in the index, in quarantine.csv with its reason, or is counted as left out on purpose.

    source: the images, a directory or s3://bucket/prefix: a folder for each class; train, val and test may stand above
    revision: the listing digest that resolve saw; the source must still be as it was
    key_id: the id of the hash key that must be at hand
    part: which share of the images: 2/8 is the second of eight
    """
    key = _key(key_id)
    place = sources.open_source(source)
    listing = place.entries()
    if sources.revision(listing) != revision:
        raise UnavailableError("The source changed since this run first looked at it. Let it settle, and run again.")
    labels = read_labels(place, listing, parameters, lambda patient: key.hash("limit", patient))
    entries = {entry.name: entry for entry in listing}
    hashed = {key.hash("image", item.name): item for item in labels.files}
    usable = [(file, entries[item.name]) for file, item in hashed.items() if not item.problem]
    groups = partition(group(usable), part)
    found = _all(work, place, groups, decoding)
    rows, unreadable, noted = index(found, hashed, key, parameters.keep_sites, parameters.keep_text)
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
        "asked": fingerprint(asdict(parameters)),
        "files": fingerprint(sorted(file for file, _ in usable)),
        "part": part,
        "decoding": asdict(decoding),
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
