"""The lock of a store: a lease record names the only run that may use the store."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.shared.contracts import encode, try_decode
from components.shared.errors import UnavailableError
from components.shared.storage.store import Store, record_number

FOLDER = "lease"
RECORD_BYTES = 2**16
"""Maximum size of a lease record; real ones have a few hundred bytes."""
_FIELDS = {"run", "host", "boot", "starter", "starter_began", "group", "group_began", "released"}
_TAKEN = "Another run acquired the lock at the same moment. Wait for it to end, then run again."


@contextmanager
def lease(store: Store, run: str, take_over: bool = False) -> Iterator[Lease]:
    """Hold the lock of a store during the block. Raise UnavailableError if another run may still hold it.

    Leases are numbered records, each created once. The newest is valid, so of two concurrent attempts only one wins.
    """
    names = store.numbered(FOLDER)
    newest = names[-1] if names else ""
    if newest and not take_over:
        holder, exists = _read(store, newest)
        if exists and holder is None:
            raise UnavailableError(
                f"The lock record {newest} is damaged. If you are sure that no run is active, add --take-over."
            )
        if holder and not (holder["released"] or _ended(holder)):
            raise UnavailableError(_held(holder))
    number = record_number(newest, FOLDER) + 1
    mine = Lease(store, f"{FOLDER}/{number:08d}.json", run)
    try:
        mine.claim()
    except FileExistsError:
        raise UnavailableError(_TAKEN) from None
    if store.numbered(FOLDER)[-1] != mine.name:
        # Another run used this number, deleted its record and created a newer one in the meantime.
        store.delete(mine.name)
        raise UnavailableError(_TAKEN)
    for name in names:
        with contextlib.suppress(OSError):  # not a file; it is older than ours, so it has no effect
            store.delete(name)
    try:
        yield mine
    finally:
        mine.release()


def holder(store: Store) -> str:
    """Return the run that holds the lock now, or ""."""
    names = store.numbered(FOLDER)
    record = _read(store, names[-1])[0] if names else None
    return "" if record is None or record["released"] or _ended(record) else str(record["run"])


def _read(store: Store, name: str) -> tuple[dict[str, Any] | None, bool]:
    """Return the holder in a record, or None if it is damaged or missing; and whether the record exists."""
    try:
        data = store.read(name, RECORD_BYTES)
    except ValueError:
        return None, True
    record = try_decode("lease", data)
    return (record if record and set(record) >= _FIELDS else None), data is not None


class Lease:
    """The lock held by one run."""

    def __init__(self, store: Store, name: str, run: str) -> None:
        self._store, self.name, self._run = store, name, run
        self.number = record_number(name, FOLDER)

    def claim(self) -> None:
        """Create the record for the process that starts the run."""
        self._store.create(self.name, encode("lease", self._record(os.getpid())))

    def hand_to(self, group: int) -> None:
        """Record the process group of the run; the lock is valid while any process of the group lives."""
        self._store.write(self.name, encode("lease", self._record(group)))

    def release(self) -> None:
        """Release the lock."""
        self._store.write(self.name, encode("lease", {**self._record(os.getpid()), "released": True}))

    def _record(self, group: int) -> dict[str, Any]:
        return {
            "run": self._run,
            "host": socket.gethostname(),
            "boot": _boot(),
            "starter": os.getpid(),
            "starter_began": _began(os.getpid()),
            "group": group,
            "group_began": _began(group),
            "released": False,
        }


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _ended(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return False  # its processes cannot be inspected from here
    if holder["boot"] != _boot():
        return True
    for number, group, began in _living_processes():
        if number == holder["starter"] and began == holder["starter_began"]:
            return False
        # Process ids are reused: a leader with another start time leads another group.
        leads_another = _began(group) not in (0, holder["group_began"])
        if group == holder["group"] and not leads_another:
            return False
    return True


def _living_processes() -> Iterator[tuple[int, int, int]]:
    """Return id, group and start time of every process; zombies count as ended."""
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields and fields[0] not in "ZX":
            yield int(folder.name), int(fields[2]), int(fields[19])


def _began(number: int) -> int:
    """Return the start time of a process in clock ticks since boot, or 0 if it has ended."""
    fields = _stat(number)
    return int(fields[19]) if fields and fields[0] not in "ZX" else 0


def _stat(number: int) -> list[str]:
    try:
        return Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []  # it has just ended


def _held(holder: dict[str, Any]) -> str:
    process = f"on {holder['host']}, process {holder['starter']}"
    held = f"The run {holder['run']} holds the lock of this store ({process}). "
    if holder["host"] == socket.gethostname() and _began(holder["starter"]) != holder["starter_began"]:
        return held + "That process has ended, and its last stage is still stopping. Repeat this in a few seconds."
    return (
        f"{held}Two concurrent runs would compare with different models. Wait for it to end. If you are sure that it "
        "has stopped, add --take-over."
    )
