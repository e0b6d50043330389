"""The release log: a chain of records, each created once. It says what is in service, and what was ever decided."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from components.shared.contracts import SCHEMAS, decode, digest, encode
from components.shared.store import Store

FOLDER = "releases"
DECISIONS = ("release", "refusal", "awaiting")
"""Kinds of entries that write down what the gate decided of a model: each was a look at the locked test."""


@dataclass(frozen=True)
class Entry:
    """One record of the log.

    Its kind: release, refusal, awaiting (an approval), promotion, rollback or rotation (of the hash key).
    """

    number: int
    hash: str
    record: dict[str, Any]

    @property
    def kind(self) -> str:
        """What happened."""
        return str(self.record["what"])

    @property
    def version(self) -> str:
        """The version this entry put into service; "" where it put none."""
        return str(self.record.get("version", ""))


def read_log(store: Store) -> list[Entry]:
    """The whole log, oldest first; refuses one that is broken."""
    entries: list[Entry] = []
    for name in store.names(FOLDER):
        data = store.read(name)
        if data is None:
            raise OSError(f"{name} was listed and cannot be read. The store is not whole; restore it from a copy.")
        record = decode("release", data, name)
        if not {"number", "before", "what", "at"} <= set(record):
            raise ValueError(f"The release log is broken at {name}: it lacks fields. Restore the log from a copy.")
        expected = entries[-1].hash if entries else ""
        if record["number"] != len(entries) + 1 or record["before"] != expected:
            raise ValueError(
                f"The release log is broken at {name}: it does not follow the entry before it. An entry was changed, "
                "removed or put in; restore the log from a copy. Until then nothing is released."
            )
        entries.append(Entry(record["number"], digest(data), record))
    return entries


def head(log: list[Entry]) -> str:
    """The hash of the newest entry, or "" for an empty log."""
    return log[-1].hash if log else ""


def append(store: Store, log: list[Entry], what: str, **fields: Any) -> Entry:
    """Add an entry after the last of `log`; FileExistsError when another writer was first."""
    number = len(log) + 1
    record = {
        "number": number,
        "before": head(log),
        "what": what,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **fields,
    }
    data = encode("release", record)
    try:
        store.create(f"{FOLDER}/{number:08d}.json", data)
    except FileExistsError:
        raise FileExistsError(
            f"Entry {number} of the release log was written by somebody else at this moment. Nothing was changed; "
            "look at `medloop models`, and do it again if it still holds."
        ) from None
    return Entry(number, digest(data), {"kind": "release", "schema": SCHEMAS["release"], **record})


def beginning(resolved: dict[str, Any]) -> dict[str, Any]:
    """What an entry keeps of that which resolve saw when its run began."""
    return {name: resolved[name] for name in ("revision", "key_id", "request", "seen")}


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
                raise ValueError("The release log takes back more than was released. Restore it from a copy.")
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
