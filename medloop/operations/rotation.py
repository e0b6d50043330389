"""The rotation of the hash key: a new link at its end, and the split carried on to the ids that it makes."""

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
from components.shared.privacy import hash_keys
from components.shared.privacy.hash_keys import HashKey
from components.shared.storage import artifacts
from components.shared.storage.store import Store, open_store
from medloop.operations.keys import place_key, present, read_key
from medloop.runner.lock import lease
from medloop.settings import Settings, finish_rotation

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {"image_id": "image", "patient_id": "patient", "duplicate_of": "image", "near": "image"}
"""The columns of a split's tables that hold ids, and of what."""


def rotate(settings: Settings, reason: str, to: Path | None = None, take_over: bool = False) -> str:
    """Rotate the key; gives the sentence that says so.

    The order of the steps makes every interruption harmless. The entry in the release log is the moment at which the
    new key counts: before it the new key lies beside the old one, unused; after it, whoever needs the key next puts
    the new one in its place.
    """
    if not reason.strip():
        raise UsageError("A rotation of the key needs a reason. Give one with --reason.")
    store = open_store(settings.store)
    with lease(store, f"rotation-{datetime.now(UTC):%Y%m%d-%H%M%S}", take_over):
        if finish_rotation(settings):
            return f"The rotation that was cut short is done: the new key is in {settings.key_file}. {_COPY}"
        old, where = present(settings)
        if old is None:
            raise UnavailableError("There is no hash key here to rotate. The first run on real scans makes one.")
        if settings.hash_key and to is None:
            raise UsageError(f"The key comes from {hash_keys.VARIABLE}. Say with --to FILE where to write the new one.")
        if not settings.hash_key and to is not None:
            raise UsageError(f"The key is in {where}, and the new one comes to lie there. Leave --to out.")
        log = release_log.read_log(store)
        known = release_log.key_id(log)
        new = _next(to or settings.next_key_file, old, known, outside=to is not None)
        if to is None:
            place_key(settings.home / f"hash.key.{old.id}", old)
        if known != new.id:
            _append(store, log, old, new, reason)
        finish_rotation(settings)
    if to is not None:
        return f"The key {old.id} was rotated. Set {hash_keys.VARIABLE} to what {to} holds: the key {new.id}."
    return (
        f"The key {old.id} was rotated; {new.id} is in {settings.key_file} now, and the old one in "
        f"hash.key.{old.id} beside it. {_COPY}"
    )


_COPY = "Keep a copy of it: medloop keys backup FILE"


def _next(place: Path, old: HashKey, known: str, outside: bool) -> HashKey:
    """The key that follows, written down; that of a rotation which was cut short, where there is one."""
    begun = read_key(place) if place.exists() else None
    if begun and begun.extends(old) and len(begun.links) == len(old.links) + 1 and known in ("", old.id, begun.id):
        return begun
    if begun and outside:
        raise FileExistsError(f"{place} holds another key. It was left as it is; name a new file with --to.")
    if known == hash_keys.parse(hash_keys.SYNTHETIC).id:
        raise RefusedError(
            "The scans of this store are synthetic, and their key is public: there is nothing to rotate."
        )
    if known not in ("", old.id):
        raise RefusedError(
            f"The hash key at hand has the id {old.id}, and this store was made with key {known}. Put that one back "
            "before you rotate it: medloop keys restore FILE"
        )
    new = old.rotated()
    place_key(place, new)
    return new


def _append(store: Store, log: list[release_log.Entry], old: HashKey, new: HashKey, reason: str) -> None:
    store.require_create_once()
    newest = release_log.newest_split(log)
    split = {"split": rekey(store, newest, old, new), "split_before": newest} if newest else {}
    sentence = f"The hash key {old.id} was rotated to {new.id}; every patient stays on their side."
    fields = {"key_id": new.id, "key_id_before": old.id, **split, "reason": reason, "sentence": sentence}
    release_log.append(store, log, "rotation", **fields, by=getpass.getuser(), run="")


def rekey(store: Store, split: str, old: HashKey, new: HashKey) -> str:
    """The split with the ids that the new key makes, kept in the store; gives the digest of its manifest."""
    from components.shared.datasets.parquet_tables import read_table, write_table

    manifest = Manifest.decode(store.get(split), split[:12])
    with TemporaryDirectory(prefix="medloop-rotation-") as scratch:
        folder = Path(scratch)
        artifacts.lay_out(store, manifest, folder, copy=True)
        for path in sorted(folder.rglob("*.parquet")):
            write_table(_carried(read_table(path), old, new), path)
        about = contracts.read_record("split", folder / "split.json")
        rows = read_table(folder / "splits.parquet", columns=["image_id", "side"])
        about["fingerprint"] = contracts.fingerprint(sorted(map(list, zip(*rows.to_pydict().values(), strict=True))))
        if "key_id" in about:
            about["key_id"] = new.id
        contracts.write_record("split", folder / "split.json", about)
        return artifacts.gather(store, folder).digest


def _carried(table: pa.Table, old: HashKey, new: HashKey) -> pa.Table:
    import pyarrow as pa

    ids = [name for name in KINDS if name in table.column_names]
    for name in ids:
        values = [_one(KINDS[name], value, old, new) for value in table.column(name).to_pylist()]
        table = table.set_column(
            table.column_names.index(name), table.schema.field(name), pa.array(values, pa.string())
        )
    if "hash" in table.column_names:  # of images by id, and of pictures by what they hold, which is no name
        values = [
            _one("image", value, old, new) if len(value or "") == 32 else value for value in table["hash"].to_pylist()
        ]
        table = table.set_column(table.column_names.index("hash"), "hash", pa.array(values, pa.string()))
    return table.sort_by(ids[0]) if ids else table


def _one(kind: str, value: str | None, old: HashKey, new: HashKey) -> str | None:
    if not value:
        return value
    if not re.fullmatch("[0-9a-f]{32}", value):
        raise RefusedError(
            f"The latest split holds an id of {len(value)} characters where 32 hexadecimal digits are expected, so it "
            "cannot be carried on. Nothing was changed; restore the split from a copy."
        )
    return new.rehash(kind, value, old)
