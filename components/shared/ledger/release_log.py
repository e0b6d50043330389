"""The release log: a chain of records, each created once. It says what is in service, and what was ever decided."""

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
"""Maximum size of an entry; real ones have a few thousand bytes."""
DECISIONS = ("release", "refusal", "awaiting")
"""Kinds of entries that write down what the gate decided of a model: each was a look at the locked test."""


@dataclass(frozen=True)
class Entry:
    """One record of the log.

    Its kind: release, refusal, awaiting (an approval), promotion, rollback, rotation (of the hash key) or seal.
    A seal is a person's word that the log up to there is as it should be. Its signature covers, by the chain, entries
    that have none, or that of a key which is trusted no more.
    """

    number: int
    hash: str
    record: dict[str, Any]
    data: bytes = field(default=b"", repr=False, compare=False)

    @property
    def kind(self) -> str:
        """What happened."""
        return str(self.record["what"])

    @property
    def version(self) -> str:
        """The version this entry put into service; "" where it put none."""
        return str(self.record.get("version", ""))


def read_log(store: Store) -> list[Entry]:
    """The whole log, oldest first; refuses one that is broken, or whose signatures do not hold where keys are set."""
    log = read_chain(store)
    if trusted := signing.verifier():
        verify(log, trusted)
    return log


def read_chain(store: Store) -> list[Entry]:
    """The whole log, oldest first, whoever wrote it; refuses one whose entries do not follow one another."""
    entries: list[Entry] = []
    for name in entry_names(store):
        if record_number(name, FOLDER) != len(entries) + 1:
            raise DamagedError(
                f"The release log is broken at {name}: entry {len(entries) + 1} is missing. An entry was removed or "
                "put in; restore the log from a copy. Until then nothing is released."
            )
        data = read_entry(store, name)
        record = decode("release", data, name)
        if not {"number", "before", "what", "at"} <= set(record):
            raise DamagedError(f"The release log is broken at {name}: it lacks fields. Restore the log from a copy.")
        expected = entries[-1].hash if entries else ""
        if record["number"] != len(entries) + 1 or record["before"] != expected:
            raise DamagedError(
                f"The release log is broken at {name}: it does not follow the entry before it. An entry was changed, "
                "removed or put in; restore the log from a copy. Until then nothing is released."
            )
        entries.append(Entry(record["number"], digest(data), record, data))
    return entries


def entry_names(store: Store) -> list[str]:
    """The names of the log's entries, oldest first."""
    return store.numbered(FOLDER)


def foreign_names(store: Store) -> list[str]:
    """The names of what lies in the log's folder and is no entry. Nobody reads it."""
    return [name for name in store.names(FOLDER) if not record_number(name, FOLDER)]


def read_entry(store: Store, name: str) -> bytes:
    """The bytes of an entry that was listed; a ValueError where no regular file of an entry's size stands there."""
    try:
        data = store.read(name, ENTRY_BYTES)
    except ValueError as error:
        raise DamagedError(f"The release log is broken at {name}: {error}") from None
    if data is None:
        raise OSError(f"{name} was listed and cannot be read. The store is not whole; restore it from a copy.")
    return data


def verify(log: list[Entry], trusted: Verifier) -> None:
    """A PermissionError unless each entry is signed by a trusted key, or stands before a seal that is.

    An entry whose own signature by a trusted key does not hold is refused wherever it stands.
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
    """A RuntimeError that says what to do, where the next entry could not be written so that it will be believed."""
    _check_signing(log, signing.signer(), "")


def _check_signing(log: list[Entry], ours: signing.Signer | None, what: str) -> None:
    signed = bool(log) and "signature" in log[-1].record
    if ours is None and signing.verifier():
        raise UnavailableError(
            f"{signing.VERIFY} asks for signatures, and {signing.VARIABLE} is not set: an entry without one would make "
            "the release log unreadable. Nothing was written; set the key."
        )
    if ours is None and signed:
        raise UnavailableError(
            f"The release log is signed, up to entry {len(log)}, and {signing.VARIABLE} is not set: after a signed "
            "entry none goes unsigned. Nothing was written; set the key."
        )
    if ours and log and not signed and what != "seal":
        raise UnavailableError(
            f"{signing.VARIABLE} is set, and the last of the release log's {len(log)} entries has no signature. "
            "Look at them, then seal the log: `medloop audit head` and `medloop audit seal`. Nothing was written."
        )


def head(log: list[Entry]) -> str:
    """The hash of the newest entry, or "" for an empty log."""
    return log[-1].hash if log else ""


def append(store: Store, log: list[Entry], what: str, **fields: Any) -> Entry:
    """Add an entry after the last of `log`, signed where a key is set; FileExistsError when another was first."""
    _check_signing(log, signing.signer(), what)
    number = len(log) + 1
    record = {
        "number": number,
        "before": head(log),
        "what": what,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **fields,
    }
    data = encode("release", signing.signed("release", record))
    try:
        store.create(f"{FOLDER}/{number:08d}.json", data)
    except FileExistsError:
        raise FileExistsError(
            f"Entry {number} of the release log was written by somebody else at this moment. Nothing was changed; "
            "look at `medloop models`, and do it again if it still holds."
        ) from None
    return Entry(number, digest(data), decode("release", data, "entry"), data)


def beginning(resolved: dict[str, Any]) -> dict[str, Any]:
    """What an entry keeps of that which resolve saw when its run began."""
    return {name: resolved[name] for name in ("revision", "key_id", "request", "seen", "code") if name in resolved}


def key_id(log: list[Entry]) -> str:
    """The id of the hash key that the store's ids are made with now, or "" while the log tells none."""
    return next((str(entry.record["key_id"]) for entry in reversed(log) if "key_id" in entry.record), "")


def newest_split(log: list[Entry]) -> str:
    """The digest of the split that the next run goes on from, or "" where there is none."""
    return next((str(entry.record["split"]) for entry in reversed(log) if "split" in entry.record), "")


def history(log: list[Entry]) -> list[Entry]:
    """What was put into service and not taken back, oldest first: a rollback removes the last of them."""
    stack: list[Entry] = []
    for entry in log:
        if entry.kind in ("release", "promotion"):
            stack.append(entry)
        elif entry.kind == "rollback":
            if not stack:
                raise DamagedError("The release log takes back more than was released. Restore it from a copy.")
            stack.pop()
    return stack


def in_service(log: list[Entry]) -> Entry | None:
    """The entry whose model is in service, or None."""
    stack = history(log)
    return stack[-1] if stack else None


def withdrawn(log: list[Entry]) -> dict[str, Entry]:
    """Models that a person took out of service and nobody put back, by digest, with the entry that did it."""
    stack: list[Entry] = []
    out: dict[str, Entry] = {}
    for entry in log:
        if entry.kind in ("release", "promotion"):
            stack.append(entry)
            out.pop(entry.record["model"], None)
        elif entry.kind == "rollback" and stack:
            out[stack.pop().record["model"]] = entry
    return out


def versions(log: list[Entry]) -> dict[str, Entry]:
    """Every version that was ever released, by name, oldest first."""
    return {entry.version: entry for entry in log if entry.kind == "release"}


def awaited(log: list[Entry], decision: str) -> Entry | None:
    """The entry by which this decision waits for a person's approval, or None.

    It waits no more once its own model was refused, or anything but a decision on another model was written; a seal
    changes nothing.
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
    """The entry of the model that waits for a person's approval, or None.

    It waits until it is refused, another one waits, the hash key is rotated, or something comes into service that it
    was not compared with; also where that came while it was judged.
    """
    found = None
    for place, entry in enumerate(log):
        same = found is not None and entry.record.get("model") == found.record.get("model")
        if entry.kind == "awaiting":
            service, seen = in_service(log[:place]), entry.record.get("seen")
            now = service.record.get("model") if service else ""
            found = entry if seen is None or seen.get("champion") == now else None
        elif entry.kind in ("release", "promotion", "rollback", "rotation") or (entry.kind == "refusal" and same):
            found = None
    return found
