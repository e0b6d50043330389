"""From a source of images to a dataset: masters decoded once, an index, and what was set aside and why."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa

from components.ingest.digests import source_digests
from components.ingest.labels import Labelled, age_of, order_classes, patient_of, read_labels
from components.ingest.masters import Shard, decode_groups
from components.shared import source as sources
from components.shared.contracts import Between, Out, fingerprint, write_record
from components.shared.dataset import INDEX, write_table
from components.shared.keys import HashKey, from_environment
from components.shared.source import Entry, Source
from components.shared.work import Work, log, progress

Row = dict[str, Any]


def ingest(
    dataset: Out,
    work: Work,
    *,
    source: str,
    revision: str,
    key_id: str,
    classes: list[str] = [],  # noqa: B006 - the signature states the default; nobody changes it
    max_side: Annotated[int, Between(64, 8192)] = 1024,
) -> dict[str, Any]:
    """Decode a source's images once, index them under keyed hashes, and set aside what cannot be used, with the reason.

    source: the images, a directory or s3://bucket/prefix: a folder for each class; train, val and test may stand above
    revision: the listing digest that resolve saw; the source must still be as it was
    key_id: the id of the hash key that must be at hand
    classes: the class folders to take, the one without a finding first; all when empty
    max_side: the longest side of a master, in pixels; larger images are reduced to it
    """
    key = _key(key_id)
    place = sources.open_source(source)
    listing = place.entries()
    if sources.revision(listing) != revision:
        raise RuntimeError("The source changed since this run first looked at it. Let it settle, and run again.")
    labelled = read_labels(place, listing)
    names = _choose(classes, labelled)
    labelled = [item for item in labelled if item.label in names or not item.label]
    digests = source_digests(place, listing, labelled, work.store, key)
    entries = {entry.name: entry for entry in listing}
    first = {digest: entries[item.name] for item, digest in reversed(list(zip(labelled, digests, strict=True)))}
    shards = _decode(work, place, first, max_side)
    rows, quarantine = _rows(labelled, digests, shards, names, key)
    rows, contrary = _without_contrary(rows)
    _mark_duplicates(rows)
    about = _describe(place.name, names, rows, shards, key_id, labelled, digests, [*quarantine, *contrary])
    _require_two_classes(names, rows, len(quarantine) + len(contrary))
    write_table(pa.Table.from_pylist(rows, schema=INDEX), dataset / "index.parquet")
    write_record("dataset", dataset / "dataset.json", about)
    _write_quarantine(dataset / "quarantine.csv", [*quarantine, *contrary])
    _warn_of_patients(about["counts"])
    return {name: about["counts"][name] for name in ("images", "patients", "duplicates", "quarantined")}


def _warn_of_patients(counts: dict[str, Any]) -> None:
    if counts["patients"] == counts["images"] > 1:
        log.warning(
            "every image is a patient of its own",
            extra={
                "fields": {
                    "stage": "ingest",
                    "why": f"{counts['images']} images of as many patients. If patients have several images, name them "
                    f"in {sources.TABLE}: the file names do not tell, and the split would part a patient's images.",
                }
            },
        )


def _key(key_id: str) -> HashKey:
    key = from_environment()
    if key.id != key_id:
        raise RuntimeError(f"The hash key here has the id {key.id}, and the run began with {key_id}. Set the same key.")
    return key


def _choose(wanted: list[str], labelled: list[Labelled]) -> list[str]:
    found = order_classes(item.label for item in labelled if item.label)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"The source has no class folder {missing[0]!r}; it has {', '.join(found)}. Name those.")
    names = list(dict.fromkeys(wanted)) or found
    if len(names) < 2:
        raise ValueError(
            f"The source has {len(names)} class folder{'s' * (len(names) != 1)}"
            f"{': ' + names[0] if names else ''}; a classifier needs at least 2. Put each class's images into a folder "
            "of its own."
        )
    return names


def _decode(work: Work, source: Source, files: dict[str, Entry], max_side: int) -> list[Shard]:
    shards, done = [], 0
    for shard in decode_groups(work.store, source, files, max_side):
        shards.append(shard)
        done += len(shard.files)
        progress("ingest", done, len(files), "images")
    return sorted(shards, key=lambda shard: min(shard.files))


def _rows(
    labelled: list[Labelled], digests: list[str], shards: list[Shard], names: list[str], key: HashKey
) -> tuple[list[Row], list[Row]]:
    with_pixels = (shard for shard in shards if shard.digest)
    places = {shard.digest: place for place, shard in enumerate(with_pixels)}
    decoded = {
        digest: (places.get(shard.digest, -1), about) for shard in shards for digest, about in shard.files.items()
    }
    rows: list[Row] = []
    quarantine: list[Row] = []
    for item, digest in zip(labelled, digests, strict=True):
        place, about = decoded[digest]
        image_id = key.hash("image", item.name)
        if not item.label:
            quarantine.append({"image_id": image_id, "reason": "no class", "detail": "it lies in no class folder"})
        elif "problem" in about:
            quarantine.append({"image_id": image_id, "reason": "unreadable", "detail": about["problem"]})
        elif item.table is None:
            detail = f"{sources.TABLE} has no line for it, so its patient is not known"
            quarantine.append({"image_id": image_id, "reason": "not in the table", "detail": detail})
        else:
            rows.append(_row(item, image_id, digest, place, about, names.index(item.label), key))
    return sorted(rows, key=lambda row: str(row["image_id"])), quarantine


def _row(item: Labelled, image_id: str, digest: str, place: int, about: Row, label: int, key: HashKey) -> Row:
    header, table = about["header"], item.table or {}
    named = table.get("patient_id")
    patient = key.hash("patient", named) if named else header.get("patient_hash")

    def known(field: str) -> str:
        return str(table.get(field) or header.get(field) or "")

    return {
        "image_id": image_id,
        "patient_id": patient or key.hash("patient", patient_of(item.name)),
        "labels": [label],
        "source_digest": digest,
        "pixel_digest": about["pixel_digest"],
        "look": "",
        "duplicate_of": "",
        "near": "",
        "official": item.official,
        "shard": place,
        "row": about["row"],
        "frame": -1,
        "height": about["height"],
        "width": about["width"],
        "bits": about["bits"],
        "sex": known("sex").upper()[:1],
        "age": age_of(known("age")),
        "site": known("site"),
        "view": known("view").upper(),
        "modality": known("modality").upper(),
        "text": known("text"),
    }


def _without_contrary(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    labels = defaultdict(set)
    for row in rows:
        labels[row["pixel_digest"]].update(row["labels"])
    contrary = [
        {
            "image_id": row["image_id"],
            "reason": "contrary label",
            "detail": "the same pixels stand in another class too",
        }
        for row in rows
        if len(labels[row["pixel_digest"]]) > 1
    ]
    return [row for row in rows if len(labels[row["pixel_digest"]]) == 1], contrary


def _mark_duplicates(rows: list[Row]) -> None:
    first: dict[str, str] = {}
    for row in rows:
        original = first.setdefault(row["pixel_digest"], row["image_id"])
        row["duplicate_of"] = original if original != row["image_id"] else ""


def _describe(
    name: str,
    names: list[str],
    rows: list[Row],
    shards: list[Shard],
    key_id: str,
    labelled: Iterable[Labelled],
    digests: Iterable[str],
    quarantine: list[Row],
) -> Row:
    of_class = Counter(label for row in rows for label in row["labels"])
    content = sorted(
        fingerprint([digest, item.label, item.official, item.table])
        for item, digest in zip(labelled, digests, strict=True)
    )
    return {
        "name": name,
        "task": "classification",
        "classes": names,
        "shards": [
            {"digest": s.digest, "bytes": s.size, "rows": sum("row" in f for f in s.files.values())}
            for s in shards
            if s.digest
        ],
        "fingerprint": fingerprint(
            sorted([row["pixel_digest"], *(names[label] for label in row["labels"])] for row in rows)
        ),
        "key_id": key_id,
        "source_revision": fingerprint(content),
        "counts": {
            "images": len(rows),
            "patients": len({row["patient_id"] for row in rows}),
            "by_class": {name: of_class[label] for label, name in enumerate(names)},
            "duplicates": sum(bool(row["duplicate_of"]) for row in rows),
            "quarantined": len(quarantine),
            "reasons": dict(sorted(Counter(row["reason"] for row in quarantine).items())),
        },
    }


def _require_two_classes(names: list[str], rows: list[Row], quarantined: int) -> None:
    empty = [name for label, name in enumerate(names) if not any(label in row["labels"] for row in rows)]
    if empty:
        raise ValueError(
            f"No usable image of class {empty[0]!r} is left: {quarantined} files were set aside as unreadable or with "
            "contrary labels. Check the files of that class, or leave the class out with ingest_options classes."
        )


def _write_quarantine(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["image_id", "reason", "detail"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: str(row["image_id"])))
