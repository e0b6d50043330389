"""Records of decoded groups in the store: one row per image, beside the shards with the pixels."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from components.ingest.shard_groups import Group
from components.shared.contracts import fingerprint
from components.shared.imaging.image_files import Decoding
from components.shared.ledger import stage_signing
from components.shared.parsing.json_documents import parse_json
from components.shared.privacy import keyed_hash
from components.shared.runtime.code_and_package_versions import installed

if TYPE_CHECKING:
    from components.shared.storage.store import Store

DECODER_VERSION = 5
"""Increased with each change in decoding that changes masters; part of every record's name."""

ROW_SCHEMA = pa.schema(
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
"""One row per image, or a row with the problem of a file without images. `file` is the keyed hash of its name, `shard`
counts within the group and `row` within the shard, `notes` is JSON; `patient` and the columns after it come from the
header, pseudonymised."""

FileRow = dict[str, Any]

PACKAGES = ("numpy", "pillow", "simplejpeg", "pydicom", "python-gdcm", "pylibjpeg-openjpeg", "nibabel", "pyarrow")
"""Packages that can change the pixels: files are decoded again with another version."""


class Shard(NamedTuple):
    """A shard in the store, and its number of masters."""

    digest: str
    bytes: int
    rows: int


class DecodedGroup(NamedTuple):
    """A group's shards, none if no file has pixels, and the rows of its images."""

    name: str
    shards: list[Shard]
    rows: pa.Table
    decoded: int = 0
    """Number of files decoded in this run; not part of the record, which must not depend on the run."""


def record_prefix(decoding: Decoding) -> str:
    """Return the prefix of records for this decoding, code and hash key."""
    versions = {name: installed(name) for name in PACKAGES}
    return (
        f"masters/{fingerprint([DECODER_VERSION, versions, asdict(decoding), keyed_hash.from_environment().id])[:32]}"
    )


def group_names(store: Store, prefix: str) -> list[str]:
    """Return the names of all groups that have a record, sorted."""
    return sorted(name.rpartition("/")[2] for name in store.names(prefix))


def read(store: Store, prefix: str, name: str) -> DecodedGroup | None:
    """Return the record of a group; None if missing, damaged or not signed by ingest."""
    sealed = store.read(f"{prefix}/{name}")
    data = None if sealed is None else stage_signing.unseal(f"{prefix}/{name}", sealed, ("ingest",))
    if data is None:
        return None
    try:
        table = pa.ipc.open_stream(data).read_all()
        description = parse_json(table.schema.metadata[b"masters"])
        return DecodedGroup(name, [Shard(*shard) for shard in description["shards"]], table.select(ROW_SCHEMA.names))
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError):
        return None  # damaged: decode the group again


def write(store: Store, prefix: str, result: DecodedGroup) -> None:
    """Write the record of a group."""
    description = json.dumps({"shards": result.shards})
    table = result.rows.replace_schema_metadata({"masters": description})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    name = f"{prefix}/{result.name}"
    store.write(name, stage_signing.seal(stage_signing.held("ingest"), name, sink.getvalue().to_pybytes()))


def read_unchanged(store: Store, prefix: str, group: Group) -> DecodedGroup | None:
    """Return the record of a group if its files are unchanged, else None."""
    result = read(store, prefix, group.name)
    if result is None or not all(store.has(shard.digest) for shard in result.shards):
        return None
    columns = (result.rows[name].to_pylist() for name in ("file", "size", "version"))
    recorded = {file: (size, version) for file, size, version in zip(*columns, strict=True)}
    current = {file: (entry.size, entry.version) for file, entry in group.members}
    return result if current == recorded and all(version for _, version in current.values()) else None
