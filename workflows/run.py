"""One run of the loop on this machine: started, watched, recorded, and ended cleanly whatever happens."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from components.shared.contracts import decode, encode, try_decode
from components.shared.store import Store, open_store
from workflows.lease import Lease, holder, lease
from workflows.settings import Settings, stage_environment

FOLDER = "runs"
LAST_LINES = 15


class Watcher(Protocol):
    """One who is told what happens while a run goes on."""

    def __call__(self, event: dict[str, Any]) -> None: ...


@dataclass
class Run:
    """A run as it stands in the store."""

    id: str
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """What each step did, in order: stage, key, seconds, reused, outputs, values."""
        return list(self.record["stages"])

    def last(self, stage: str) -> dict[str, Any] | None:
        """The last step of that stage, or None."""
        return next((step for step in reversed(self.stages) if step["stage"] == stage), None)


def start(settings: Settings, arguments: dict[str, Any], runner: str, watcher: Watcher, take_over: bool = False) -> Run:
    """Do a run from beginning to end; gives its record. A broken stage is a record that says so, not an exception."""
    store = open_store(settings.store)
    run = Run(datetime.now(UTC).strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2))
    with lease(store, run.id, take_over) as held:
        by = getpass.getuser()
        run.record = {
            "run": run.id,
            "arguments": arguments,
            "runner": runner,
            "by": by,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "outcome": "running",
            "stages": [],
        }
        _keep(store, run)
        begun = time.perf_counter()
        try:
            _work(settings, store, held, run, runner, watcher)
        except KeyboardInterrupt:
            run.record["outcome"] = "interrupted"
            raise
        finally:
            run.record["seconds"] = round(time.perf_counter() - begun, 2)
            if run.record["outcome"] == "running":
                run.record["outcome"] = "failed"
            _keep(store, run)
    return run


def _work(settings: Settings, store: Store, held: Lease, run: Run, runner: str, watcher: Watcher) -> None:
    folder = settings.runs / run.id
    for left in settings.runs.glob("*/tmp"):
        _clear(left)  # of runs that were killed; while we hold the loop, no other goes on
    (folder / "tmp").mkdir(parents=True)
    environment = {**stage_environment(settings, run.record["arguments"]["source"]), "TMPDIR": str(folder / "tmp")}
    asked: dict[str, Any] = {
        "arguments": {**run.record["arguments"], "store": store.uri, "run": run.id, "by": run.record["by"]},
        "runner": runner,
        "root": str(folder / "root"),
    }
    if runner == "docker":
        from workflows.containers import for_containers

        asked |= for_containers(settings, environment, asked["arguments"])
    with _engine(environment, folder) as engine, (folder / "log.txt").open("w", encoding="utf-8") as log_file:
        held.hand_to(engine.pid)
        assert engine.stdin is not None
        assert engine.stdout is not None
        engine.stdin.write(json.dumps(asked) + "\n")
        engine.stdin.flush()
        for line in engine.stdout:
            log_file.write(line)
            log_file.flush()
            if event := _event(line):
                _note(run, event)
                watcher(event)
        status = engine.wait()
    _conclude(run, status, folder / "log.txt")


@contextmanager
def _engine(environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The process that does the run, in a group of its own; the group is ended when the block is left early."""
    engine = subprocess.Popen(
        [sys.executable, "-m", "workflows.engine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    try:
        with _signals_as_interrupts():
            yield engine
    finally:
        _end_group(engine)
        for stream in (engine.stdin, engine.stdout):
            if stream is not None:
                stream.close()
        _clear(folder / "tmp")


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Inside, SIGTERM ends the run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_group(engine: subprocess.Popen[str], patience: float = 5.0) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(engine.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            engine.poll()  # a child that ended stays in its group until it is asked for
            try:
                os.killpg(engine.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
    engine.wait()


def _clear(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _event(line: str) -> dict[str, Any] | None:
    text = line.strip()
    if not text.startswith('{"event"'):
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "stage" in event else None


def _note(run: Run, event: dict[str, Any]) -> None:
    steps = run.record["stages"]
    if event["event"] == "started":
        steps.append({"stage": event["stage"], "key": event["key"], "state": "running"})
    elif event["event"] in ("finished", "reused") and steps:
        kept = {name: event[name] for name in ("seconds", "outputs", "values")}
        steps[-1].update(kept, state=event["event"])
    elif event["event"] == "failed" and steps:
        steps[-1].update(state="failed", why=event["why"])


def _conclude(run: Run, status: int, log_file: Path) -> None:
    """Say how the run ended, by what its steps left, not by the engine's word alone."""
    unfinished = [step for step in run.stages if step["state"] not in ("finished", "reused")]
    ending = run.last("deploy") or run.last("reject")
    if status == 0 and not unfinished and ending:
        run.record["outcome"] = ending["values"].get("outcome", "refused")
        run.record["sentence"] = ending["values"]["sentence"]
        run.record["in_service"] = ending["values"]["version"]
        return
    run.record["outcome"] = "failed"
    broken = unfinished[-1] if unfinished else {"stage": "the runner"}
    run.record["failed_stage"] = broken["stage"]
    run.record["why"] = broken.get("why", "It ended without saying why.")
    run.record["last_lines"] = _last_lines(log_file)


def _last_lines(log_file: Path) -> list[str]:
    """What the stage that failed said last, without events and the runner's own talk."""
    said: list[str] = []
    for line in log_file.read_text(encoding="utf-8").splitlines():
        event = _event(line)
        if event and event["event"] == "started":
            said = []
        elif not event and line.startswith(" ") and line.strip():  # the runner indents what a stage prints
            said.append(line.removeprefix("    ").rstrip())
    return said[-LAST_LINES:]


def _keep(store: Store, run: Run) -> None:
    store.write(f"{FOLDER}/{run.id}.json", encode("run", run.record))


def find(store: Store, name: str = "") -> Run:
    """The run of that id (its beginning is enough), or the latest; ValueError when there is none."""
    ids = _ids(store)
    if not ids:
        raise ValueError("There is no run yet. Start one with: medloop run --source DIR")
    matching = [run_id for run_id in ids if run_id.startswith(name)]
    if not matching:
        raise ValueError(f"There is no run {name!r}. The latest ones: {', '.join(ids[-5:])}.")
    return _open(store, matching[-1])


def recent(store: Store, count: int = 20) -> list[Run]:
    """The latest runs, the newest first."""
    found = (try_decode("run", store.read(f"{FOLDER}/{run_id}.json")) for run_id in reversed(_ids(store)[-count:]))
    return [Run(record["run"], record) for record in found if record and {"run", "stages"} <= set(record)]


def _ids(store: Store) -> list[str]:
    return [Path(name).stem for name in store.names(FOLDER) if name.endswith(".json")]


def _open(store: Store, run_id: str) -> Run:
    path = f"{FOLDER}/{run_id}.json"
    data = store.read(path)
    if data is None:
        raise FileNotFoundError(f"The record {path} was listed and cannot be read. The store is not whole; restore it.")
    record = decode("run", data, path)
    missing = {"run", "arguments", "by", "started", "outcome", "stages"} - set(record)
    if missing:
        raise ValueError(
            f"The record {path} lacks {', '.join(sorted(missing))}: it was changed. Restore it from a copy."
        )
    if record["outcome"] == "running" and holder(store) != run_id:
        record["outcome"] = "interrupted"  # it was killed before it could say so
    return Run(run_id, record)
