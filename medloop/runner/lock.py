"""One run at a time: a lease in the store names the run that holds the loop."""

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
"""Maximum size of a lease; real ones have a few hundred bytes."""
_FIELDS = {"run", "host", "boot", "starter", "starter_began", "group", "group_began", "released"}
_TAKEN = "Another run took hold of the loop at this moment. Wait for it to end, and run again."


@contextmanager
def lease(store: Store, run: str, take_over: bool = False) -> Iterator[Lease]:
    """Hold the loop while the block runs. RuntimeError when another run holds it and is not known to have ended.

    Leases are numbered records, each created once. The newest counts, so of two that reach for it only one wins.
    """
    names = store.numbered(FOLDER)
    newest = names[-1] if names else ""
    if newest and not take_over:
        holder, there = _read(store, newest)
        if there and holder is None:
            raise UnavailableError(
                f"The record {newest} is damaged. If you know that no run is going on, add --take-over."
            )
        if holder and not (holder["released"] or _ended(holder)):
            raise UnavailableError(_held(holder))
    number = record_number(newest, FOLDER) + 1
    mine = Lease(store, f"{FOLDER}/{number:08d}.json", run)
    try:
        mine.claim()
    except FileExistsError:
        raise UnavailableError(_TAKEN) from None
    if (
        store.numbered(FOLDER)[-1] != mine.name
    ):  # the number was used and cleared away meanwhile, and a newer one counts
        store.delete(mine.name)
        raise UnavailableError(_TAKEN)
    for name in names:
        with contextlib.suppress(OSError):  # of something else than a file: older than ours, so it says nothing
            store.delete(name)
    try:
        yield mine
    finally:
        mine.release()


def holder(store: Store) -> str:
    """The run that holds the loop now, or "" where none does."""
    names = store.numbered(FOLDER)
    record = _read(store, names[-1])[0] if names else None
    return "" if record is None or record["released"] or _ended(record) else str(record["run"])


def _read(store: Store, name: str) -> tuple[dict[str, Any] | None, bool]:
    """The holder that a record names, or None where it is damaged; and whether there is a record at all."""
    try:
        data = store.read(name, RECORD_BYTES)
    except ValueError:
        return None, True
    record = try_decode("lease", data)
    return (record if record and set(record) >= _FIELDS else None), data is not None


class Lease:
    """The hold of one run."""

    def __init__(self, store: Store, name: str, run: str) -> None:
        self._store, self.name, self._run = store, name, run
        self.number = record_number(name, FOLDER)

    def claim(self) -> None:
        """Create the record, for the process that starts the run."""
        self._store.create(self.name, encode("lease", self._record(os.getpid())))

    def hand_to(self, group: int) -> None:
        """Say that this process group does the run's work: the hold lasts while any process of it lives."""
        self._store.write(self.name, encode("lease", self._record(group)))

    def release(self) -> None:
        """Give the loop back."""
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
        return False  # only that machine can tell
    if holder["boot"] != _boot():
        return True
    for number, group, began in _living_processes():
        if number == holder["starter"] and began == holder["starter_began"]:
            return False
        # A number is used again in time: a leader that began at another time leads another group.
        leads_another = _began(group) not in (0, holder["group_began"])
        if group == holder["group"] and not leads_another:
            return False
    return True


def _living_processes() -> Iterator[tuple[int, int, int]]:
    """Number, group and beginning of every process that has not ended (one that nobody has waited for has)."""
    for folder in Path("/proc").glob("[0-9]*"):
        about = _stat(int(folder.name))
        if about and about[0] not in "ZX":
            yield int(folder.name), int(about[2]), int(about[19])


def _began(number: int) -> int:
    """When a process began, in the machine's own count; 0 where there is none."""
    about = _stat(number)
    return int(about[19]) if about and about[0] not in "ZX" else 0


def _stat(number: int) -> list[str]:
    try:
        return Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []  # it ended while we looked


def _held(holder: dict[str, Any]) -> str:
    return (
        f"The run {holder['run']} holds the loop (on {holder['host']}, process {holder['starter']}); two runs at once "
        "would judge against a moving target. Wait for it to end. If you know that it has ended, add --take-over."
    )
