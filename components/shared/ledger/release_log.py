"""The release log: a chain of records, each created once, with every decision and the model in service."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from components.shared.contracts import decode, digest, encode
from components.shared.errors import DamagedError, UnavailableError
from components.shared.ledger import signing
from components.shared.ledger.signing import Verifier
from components.shared.storage.store import Store, record_number

FOLDER = "releases"
ENTRY_BYTES = 2**20
"""Maximum size of an entry; typical entries have a few thousand bytes."""
DECISIONS = ("release", "refusal", "awaiting")
"""Kinds of entries that record a decision of the gate; each is an evaluation on the locked test set."""


@dataclass(frozen=True)
class Entry:
    """One entry of the log.

    Its kind is release, refusal, awaiting (an approval), promotion, rollback, rotation (of the hash key) or seal. With
    a seal a person confirms that the log up to there is correct. Through the chain, the seal's signature covers earlier
    entries without a signature, or signed with a key that is no longer trusted.
    """

    number: int
    hash: str
    record: dict[str, Any]
    data: bytes = field(default=b"", repr=False, compare=False)

    @property
    def kind(self) -> str:
        return str(self.record["what"])

    @property
    def version(self) -> str:
        """The version that this entry released or promoted; "" for other kinds."""
        return str(self.record.get("version", ""))


def read_log(store: Store) -> list[Entry]:
    """Return the log, oldest entry first; raise an error if it is broken or, with public keys, not properly signed."""
    log = read_chain(store)
    if trusted := signing.verifier():
        verify(log, trusted)
    return log


def read_chain(store: Store) -> list[Entry]:
    """Return the log, oldest entry first, without verifying signatures; raise DamagedError if its chain is broken."""
    entries: list[Entry] = []
    for name in entry_names(store):
        if record_number(name, FOLDER) != len(entries) + 1:
            raise DamagedError(
                f"The release log is broken at {name}: entry {len(entries) + 1} is missing. An entry was removed or "
                "added; restore the log from a copy. Until then nothing is released."
            )
        data = read_entry(store, name)
        record = decode("release", data, name)
        if not {"number", "before", "what", "at"} <= set(record):
            raise DamagedError(f"The release log is broken at {name}: it lacks fields. Restore the log from a copy.")
        expected = entries[-1].hash if entries else ""
        if record["number"] != len(entries) + 1 or record["before"] != expected:
            raise DamagedError(
                f"The release log is broken at {name}: it does not follow the previous entry. An entry was changed, "
                "removed or added; restore the log from a copy. Until then nothing is released."
            )
        entries.append(Entry(record["number"], digest(data), record, data))
    return entries


def entry_names(store: Store) -> list[str]:
    """Return the names of the log's entries, oldest first."""
    return store.numbered(FOLDER)


def foreign_names(store: Store) -> list[str]:
    """Return the names of other files in the log's folder; they are ignored."""
    return [name for name in store.names(FOLDER) if not record_number(name, FOLDER)]


def read_entry(store: Store, name: str) -> bytes:
    """Return the bytes of an entry; raise DamagedError if it is not a regular file or too large."""
    try:
        data = store.read(name, ENTRY_BYTES)
    except ValueError as error:
        raise DamagedError(f"The release log is broken at {name}: {error}") from None
    if data is None:
        raise OSError(f"{name} was listed but cannot be read. The store is incomplete; restore it from a copy.")
    return data


def verify(log: list[Entry], trusted: Verifier) -> None:
    """Raise a PermissionError unless each entry is signed by a trusted key, or precedes a seal that is.

    An entry with an invalid signature by a trusted key is refused even before a seal.
    """
    sealed = 0
    for entry in reversed(log):
        by = str(entry.record.get("signer", ""))
        covered = entry.number < sealed
        if by in trusted.keys or not covered:
            signing.check_record(trusted, "release", entry.data, f"Entry {entry.number} of the release log")
        if entry.kind == "seal" and not covered:
            sealed = entry.number


def check_writable(log: list[Entry]) -> None:
    """Raise UnavailableError if the next entry could not be signed as required."""
    _check_signing(log, signing.signer(), "")


def _check_signing(log: list[Entry], ours: signing.Signer | None, what: str) -> None:
    signed = bool(log) and "signature" in log[-1].record
    if ours is None and signing.verifier():
        raise UnavailableError(
            f"{signing.VERIFY} requires signatures, but {signing.VARIABLE} is not set: an unsigned entry would make "
            "the release log unreadable. Nothing was written; set the key."
        )
    if ours is None and signed:
        raise UnavailableError(
            f"The release log is signed up to entry {len(log)}, but {signing.VARIABLE} is not set: an unsigned entry "
            "must not follow a signed one. Nothing was written; set the key."
        )
    if ours and log and not signed and what != "seal":
        raise UnavailableError(
            f"{signing.VARIABLE} is set, but the last of the release log's {len(log)} entries has no signature. "
            "Review the log with `medloop audit head`, then seal it with `medloop audit seal`. Nothing was written."
        )


def head(log: list[Entry]) -> str:
    """Return the hash of the newest entry; "" for an empty log."""
    return log[-1].hash if log else ""


def append(store: Store, log: list[Entry], what: str, **fields: Any) -> Entry:
    """Append an entry, signed if a key is set; raise FileExistsError if another writer was faster."""
    _check_signing(log, signing.signer(), what)
    number = len(log) + 1
    record = {
        "number": number,
        "before": head(log),
        "what": what,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **fields,
    }
    data = encode("release", signing.sign("release", record))
    try:
        store.create(f"{FOLDER}/{number:08d}.json", data)
    except FileExistsError:
        raise FileExistsError(
            f"Entry {number} of the release log was written by another run or person at the same time. Nothing was "
            "changed; check `medloop models`, and repeat the command if it is still appropriate."
        ) from None
    return Entry(number, digest(data), decode("release", data, "entry"), data)


def beginning(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that an entry copies from the state that resolve read at the start of the run."""
    return {name: resolved[name] for name in ("revision", "key_id", "request", "seen", "code") if name in resolved}


def key_id(log: list[Entry]) -> str:
    """Return the id of the hash key of the store's current ids; "" if the log contains none."""
    return next((str(entry.record["key_id"]) for entry in reversed(log) if "key_id" in entry.record), "")


def newest_split(log: list[Entry]) -> str:
    """Return the digest of the split that the next run continues; "" if there is none."""
    return next((str(entry.record["split"]) for entry in reversed(log) if "split" in entry.record), "")


def history(log: list[Entry]) -> list[Entry]:
    """Return the releases and promotions that were not rolled back, oldest first."""
    stack: list[Entry] = []
    for entry in log:
        if entry.kind in ("release", "promotion"):
            stack.append(entry)
        elif entry.kind == "rollback":
            if not stack:
                raise DamagedError("The release log contains more rollbacks than releases. Restore it from a copy.")
            stack.pop()
    return stack


def in_service(log: list[Entry]) -> Entry | None:
    """Return the entry whose model is in service, or None."""
    stack = history(log)
    return stack[-1] if stack else None


def withdrawn(log: list[Entry]) -> dict[str, Entry]:
    """Return the rollback of each model that was rolled back and not released again, by the model's digest."""
    stack: list[Entry] = []
    rollbacks: dict[str, Entry] = {}
    for entry in log:
        if entry.kind in ("release", "promotion"):
            stack.append(entry)
            rollbacks.pop(entry.record["model"], None)
        elif entry.kind == "rollback" and stack:
            rollbacks[stack.pop().record["model"]] = entry
    return rollbacks


def versions(log: list[Entry]) -> dict[str, Entry]:
    """Return all released versions by name, oldest first."""
    return {entry.version: entry for entry in log if entry.kind == "release"}


def awaited(log: list[Entry], decision: str) -> Entry | None:
    """Return the entry in which this decision awaits approval, or None.

    It no longer awaits approval once its model is refused, or after an entry that is neither a decision on another
    model nor a seal.
    """
    refused = set()
    for entry in reversed(log):
        if entry.kind == "awaiting" and entry.record.get("decision") == decision:
            return None if entry.record.get("model") in refused else entry
        if entry.kind not in ("refusal", "awaiting", "seal"):
            return None
        if entry.kind == "refusal":
            refused.add(entry.record.get("model"))
    return None


def waiting(log: list[Entry]) -> Entry | None:
    """Return the entry of the model that awaits approval, or None.

    A model no longer awaits approval once it is refused, another model awaits approval, the hash key is rotated, or the
    model in service is not the one that it was compared with.
    """
    candidate = None
    for index, entry in enumerate(log):
        same = candidate is not None and entry.record.get("model") == candidate.record.get("model")
        if entry.kind == "awaiting":
            service, seen = in_service(log[:index]), entry.record.get("seen")
            champion = service.record.get("model") if service else ""
            candidate = entry if seen is None or seen.get("champion") == champion else None
        elif entry.kind in ("release", "promotion", "rollback", "rotation") or (entry.kind == "refusal" and same):
            candidate = None
    return candidate
