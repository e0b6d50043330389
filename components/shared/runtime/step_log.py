"""What each step of a run did, written down in the store by the step itself: the same on a laptop and on a cluster."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from components.shared import environment
from components.shared.contracts import encode, try_decode
from components.shared.privacy.redaction import redact_all

if TYPE_CHECKING:
    from components.shared.storage.store import Store

VARIABLE = "MEDLOOP_RUN"
"""The environment variable that names the run a step belongs to; without it nothing is written down."""

IMAGE = "MEDLOOP_IMAGE"
"""The environment variable that tells a step in which image it runs."""

FOLDER = "steps"


def run() -> str:
    """The run that this process's step belongs to, or nothing."""
    return environment.get(VARIABLE)


class Page:
    """What one step writes of itself, as it comes to know it."""

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
        """Say how far the step is: started, reused, finished or failed; and what is known of it by now."""
        self._record |= {"state": state, **fields}
        if self._run:
            self._store.write(self._name, encode("step", redact_all(self._record)))

    def fail(self, why: str) -> None:
        """Say that the step failed, if that can still be said: the error itself matters more."""
        with contextlib.suppress(OSError):
            self.write("failed", why=why)


def runs(store: Store) -> dict[str, str]:
    """The runs of which steps are written down, each with the moment of its first step, as run ids spell it."""
    begun: dict[str, str] = {}
    for name in store.names(FOLDER):
        _, run, step = (*name.split("/", 2), "")[:3]
        if step:
            begun.setdefault(run, step[:15])
    return begun


def steps(store: Store, run: str) -> list[dict[str, Any]]:
    """What the steps of a run wrote, in the order in which they began."""
    records = (_read(store, name) for name in store.names(f"{FOLDER}/{run}"))
    return [record for record in records if record and _sound(record)]


def _read(store: Store, name: str) -> dict[str, Any] | None:
    try:
        return try_decode("step", store.read(name))
    except ValueError:  # something else than a file has its name
        return None


_TEXTS = ("stage", "state", "at", "key", "why", "code", "image")
_MAPPINGS = ("inputs", "parameters", "outputs", "values", "spent")
_PLAIN = re.compile("[A-Za-z_][A-Za-z0-9_]*").fullmatch
"""What stages, inputs, outputs, parameters and values are called: such names become those of files and options."""
_GIVEN = {"merge": "dataset", "evaluate": "report", "gate": "decision"}
"""Outputs without which nothing can be told of a step."""


def _sound(record: dict[str, Any]) -> bool:
    """Whether a record is what a step wrote: one that was changed or cut would be told as what it is not."""
    wanted = {"stage", "state", "at"}
    if record.get("state") in ("finished", "reused"):
        wanted |= {"key", "seconds", "outputs", "values"}
    shaped = all(isinstance(record.get(name, ""), str) for name in _TEXTS)
    shaped = shaped and all(isinstance(record.get(name, {}), dict) for name in _MAPPINGS)
    shaped = shaped and all(
        map(_PLAIN, [record["stage"], *(key for name in _MAPPINGS for key in record.get(name, {}))])
    )
    if not (wanted <= set(record) and shaped and isinstance(record.get("seconds", 0.0), int | float)):
        return False
    if "outputs" in wanted and record["stage"] in ("deploy", "reject"):
        return {"sentence", "version"} <= set(record["values"])
    return "outputs" not in wanted or _GIVEN.get(record["stage"]) in (None, *record["outputs"])
