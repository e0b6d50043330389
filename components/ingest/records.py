"""What is known of the files that were decoded: a record a group, beside the shard that holds their pixels."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from components.ingest.groups import Group
from components.shared.contracts import fingerprint
from components.shared.imaging.pixels import Decoding
from components.shared.ledger import stage_keys
from components.shared.parsing.json_documents import parse_json
from components.shared.privacy import hash_keys
from components.shared.runtime.stage_code import installed

if TYPE_CHECKING:
    from components.shared.storage.store import Store

DECODER = 5
"""Counts the changes in decoding that give other masters; part of every record's place."""

FACTS = pa.schema(
    [
        ("file", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("source_digest", pa.string()),
        ("problem", pa.string()),
        ("image_id", pa.string()),
        ("frame", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bits", pa.int32()),
        ("pixel_digest", pa.string()),
        ("look", pa.string()),
        ("notes", pa.string()),
        ("patient", pa.string()),
        ("sex", pa.string()),
        ("age", pa.int32()),
        ("site", pa.string()),
        ("view", pa.string()),
        ("modality", pa.string()),
    ]
)
"""One row an image, or a row for a file without one and its problem. `file` is the keyed hash of its name, `shard`
counts within the group and `row` within the shard, `notes` is JSON; `patient` and what follows is what the header says,
made fit to be kept."""

Fact = dict[str, Any]

PACKAGES = (
    "numpy",
    "pillow",
    "simplejpeg",
    "pydicom",
    "python-gdcm",
    "pylibjpeg-openjpeg",
    "nibabel",
    "pyarrow",
)
"""Packages whose version may change the pixels: with another one, files are decoded again."""


class Shard(NamedTuple):
    """A shard in the store, and how many masters it holds."""

    digest: str
    bytes: int
    rows: int


class Masters(NamedTuple):
    """A group's shards (one, unless it is large; none where no file had pixels), and what became of each file."""

    name: str
    shards: list[Shard]
    facts: pa.Table
    decoded: int = 0
    """How many files were decoded just now; the record does not tell, for it is the same whenever it was made."""


def place(how: Decoding) -> str:
    """Where records lie of files that were decoded in this way, by this code, under this key."""
    versions = {name: installed(name) for name in PACKAGES}
    return f"masters/{fingerprint([DECODER, versions, asdict(how), hash_keys.from_environment().id])[:32]}"


def names(store: Store, where: str) -> list[str]:
    """The names of all groups that have a record, sorted."""
    return sorted(name.rpartition("/")[2] for name in store.names(where))


def read(store: Store, where: str, name: str) -> Masters | None:
    """The record of a group, or None where there is none that can be read; where keys are set, none of ingest's own."""
    kept = store.read(f"{where}/{name}")
    data = None if kept is None else stage_keys.unseal(f"{where}/{name}", kept, ("ingest",))
    if data is None:
        return None
    try:
        table = pa.ipc.open_stream(data).read_all()
        about = parse_json(table.schema.metadata[b"masters"])
        return Masters(name, [Shard(*shard) for shard in about["shards"]], table.select(FACTS.names))
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError):
        return None  # damaged, so it is made again


def write(store: Store, where: str, found: Masters) -> None:
    """Keep the record of a group."""
    about = json.dumps({"shards": found.shards})
    table = found.facts.replace_schema_metadata({"masters": about})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    name = f"{where}/{found.name}"
    store.write(name, stage_keys.seal(stage_keys.held("ingest"), name, sink.getvalue().to_pybytes()))


def unchanged(store: Store, where: str, group: Group) -> Masters | None:
    """What is known of a group whose files are all as they were, with its shards; or None."""
    found = read(store, where, group.name)
    if found is None or not all(store.has(shard.digest) for shard in found.shards):
        return None
    columns = (found.facts[name].to_pylist() for name in ("file", "size", "version"))
    then = {file: (size, version) for file, size, version in zip(*columns, strict=True)}
    now = {file: (entry.size, entry.version) for file, entry in group.members}
    return found if now == then and all(version for _, version in now.values()) else None
