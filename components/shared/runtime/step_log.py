"""Records of the steps of a run. Each step writes its own record to the store, on a laptop and on a cluster."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from components.shared import environment
from components.shared.contracts import encode, try_decode
from components.shared.privacy.secret_redaction import redact_all

if TYPE_CHECKING:
    from components.shared.storage.store import Store

VARIABLE = "MEDLOOP_RUN"
"""Environment variable: id of the run that a step belongs to; without it, no records are written."""

IMAGE = "MEDLOOP_IMAGE"
"""Environment variable: image that a step runs in."""

FOLDER = "steps"


def run() -> str:
    """Return the id of the run that this process belongs to, or ""."""
    return environment.get(VARIABLE)


class StepRecord:
    """The record of one step in the store."""

    def __init__(self, store: Store, stage: str) -> None:
        self._store, self._run = store, run()
        now = datetime.now(UTC)
        self._name = f"{FOLDER}/{self._run}/{now:%Y%m%d-%H%M%S.%f}-{stage}.json"
        self._record: dict[str, Any] = {
            "run": self._run,
            "stage": stage,
            "at": now.isoformat(timespec="milliseconds"),
            "image": environment.get(IMAGE),
        }

    def write(self, state: str, **fields: Any) -> None:
        """Write the state (started, reused, finished or failed) and further fields."""
        self._record |= {"state": state, **fields}
        if self._run:
            self._store.write(self._name, encode("step", redact_all(self._record)))

    def fail(self, why: str) -> None:
        """Write that the step failed. Ignore an unwritable store: the error itself is more important."""
        with contextlib.suppress(OSError):
            self.write("failed", why=why)


def runs(store: Store) -> dict[str, str]:
    """Return the ids of all runs with records, each with the time of its first step in the format of run ids."""
    starts: dict[str, str] = {}
    for name in store.names(FOLDER):
        _, run, step = (*name.split("/", 2), "")[:3]
        if step:
            starts.setdefault(run, step[:15])
    return starts


def steps(store: Store, run: str) -> list[dict[str, Any]]:
    """Return the valid records of a run's steps, in the order of their start."""
    records = (_read(store, name) for name in store.names(f"{FOLDER}/{run}"))
    return [record for record in records if record and _is_valid(record)]


def _read(store: Store, name: str) -> dict[str, Any] | None:
    try:
        return try_decode("step", store.read(name))
    except ValueError:  # not a regular file
        return None


_TEXTS = ("stage", "state", "at", "key", "why", "code", "image")
_MAPPINGS = ("inputs", "parameters", "outputs", "values", "spent")
_PLAIN = re.compile("[A-Za-z_][A-Za-z0-9_]*").fullmatch
"""Names of stages, inputs, outputs, parameters and values; they become names of files and options."""
_REQUIRED_OUTPUTS = {"merge": "dataset", "evaluate": "report", "gate": "decision"}


def _is_valid(record: dict[str, Any]) -> bool:
    """Return whether a record has the fields and types that a step writes: it may have been changed or cut."""
    has_ended = record.get("state") in ("finished", "reused")
    required = {"stage", "state", "at"} | ({"key", "seconds", "outputs", "values"} if has_ended else set())
    valid = (
        required <= set(record)
        and all(isinstance(record.get(name, ""), str) for name in _TEXTS)
        and all(isinstance(record.get(name, {}), dict) for name in _MAPPINGS)
        and all(map(_PLAIN, [record["stage"], *(key for name in _MAPPINGS for key in record.get(name, {}))]))
        and isinstance(record.get("seconds", 0.0), int | float)
    )
    if not valid or not has_ended:
        return valid
    if record["stage"] in ("deploy", "reject"):
        return {"sentence", "version"} <= set(record["values"])
    return _REQUIRED_OUTPUTS.get(record["stage"]) in (None, *record["outputs"])
