"""Rotation of the hash key: append a new secret, and convert the latest split to the new ids."""

from __future__ import annotations

import getpass
import re
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.errors import RefusedError, UnavailableError, UsageError
from components.shared.ledger import release_log
from components.shared.privacy import keyed_hash
from components.shared.privacy.keyed_hash import HashKey
from components.shared.storage import artifacts
from components.shared.storage.store import Store, open_store
from medloop.operations.keys import current_key, place_key, read_key
from medloop.runner.lock import lease
from medloop.settings import Settings, finish_rotation

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {"image_id": "image", "patient_id": "patient", "duplicate_of": "image", "near": "image"}
"""Id columns of a split's tables, and the kind of each id."""


def rotate(settings: Settings, reason: str, to: Path | None = None, take_over: bool = False) -> str:
    """Rotate the hash key and return a sentence about the result.

    An interruption at any step does no harm. The new key becomes valid with the entry in the release log. Before that,
    it is kept unused beside the old one; after that, the next command that needs the key replaces the old one.
    """
    if not reason.strip():
        raise UsageError("A rotation of the key needs a reason. Give one with --reason.")
    store = open_store(settings.store)
    with lease(store, f"rotation-{datetime.now(UTC):%Y%m%d-%H%M%S}", take_over):
        if finish_rotation(settings):
            return f"The interrupted rotation is complete: the new key is in {settings.key_file}. {_BACKUP}"
        old, origin = current_key(settings)
        if old is None:
            raise UnavailableError("There is no hash key to rotate. The first run on real scans creates one.")
        if settings.hash_key and to is None:
            raise UsageError(f"The key comes from {keyed_hash.VARIABLE}. Name a file for the new key with --to FILE.")
        if not settings.hash_key and to is not None:
            raise UsageError(f"The key is in {origin}, which the new key will replace. Leave --to out.")
        log = release_log.read_log(store)
        store_key = release_log.key_id(log)
        new = _next(to or settings.next_key_file, old, store_key, outside=to is not None)
        if to is None:
            place_key(settings.home / f"hash.key.{old.id}", old)
        if store_key != new.id:
            _append(store, log, old, new, reason)
        finish_rotation(settings)
    if to is not None:
        return f"The key {old.id} was rotated. Set {keyed_hash.VARIABLE} to the content of {to}: the key {new.id}."
    return (
        f"The key {old.id} was rotated. The new key {new.id} is in {settings.key_file}, and the old one in "
        f"hash.key.{old.id} in the same directory. {_BACKUP}"
    )


_BACKUP = "Back it up: medloop keys backup FILE"


def _next(path: Path, old: HashKey, store_key: str, outside: bool) -> HashKey:
    """Return the new key, written to `path`; reuse that of an interrupted rotation."""
    begun = read_key(path) if path.exists() else None
    if begun and begun.extends(old) and len(begun.links) == len(old.links) + 1 and store_key in ("", old.id, begun.id):
        return begun
    if begun and outside:
        raise FileExistsError(f"{path} contains another key. Nothing was overwritten; name a new file with --to.")
    if store_key == keyed_hash.parse(keyed_hash.SYNTHETIC).id:
        raise RefusedError("The scans of this store are synthetic and their key is public, so it cannot be rotated.")
    if store_key not in ("", old.id):
        raise RefusedError(
            f"The current hash key has the id {old.id}, but this store uses the key {store_key}. Restore that key "
            "before you rotate it: medloop keys restore FILE"
        )
    new = old.rotated()
    place_key(path, new)
    return new


def _append(store: Store, log: list[release_log.Entry], old: HashKey, new: HashKey, reason: str) -> None:
    store.require_create_once()
    newest = release_log.newest_split(log)
    split = {"split": rekey(store, newest, old, new), "split_before": newest} if newest else {}
    sentence = f"The hash key {old.id} was rotated to {new.id}; every patient stays in the same split."
    fields = {"key_id": new.id, "key_id_before": old.id, **split, "reason": reason, "sentence": sentence}
    release_log.append(store, log, "rotation", **fields, by=getpass.getuser(), run="")


def rekey(store: Store, split: str, old: HashKey, new: HashKey) -> str:
    """Store the split with the ids of the new key, and return the digest of its manifest."""
    from components.shared.datasets.parquet_tables import read_table, write_table

    manifest = Manifest.decode(store.get(split), split[:12])
    with TemporaryDirectory(prefix="medloop-rotation-") as scratch:
        folder = Path(scratch)
        artifacts.lay_out(store, manifest, folder, copy=True)
        for path in sorted(folder.rglob("*.parquet")):
            write_table(_rekey_table(read_table(path), old, new), path)
        record = contracts.read_record("split", folder / "split.json")
        rows = read_table(folder / "splits.parquet", columns=["image_id", "side"])
        record["fingerprint"] = contracts.fingerprint(sorted(map(list, zip(*rows.to_pydict().values(), strict=True))))
        if "key_id" in record:
            record["key_id"] = new.id
        contracts.write_record("split", folder / "split.json", record)
        return artifacts.gather(store, folder).digest


def _rekey_table(table: pa.Table, old: HashKey, new: HashKey) -> pa.Table:
    import pyarrow as pa

    ids = [name for name in KINDS if name in table.column_names]
    for name in ids:
        values = [_rehash(KINDS[name], value, old, new) for value in table.column(name).to_pylist()]
        table = table.set_column(
            table.column_names.index(name), table.schema.field(name), pa.array(values, pa.string())
        )
    if "hash" in table.column_names:  # contains image ids and pixel digests; only the ids depend on the key
        values = [
            _rehash("image", value, old, new) if len(value or "") == 32 else value
            for value in table["hash"].to_pylist()
        ]
        table = table.set_column(table.column_names.index("hash"), "hash", pa.array(values, pa.string()))
    return table.sort_by(ids[0]) if ids else table


def _rehash(kind: str, value: str | None, old: HashKey, new: HashKey) -> str | None:
    if not value:
        return value
    if not re.fullmatch("[0-9a-f]{32}", value):
        raise RefusedError(
            f"The latest split contains an id of {len(value)} characters instead of 32 hexadecimal digits, so it "
            "cannot be converted. Nothing was changed; restore the split from a copy."
        )
    return new.rehash(kind, value, old)
