"""Runs of the loop: start one on this machine, record it, and find recorded ones."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from components.shared.contracts import decode, encode, try_decode
from components.shared.errors import RefusedError
from components.shared.ledger import signing, stage_signing
from components.shared.ledger.release_log import read_chain, versions
from components.shared.parsing.json_documents import parse_json
from components.shared.privacy.secret_redaction import Redactor, printable, printable_all, redact_all
from components.shared.runtime import step_log
from components.shared.runtime.price import read_price
from components.shared.runtime.stage_interface import stages
from components.shared.storage.store import Store, open_store
from medloop.runner.lock import Lease, holder, lease
from medloop.settings import Settings, prepare_home, stage_environment

FOLDER = "runs"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Run ids of medloop and Kubeflow. They become file names."""
VERSION = re.compile(r"v\d+")
LAST_LINES = 15
LOCK = "lock"
NO_REASON = "It ended without a reason."
EVENT_FIELDS = {
    "progress": ("done", "total", "note"),
    "finished": ("seconds", "values"),
    "reused": ("seconds", "values"),
    "failed": ("why",),
    "interrupted": ("why",),
}
"""Fields of each event besides the stage."""

KFP_PREFIX = "[KFP Executor "
"""Prefix of the debug lines of Kubeflow's executor."""
DONE = ("finished", "reused")


class Watcher(Protocol):
    """Receiver of a run's events."""

    def __call__(self, event: dict[str, Any]) -> None: ...


@dataclass
class Run:
    """A run as recorded in the store."""

    id: str
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The steps in order: stage, key, seconds, state, outputs, values."""
        return list(self.record.get("stages", ()))

    @property
    def is_approved_release(self) -> bool:
        """Whether this run only released the approved model of an earlier run."""
        return "decision" in self.record.get("arguments", {})

    def last(self, stage: str) -> dict[str, Any] | None:
        """Return the last step of a stage, or None."""
        return next((step for step in reversed(self.stages) if step["stage"] == stage), None)


def start(
    settings: Settings,
    arguments: dict[str, Any],
    runner: str,
    images: Mapping[str, str],
    watcher: Watcher,
    take_over: bool = False,
    pipeline: str = "retrain",
    by: str = "",
) -> Run:
    """Execute a run and return it. A failed stage is recorded in the run and raises no exception."""
    prepare_home(settings)
    read_price()  # report an invalid price before the run, not after it
    store = open_store(settings.store)
    run = Run(datetime.now(UTC).strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2))
    with lease(store, run.id, take_over) as lock:
        by = printable(by or getpass.getuser())
        run.record = {
            "run": run.id,
            "pipeline": pipeline,
            "arguments": arguments,
            "runner": runner,
            "by": by,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "outcome": "running",
            "order": lock.number,
        }
        if runner == "docker":
            run.record["images"] = dict(images)
        _save(store, run)
        begun = time.perf_counter()
        try:
            folder = settings.runs / run.id
            (folder / "tmp").mkdir(parents=True)
            with _claimed(folder):
                for left in settings.runs.glob("*/tmp"):
                    _clear_unclaimed(left.parent)  # leftovers of killed runs
                _run_engine(settings, store, lock, run, runner, images, watcher, folder)
        except KeyboardInterrupt:
            run.record["outcome"] = "interrupted"
            raise
        except Exception as error:
            reason = str(error.args[-1] if error.args else error) or type(error).__name__
            run.record |= {"outcome": "failed", "failed_stage": "", "why": reason, "last_lines": []}
            raise
        finally:
            run.record["seconds"] = round(time.perf_counter() - begun, 2)
            if run.record["outcome"] == "running":
                run.record["outcome"] = "failed"
            _save(store, run)
    return run


def _run_engine(
    settings: Settings,
    store: Store,
    lock: Lease,
    run: Run,
    runner: str,
    images: Mapping[str, str],
    watcher: Watcher,
    folder: Path,
) -> None:
    source, pipeline = run.record["arguments"].get("source", ""), run.record["pipeline"]
    # Only pipelines that read scans need a hash key. One created for another would later pass for the loop's own.
    environment = {**stage_environment(settings, source, pipeline == "retrain"), "TMPDIR": str(folder / "tmp")}
    environment[step_log.VARIABLE] = run.id
    keys = stage_signing.for_stages(stages())
    for name in (signing.VARIABLE, stage_signing.VARIABLE):
        environment.pop(name, None)  # each stage gets only its own key
    request: dict[str, Any] = {
        "pipeline": pipeline,
        "arguments": {**run.record["arguments"], "store": store.uri, "by": run.record["by"]},
        "runner": runner,
        "images": dict(images),
        "gpus": run.record["arguments"].get("device") == "cuda",
        "root": str(folder / "root"),
        "keys": keys,
    }
    if runner == "docker":
        from medloop.runner.containers import container_options

        request |= container_options(settings, environment, request["arguments"], images.values())
    with (
        _no_containers_left(store, runner),
        _engine(environment, folder) as engine,
        (folder / "log.txt").open("w", encoding="utf-8") as log_file,
    ):
        lock.hand_to(engine.pid)
        assert engine.stdin is not None
        assert engine.stdout is not None
        engine.stdin.write(json.dumps(request) + "\n")
        engine.stdin.flush()
        redact = Redactor(environment)
        for raw in engine.stdout:
            line = printable(redact(raw.rstrip("\n"))) + "\n"
            log_file.write(line)
            log_file.flush()
            if event := read_event(line):
                watcher(printable_all(event))
        status = engine.wait()
    run.record["stages"] = step_log.steps(store, run.id)
    _conclude(run, status, folder / "log.txt")


@contextmanager
def _no_containers_left(store: Store, runner: str) -> Iterator[None]:
    """Remove the store's containers before and after the block, including those of killed runs."""
    if runner != "docker":
        yield
        return
    from medloop.runner import containers

    containers.remove(store.uri)
    try:
        yield
    finally:
        containers.remove(store.uri)


@contextmanager
def _engine(environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the process of the run in its own process group; terminate the group at the end of the block."""
    engine = subprocess.Popen(
        [sys.executable, "-m", "medloop.runner.engine"],
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
    """Treat SIGTERM like Ctrl-C during the block."""
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


def _end_group(engine: subprocess.Popen[str], grace: float = 5.0) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(engine.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            engine.poll()  # an ended child stays in its group until it is reaped
            try:
                os.killpg(engine.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
    engine.wait()


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Lock the run's folder during the block, since runs of several stores can use one home."""
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _clear_unclaimed(folder: Path) -> None:
    """Remove the temporary files of a run that is not active."""
    with contextlib.suppress(OSError), (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear(folder / "tmp")


def _clear(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def read_event(line: str) -> dict[str, Any] | None:
    """Return the event in a line of a stage's log, or None if the line is not an event."""
    text = line.strip()
    if not text.startswith('{"event"'):
        return None
    try:
        event = parse_json(text)
    except ValueError:
        return None
    if not isinstance(event, dict) or not {"stage", *EVENT_FIELDS.get(event["event"], ())} <= set(event):
        return None  # written by a custom image
    return event


def _conclude(run: Run, status: int, log_file: Path) -> None:
    """Record the outcome, according to the recorded steps and the engine's exit status."""
    run.record |= ending(run.stages)
    if run.record["outcome"] == "failed" or status:
        run.record = {"failed_stage": "", "why": _last_log_line(log_file)} | run.record
        run.record |= {"outcome": "failed", "last_lines": _last_lines(log_file)}


def ending(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the outcome of a run with these steps, and the sentence or the failure that belongs to it."""
    last = next((step for step in reversed(steps) if step["stage"] in ("deploy", "reject")), None)
    done = [(step["stage"], step["key"]) for step in steps if step["state"] in DONE]
    failed = [step for step in steps if step["state"] not in DONE and (step["stage"], step.get("key")) not in done]
    if failed:  # report the first failure: it may have caused the others
        why = failed[0].get("why", NO_REASON)
        return {"outcome": "failed", "failed_stage": failed[0]["stage"], "why": why}
    if not last:
        return {"outcome": "failed"}
    values = last["values"]
    outcome = values.get("outcome", "refused")
    return {"outcome": outcome, "sentence": values["sentence"], "in_service": values["version"]}


def _last_lines(log_file: Path) -> list[str]:
    """Return the last lines of the failed stage, without events and messages of the runner."""
    lines: list[str] = []
    for line in log_file.read_text(encoding="utf-8").splitlines():
        event = read_event(line)
        if event and event["event"] == "started":
            lines = []
        elif not event and line.startswith(" ") and line.strip() and KFP_PREFIX not in line:  # the runner indents it
            lines.append(line.removeprefix("    ").rstrip())
    return lines[-LAST_LINES:]


def _last_log_line(log_file: Path) -> str:
    """Return the last line of the log, for failures without a reason."""
    lines = [line.strip() for line in log_file.read_text(encoding="utf-8").splitlines() if not read_event(line)]
    return next((line for line in reversed(lines) if line), NO_REASON)


def _save(store: Store, run: Run) -> None:
    record = {name: value for name, value in run.record.items() if name != "stages"}  # steps have their own records
    store.write(f"{FOLDER}/{run.id}.json", encode("run", redact_all(record)))


def find(store: Store, name: str = "") -> Run:
    """Return the run whose id begins with `name`, or that released the version `name`, or the latest run.

    Raise RefusedError if there is none.
    For a run that only released an approved model, return the run that trained it, since it has the evidence.
    """
    ids = _ids(store)
    if not ids:
        raise RefusedError("There is no run yet. Start one with: medloop run --source DIR")
    if VERSION.fullmatch(name):
        entry = versions(read_chain(store)).get(name)
        run_id = str(entry.record.get("run", "")) if entry else ""
        if run_id not in ids:
            what = f"The run that released {name} is not in the store" if entry else f"There is no version {name!r}"
            raise RefusedError(f"{what}. `medloop models` lists the versions.")
        name = run_id
    matching = [run_id for run_id in ids if run_id.startswith(name)]
    if not matching:
        raise RefusedError(f"There is no run {name!r}. The latest runs: {', '.join(ids[-5:])}.")
    run = _open(store, matching[-1] if name else _latest(store, ids))
    if run.is_approved_release and run.record["outcome"] != "failed":
        return _open(store, str(run.record["arguments"]["run"]))
    return run


def _latest(store: Store, ids: list[str]) -> str:
    """Return the run that was started last, by its order in the store, since clocks may be wrong."""
    try:
        logged = [entry.record.get("run") for entry in read_chain(store)]
    except ValueError:
        return ids[-1]
    latest = next((run_id for run_id in reversed(logged) if run_id in ids), "")
    if not latest:
        return ids[-1]
    for run_id in ids[ids.index(latest) + 1 :]:  # later according to the clock
        if run_id in logged:
            continue
        mine, newest = _order(store, run_id), _order(store, latest)
        if not mine or not newest or mine > newest:
            latest = run_id
    return latest


def _order(store: Store, run_id: str) -> int:
    """Return the number of the run's lock, or 0 if it has none."""
    try:
        order = (try_decode("run", store.read(f"{FOLDER}/{run_id}.json")) or {}).get("order")
    except ValueError:
        return 0
    return order if isinstance(order, int) else 0


def find_unique(store: Store, name: str) -> Run:
    """Return the only run whose id begins with `name`; raise RefusedError if there are several."""
    matching = [run_id for run_id in _ids(store) if run_id.startswith(name)]
    if len(matching) > 1 and name not in matching:
        raise RefusedError(
            f"{len(matching)} runs begin with {name!r}: {', '.join(matching[-5:])}. Give more characters of the id."
        )
    return find(store, name)


def recent(store: Store, count: int = 5, releases: bool = False) -> list[Run]:
    """Return the latest runs, newest first; `releases` includes those that only released an approved model."""
    runs: list[Run] = []
    for run_id in reversed(_ids(store)):
        if len(runs) == count:
            break
        with contextlib.suppress(ValueError, FileNotFoundError):  # skip damaged records
            run = _open(store, run_id)
            if releases or not run.is_approved_release:
                runs.append(run)
    return runs


def _ids(store: Store) -> list[str]:
    """Return the ids of local runs and of runs with recorded cluster steps, oldest first."""
    local = {Path(name).stem: Path(name).stem for name in store.names(FOLDER) if name.endswith(".json")}
    begun = {run_id: at for run_id, at in {**step_log.runs(store), **local}.items() if ID.fullmatch(run_id)}
    return sorted(begun, key=lambda run_id: (begun[run_id], run_id))


def _open(store: Store, run_id: str) -> Run:
    if not ID.fullmatch(run_id):
        raise RefusedError(f"A record of the store contains an invalid run id of {len(run_id)} characters.")
    path = f"{FOLDER}/{run_id}.json"
    data = store.read(path)
    steps = step_log.steps(store, run_id)
    if data is None:
        return Run(run_id, _cluster_record(run_id, steps, len(store.names(f"{step_log.FOLDER}/{run_id}"))))
    record = decode("run", data, path)
    missing = {"run", "arguments", "by", "started", "outcome"} - set(record)
    if missing:
        raise RefusedError(
            f"The record {path} lacks {', '.join(sorted(missing))}, so it was changed. Restore it from a copy."
        )
    if record["outcome"] == "running" and holder(store) != run_id:
        record["outcome"] = "interrupted"  # it was killed
    if record["outcome"] == "failed":
        record = {"failed_stage": "", "why": NO_REASON, "last_lines": [], **record}
    return Run(run_id, {**record, "stages": steps})


def _cluster_record(run_id: str, steps: list[dict[str, Any]], written: int) -> dict[str, Any]:
    """Return the record of a cluster run, derived from its steps; `written` is the number of step records."""
    if not steps:
        raise FileNotFoundError(f"The steps of {run_id} are listed but cannot be read. The store is incomplete.")
    resolved: dict[str, Any] = next(
        (step["parameters"] for step in steps if step["stage"] == "resolve" and "parameters" in step), {}
    )
    by = next((step["parameters"]["by"] for step in steps if step.get("parameters", {}).get("by")), "")
    last = steps[-1]
    unfinished = last["state"] != "failed" and last["stage"] not in ("deploy", "reject")
    outcome = {"outcome": "running"} if last["state"] == "started" or unfinished else ending(steps)
    if missing := written - len(steps):
        damaged = "one record of its steps is" if missing == 1 else f"{missing} records of its steps are"
        why = f"{damaged} damaged, so the outcome is unknown. Restore the store from a copy."
        outcome = {"outcome": "unknown", "failed_stage": "", "why": why}
    elapsed = datetime.fromisoformat(last["at"]) - datetime.fromisoformat(steps[0]["at"])
    return {
        "run": run_id,
        "arguments": {"source": resolved.get("source", ""), **resolved.get("asked", {})},
        "runner": "cluster",
        "by": by or "a schedule or another client",
        "started": steps[0]["at"],
        "seconds": round(elapsed.total_seconds() + last.get("seconds", 0.0), 2),
        "last_lines": [],
        "stages": steps,
        **outcome,
    }
