"""Decode a part of a source's images and index them; quarantine files that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from components.ingest.decode_parallel import decode_groups
from components.ingest.decoded_records import DecodedGroup
from components.ingest.index import build_index
from components.ingest.labels import Labels, SourceFile, read_labels
from components.ingest.parameters import SourceParameters
from components.ingest.shard_groups import Group, group_files, partition
from components.shared.contracts import Out, fingerprint, write_record
from components.shared.datasets.parquet_tables import QUARANTINE, WARNINGS, write_csv, write_table
from components.shared.errors import UnavailableError
from components.shared.imaging.image_files import Decoding
from components.shared.privacy import keyed_hash
from components.shared.privacy.keyed_hash import HashKey
from components.shared.runtime.events import progress
from components.shared.storage import image_source as sources
from components.shared.storage.image_source import Source

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
    """Decode a part of a source once, and quarantine files that cannot be used.

    Every image is in the index, in quarantine.csv with a reason, or counted as left out by a parameter.

    source: directory or s3://bucket/prefix of images with a folder per class, optionally within train, val and test
    revision: digest of the source's listing from resolve; the listing must not have changed
    key_id: id of the hash key that MEDLOOP_HASH_KEY must contain
    part: part of the images to process; 2/8 is the second of eight parts
    """
    key = _require_key(key_id)
    opened = sources.open_source(source)
    listing = opened.entries()
    if sources.revision(listing) != revision:
        raise UnavailableError("The source changed after this run listed it. Wait until it is complete, and run again.")
    labels = read_labels(opened, listing, parameters, lambda patient: key.hash("limit", patient))
    entries = {entry.name: entry for entry in listing}
    source_files = {key.hash("image", item.name): item for item in labels.files}
    usable = [(file, entries[item.name]) for file, item in source_files.items() if not item.problem]
    groups = partition(group_files(usable), part)
    decoded = _decode_all(work, opened, groups, decoding)
    rows, undecodable, notes, guessed = build_index(
        decoded, source_files, key, parameters.keep_sites, parameters.keep_text
    )
    is_first = part.startswith("1/")  # reports what concerns the whole source
    quarantine = undecodable + (_unlabelled(source_files) if is_first else [])
    warnings = notes + (_source_warnings(opened, labels) if is_first else [])
    write_table(rows, portion / "index.parquet")
    write_csv(quarantine, QUARANTINE, portion / "quarantine.csv")
    write_csv(warnings, WARNINGS, portion / "warnings.csv")
    record = {
        "name": opened.name,
        "task": labels.task,
        "classes": labels.classes,
        "key_id": key_id,
        "asked": fingerprint(asdict(parameters)),
        "files": fingerprint(sorted(file for file, _ in usable)),
        "part": part,
        "decoding": asdict(decoding),
        "shards": [
            {"group": group.name, "number": number, **shard._asdict()}
            for group in decoded
            for number, shard in enumerate(group.shards)
        ],
        "left_out": dict(sorted(labels.left_out.items())) if is_first else {},
        "guessed": guessed,
    }
    write_record("portion", portion / "portion.json", record)
    return {"images": rows.num_rows, "quarantined": len(quarantine)}


def _require_key(key_id: str) -> HashKey:
    key = keyed_hash.from_environment()
    if key.id != key_id:
        raise UnavailableError(
            f"The id of the hash key is {key.id}, but this run started with {key_id}. Set the same key."
        )
    return key


def _decode_all(work: Work, opened: Source, groups: Sequence[Group], decoding: Decoding) -> list[DecodedGroup]:
    work.store.tidy()
    members = {group.name: len(group.members) for group in groups}
    done, new, results = 0, 0, []
    for result in decode_groups(work.store, opened, groups, decoding):
        results.append(result)
        done += members[result.name]
        new += result.decoded
        progress("ingest", done, sum(members.values()), f"images: {new} new, {done - new} known")
    return sorted(results, key=lambda result: result.name)


def _unlabelled(files: Mapping[str, SourceFile]) -> list[Row]:
    return [
        {"image_id": file, "source_digest": "", "reason": item.problem[0], "detail": item.problem[1]}
        for file, item in files.items()
        if item.problem
    ]


def _source_warnings(opened: Source, labels: Labels) -> list[Row]:
    """Return the warnings that concern the source as a whole."""
    warnings = [*labels.warnings]
    for reason, count in sorted(opened.left_out.items()):
        warnings.append(("not in the listing", f"{count} file{'s' * (count != 1)} of the source left out: {reason}"))
    return [{"image_id": "", "patient_id": "", "reason": name, "detail": detail} for name, detail in warnings]
