"""What is in service: the model that the release log names, taken up while requests go on."""

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
from components.shared.privacy.redaction import redact
from components.shared.runtime import events
from components.shared.storage import artifacts
from components.shared.storage.store import Store
from serving import prediction

log = logging.getLogger("medloop.serve")

STARTING = "The release log has not been read yet. Ask again in some seconds."
NOTHING = "Nothing is released yet, so there is no model to ask. Run `medloop run`."
TAKEN_BACK = "The last model in service was taken back, so there is none to ask. Release or promote one."
VERIFIED, REFUSED, NOT_CHECKED = "verified", "refused", "not checked"
LONGEST_PAUSE = 60.0
RECHECK = 300.0
"""Seconds after which log and model are verified again, though nothing new was released."""
FIRST_LOOK = 20.0


@dataclass(frozen=True)
class Serving:
    """A loaded model, and the entry of the release log that put it into service."""

    entry: Entry
    model: Model

    @property
    def version(self) -> str:
        """The name under which it was released."""
        return self.entry.version

    def info(self) -> dict[str, Any]:
        """What a client may know about it."""
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
            "temperature": about["temperature"],
            "released_at": record["at"],
            "release": self.entry.number,
            "model_digest": record["model"],
            "fingerprints": about["fingerprints"],
        }


@dataclass(frozen=True)
class State:
    """What answers requests now (or None), and a sentence about what is wrong ("" when nothing is).

    `signatures` of the release log, as it was last read: verified, refused, or not checked, where no public key is set.
    """

    serving: Serving | None
    problem: str
    signatures: str = NOT_CHECKED


class Deployment:
    """Follows the release log of a store and keeps the model that it names loaded.

    Where the newest state cannot be taken up (the log is broken, cannot be read, or is not signed by a trusted key
    where keys are set; a model is damaged or needs another runtime), the model that is loaded stays: it was released
    by a log that was whole, and an answer from it is better than none. `state.problem` then says what is wrong; it is
    tried again with growing pauses, and at once when the log grows. Without a model there is nothing to keep, and
    requests are refused with that sentence. The log and the model's files in the store are verified again every five
    minutes and whenever the log grows: damage to them is a warning too.
    """

    def __init__(self, store: Store, poll: float = 2.0) -> None:
        self.state = State(None, STARTING)  # replaced whole, so a reader never sees half a change
        self._store, self._poll = store, poll
        self._head: Entry | None = None
        self._seen: str | None = None
        self._signatures = NOT_CHECKED
        self._failures, self._again = 0, 0.0
        self._looked, self._stopped, self._hurried = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="release log", daemon=True)

    def __enter__(self) -> Deployment:
        """Begin to follow the log. The first look is waited for, but not for ever: a store may hang."""
        self._thread.start()
        deadline = time.monotonic() + FIRST_LOOK
        while not self._looked.wait(0.1) and time.monotonic() < deadline and not self._hurried:
            pass
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        self._thread.join(10)

    def hurry(self) -> None:
        """Wait for the first look no longer. A signal handler may call this: it takes no lock."""
        self._hurried = True

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._look()
            self._looked.set()
            self._stopped.wait(self._poll)

    def _look(self) -> None:
        """List the log; only when its newest entry is another one, or a check is due again, read it and follow it."""
        try:
            names = release_log.entry_names(self._store)
            newest = names[-1] if names else ""
            if newest == self._seen and time.monotonic() < self._again:
                return
            self._seen = newest
            self._follow(self._read())
            self._failures = 0
            self._again = time.monotonic() + (min(RECHECK, LONGEST_PAUSE) if self.state.problem else RECHECK)
        except Exception as error:  # whatever it is: this thread must live, since no other would take up the next model
            self._failures += 1
            self._again = time.monotonic() + min(LONGEST_PAUSE, self._poll * 2 ** min(self._failures, 16))
            self._enter(State(self.state.serving, self._words(error), self._signatures))

    def _read(self) -> list[Entry]:
        trusted = signing.verifier()
        try:
            entries = release_log.read_chain(self._store)
        except ValueError:
            self._signatures = REFUSED if trusted else NOT_CHECKED  # no signature vouches for a broken chain
            raise
        if trusted:
            self._signatures = REFUSED  # until they have all held
            release_log.verify(entries, trusted)
            self._signatures = VERIFIED
        return entries

    def _follow(self, entries: list[Entry]) -> None:
        seen = self._head
        if seen and (len(entries) < seen.number or entries[seen.number - 1].hash != seen.hash):
            self._signatures = REFUSED if signing.verifier() else NOT_CHECKED
            raise RefusedError(
                f"The release log no longer holds entry {seen.number} as it was. Entries were removed or changed: "
                "restore the log from a copy, or start the service anew if that was meant."
            )
        self._head = entries[-1] if entries else None
        entry = release_log.in_service(entries)
        if entry:
            serving = self._load(entry)
            self._enter(State(serving, self._damage(serving), self._signatures))
        else:
            self._enter(State(None, TAKEN_BACK if entries else NOTHING, self._signatures))

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
        """The sentence for a model whose files in the store are not what they were when it was loaded, or nothing."""
        record = serving.entry.record
        try:
            manifest = Manifest.decode(self._store.get(record["model"]), f"the model of {serving.version}")
            for blob in (Blob(record["model"], len(manifest.encode())), *manifest.files.values()):
                self._store.check_again(blob)
        except (OSError, ValueError) as error:
            return (
                f"The stored files of version {serving.version} have changed since it was loaded: "
                f"{_reason(error).rstrip('.')}. Version {serving.version} goes on answering from memory, and cannot be "
                "loaded again until they are restored."
            )
        return ""

    def _enter(self, state: State) -> None:
        before, self.state = self.state, state
        if state.problem and state.problem != before.problem:
            log.warning(state.problem, extra={"fields": {"stage": "serve"}})
        serving = state.serving
        if serving and (before.serving is None or before.serving.entry != serving.entry):
            what = f"{serving.version} is in service"
            events.event(what, "serve", release=serving.entry.number, precision=serving.model.precision)

    def _words(self, error: Exception) -> str:
        reason = _reason(error).rstrip(".")
        serving = self.state.serving
        return f"{reason}. Version {serving.version} stays in service." if serving else f"{reason}."


def load(store: Store, entry: Entry) -> Model:
    """The model that an entry names, verified and tried; an exception says what is wrong with it."""
    record = entry.record
    if record.get("runtime") != "onnxruntime":
        raise RefusedError(f"it is released for the runtime {record.get('runtime')!r}; this service has onnxruntime.")
    manifest = Manifest.decode(store.get(record["model"]), f"the model of {entry.version}")
    with tempfile.TemporaryDirectory(prefix="medloop-serve-") as scratch:
        bundle = Path(scratch) / "bundle"
        artifacts.lay_out(store, manifest, bundle)
        model = Model(bundle, record["precision"])  # reads the whole graph, so the files need not stay
    prediction.rehearse(model)
    return model


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing in its description"
    return redact(getattr(error, "strerror", None) or str(error)) or type(error).__name__
