"""One run at a time: a lease in the store names the run that holds the loop."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.shared.contracts import decode, encode
from components.shared.store import Store

FOLDER = "lease"
_TAKEN = "Another run took hold of the loop at this moment. Wait for it to end, and run again."


@contextmanager
def lease(store: Store, run: str, take_over: bool = False) -> Iterator[Lease]:
    """Hold the loop while the block runs. RuntimeError when another run holds it and is not known to have ended.

    Leases are numbered records, each created once. The newest counts, so of two that reach for it only one wins.
    """
    names = store.names(FOLDER)
    newest = names[-1] if names else ""
    data = store.read(newest) if newest else None
    if data is not None:
        holder = decode("lease", data, newest)
        if not (take_over or holder["released"] or _ended(holder)):
            raise RuntimeError(_held(holder))
    number = int(Path(newest).stem) + 1 if newest else 1
    mine = Lease(store, f"{FOLDER}/{number:08d}.json", run)
    try:
        mine.claim()
    except FileExistsError:
        raise RuntimeError(_TAKEN) from None
    if store.names(FOLDER)[-1] != mine.name:  # the number was used and cleared away meanwhile, and a newer one counts
        store.delete(mine.name)
        raise RuntimeError(_TAKEN)
    for name in names:
        store.delete(name)
    try:
        yield mine
    finally:
        mine.release()


class Lease:
    """The hold of one run."""

    def __init__(self, store: Store, name: str, run: str) -> None:
        self._store, self.name, self._run = store, name, run

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
            "group": group,
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
    return not any(number == holder["starter"] or group == holder["group"] for number, group in _living_processes())


def _living_processes() -> Iterator[tuple[int, int]]:
    """Number and group of every process of this machine that has not ended (one that nobody has waited for has)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it ended while we looked
        if state not in "ZX":
            yield int(stat.parent.name), int(group)


def _held(holder: dict[str, Any]) -> str:
    return (
        f"The run {holder['run']} holds the loop (on {holder['host']}, process {holder['starter']}); two runs at once "
        "would judge against a moving target. Wait for it to end. If you know that it has ended, add --take-over."
    )
