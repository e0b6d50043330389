"""The model in service: follow the release log and load models while requests are answered."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from components.shared.contracts import Blob, Manifest
from components.shared.errors import RefusedError, UnavailableError
from components.shared.inference import Model
from components.shared.ledger import release_log, signing
from components.shared.ledger.release_log import Entry
from components.shared.privacy.secret_redaction import redact
from components.shared.runtime import events
from components.shared.storage import artifacts
from components.shared.storage.store import Store
from serving import prediction

log = logging.getLogger("medloop.serve")

STARTING = "The release log has not been read yet. Try again in a few seconds."
NOTHING_RELEASED = "No model has been released yet. Run `medloop run`."
ROLLED_BACK = "The last model in service was rolled back, and no model is in service. Release or promote one."
VERIFIED, REFUSED, NOT_CHECKED = "verified", "refused", "not checked"
LONGEST_PAUSE = 60.0
RECHECK = 300.0
"""Seconds after which the log and the model are verified again, even without a new release."""
FIRST_READ = 20.0
"""Seconds to wait at startup for the first read of the log."""


@dataclass(frozen=True)
class Serving:
    """A loaded model, and the entry of the release log that released it."""

    entry: Entry
    model: Model

    @property
    def version(self) -> str:
        return self.entry.version

    def info(self) -> dict[str, Any]:
        about, record = self.model.about, self.entry.record
        return {
            "version": self.version,
            "architecture": about["architecture"],
            "task": about["task"],
            "classes": self.model.classes,
            "input_size": self.model.preprocess["size"],
            "preprocess": self.model.preprocess,
            "precision": self.model.precision,
            "runtime": record["runtime"],
            "threshold": about["threshold"],
            "positive": prediction.thresholds(self.model)["positive"],
            "temperature": about["temperature"],
            "released_at": record["at"],
            "release": self.entry.number,
            "model_digest": record["model"],
            "fingerprints": about["fingerprints"],
        }


@dataclass(frozen=True)
class State:
    """The model that answers requests (or None), and a description of the current problem ("" if there is none).

    `signatures` of the release log, when it was last read: verified, refused, or not checked (no public key is set).
    """

    serving: Serving | None
    problem: str
    signatures: str = NOT_CHECKED


class Deployment:
    """Follows the release log of a store and loads the model in service.

    If the newest state cannot be used (the log is broken, cannot be read, or lacks the required signatures; a model is
    damaged or needs another runtime), the loaded model stays in service: it was released by an intact log.
    `state.problem` then describes the problem; the read is repeated with growing pauses, and at once when the log
    grows. Without a loaded model, requests are refused with `state.problem`. The log and the model's files in the store
    are verified every five minutes and whenever the log grows; damage to them is reported in `state.problem`, too.
    """

    def __init__(self, store: Store, poll: float = 2.0) -> None:
        self.state = State(None, STARTING)  # replaced as a whole: threads never see a partial change
        self._store, self._poll = store, poll
        self._head: Entry | None = None
        self._seen: str | None = None
        self._signatures = NOT_CHECKED
        self._failures, self._next_read = 0, 0.0
        self._was_read, self._stopped, self._hurried = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="release log", daemon=True)

    def __enter__(self) -> Deployment:
        """Begin to follow the log. Wait for the first read, but not forever: a store may hang."""
        self._thread.start()
        deadline = time.monotonic() + FIRST_READ
        while not self._was_read.wait(0.1) and time.monotonic() < deadline and not self._hurried:
            pass
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join(10)

    def hurry(self) -> None:
        """Stop waiting for the first read. Safe in a signal handler: it takes no lock."""
        self._hurried = True

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._update()
            self._was_read.set()
            self._stopped.wait(self._poll)

    def _update(self) -> None:
        """List the log, and read it if it has a new entry or a verification is due."""
        try:
            names = release_log.entry_names(self._store)
            newest = names[-1] if names else ""
            if newest == self._seen and time.monotonic() < self._next_read:
                return
            self._seen = newest
            self._follow(self._read())
            self._failures = 0
            self._next_read = time.monotonic() + (min(RECHECK, LONGEST_PAUSE) if self.state.problem else RECHECK)
        except Exception as error:  # any error: without this thread no later model would be loaded
            self._failures += 1
            self._next_read = time.monotonic() + min(LONGEST_PAUSE, self._poll * 2 ** min(self._failures, 16))
            self._enter(State(self.state.serving, self._describe(error), self._signatures))

    def _read(self) -> list[Entry]:
        trusted = signing.verifier()
        try:
            entries = release_log.read_chain(self._store)
        except ValueError:
            self._signatures = REFUSED if trusted else NOT_CHECKED  # the signatures of a broken chain prove nothing
            raise
        if trusted:
            self._signatures = REFUSED  # until all are verified
            release_log.verify(entries, trusted)
            self._signatures = VERIFIED
        return entries

    def _follow(self, entries: list[Entry]) -> None:
        seen = self._head
        if seen and (len(entries) < seen.number or entries[seen.number - 1].hash != seen.hash):
            self._signatures = REFUSED if signing.verifier() else NOT_CHECKED
            raise RefusedError(
                f"Entry {seen.number} of the release log was removed or changed. Restore the log from a copy, or "
                "restart the service if the change was intended."
            )
        self._head = entries[-1] if entries else None
        entry = release_log.in_service(entries)
        if entry:
            serving = self._load(entry)
            self._enter(State(serving, self._damage(serving), self._signatures))
        else:
            self._enter(State(None, ROLLED_BACK if entries else NOTHING_RELEASED, self._signatures))

    def _load(self, entry: Entry) -> Serving:
        now = self.state.serving
        if now and all(now.entry.record.get(key) == entry.record.get(key) for key in ("model", "precision", "runtime")):
            return Serving(entry, now.model)
        try:
            return Serving(entry, load(self._store, entry))
        except Exception as error:
            raise UnavailableError(
                f"Version {entry.version} (entry {entry.number} of the release log) cannot be loaded: {_reason(error)}"
            ) from error

    def _damage(self, serving: Serving) -> str:
        """Return a description of the damage if the model's files in the store have changed, or ""."""
        record = serving.entry.record
        try:
            manifest = Manifest.decode(self._store.get(record["model"]), f"the model of {serving.version}")
            for blob in (Blob(record["model"], len(manifest.encode())), *manifest.files.values()):
                self._store.check_again(blob)
        except (OSError, ValueError) as error:
            return (
                f"The stored files of version {serving.version} have changed since it was loaded: "
                f"{_reason(error).rstrip('.')}. Version {serving.version} stays in service from memory, but cannot be "
                "loaded again until they are restored."
            )
        return ""

    def _enter(self, state: State) -> None:
        previous, self.state = self.state, state
        if state.problem and state.problem != previous.problem:
            log.warning(state.problem, extra={"fields": {"stage": "serve"}})
        serving = state.serving
        if serving and (previous.serving is None or previous.serving.entry != serving.entry):
            name = f"{serving.version} is in service"
            events.event(name, "serve", release=serving.entry.number, precision=serving.model.precision)

    def _describe(self, error: Exception) -> str:
        reason = _reason(error).rstrip(".")
        serving = self.state.serving
        return f"{reason}. Version {serving.version} stays in service." if serving else f"{reason}."


def load(store: Store, entry: Entry) -> Model:
    """Return the model of an entry, verified and tested; raise an exception that describes the problem otherwise."""
    record = entry.record
    if record.get("runtime") != "onnxruntime":
        raise RefusedError(
            f"it was released for the runtime {record.get('runtime')!r}; this service supports onnxruntime."
        )
    manifest = Manifest.decode(store.get(record["model"]), f"the model of {entry.version}")
    with tempfile.TemporaryDirectory(prefix="medloop-serve-") as scratch:
        bundle = Path(scratch) / "bundle"
        artifacts.lay_out(store, manifest, bundle)
        model = Model(bundle, record["precision"])  # reads the whole graph: the files can be deleted
    prediction.check_model(model)
    return model


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing in the model's description"
    return redact(getattr(error, "strerror", None) or str(error)) or type(error).__name__
