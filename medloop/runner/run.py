"""One run of the loop on this machine: started, watched, recorded, and ended cleanly whatever happens."""

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
from components.shared.ledger import signing, stage_keys
from components.shared.ledger.release_log import read_chain
from components.shared.parsing.json_documents import parse_json
from components.shared.privacy.redaction import Redactor, printable, printable_all, redact_all
from components.shared.runtime import step_log
from components.shared.runtime.interface import stages
from components.shared.runtime.price import read_price
from components.shared.storage.store import Store, open_store
from medloop.runner.lock import Lease, holder, lease
from medloop.settings import Settings, prepare_home, stage_environment

FOLDER = "runs"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""Ids of runs, which become names of files: medloop's own, and those that Kubeflow gives."""
LAST_LINES = 15
LOCK = "lock"
TOLD = {
    "progress": ("done", "total", "note"),
    "finished": ("seconds", "values"),
    "reused": ("seconds", "values"),
    "failed": ("why",),
    "interrupted": ("why",),
}
"""What the events of a stage tell besides which stage it is."""

NOISE = "[KFP Executor "
"""How lines begin that Kubeflow's executor writes for its own makers."""
DONE = ("finished", "reused")


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
        return list(self.record.get("stages", ()))

    @property
    def releases_what_waited(self) -> bool:
        """Whether it is no run of the loop, but released what a person approved of an earlier one."""
        return "decision" in self.record.get("arguments", {})

    def last(self, stage: str) -> dict[str, Any] | None:
        """The last step of that stage, or None."""
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
    """Do a run from beginning to end; gives its record. A broken stage is a record that says so, not an exception."""
    prepare_home(settings)
    read_price()  # a wrong one is told now, and not when it is asked for at the end
    store = open_store(settings.store)
    run = Run(datetime.now(UTC).strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2))
    with lease(store, run.id, take_over) as held:
        by = printable(by or getpass.getuser())
        run.record = {
            "run": run.id,
            "pipeline": pipeline,
            "arguments": arguments,
            "runner": runner,
            "by": by,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "outcome": "running",
            "order": held.number,
        }
        if runner == "docker":
            run.record["images"] = dict(images)
        _keep(store, run)
        begun = time.perf_counter()
        try:
            _work(settings, store, held, run, runner, images, watcher)
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
            _keep(store, run)
    return run


def _work(
    settings: Settings,
    store: Store,
    held: Lease,
    run: Run,
    runner: str,
    images: Mapping[str, str],
    watcher: Watcher,
) -> None:
    folder = settings.runs / run.id
    (folder / "tmp").mkdir(parents=True)
    with _claimed(folder):
        for left in settings.runs.glob("*/tmp"):
            _clear_unclaimed(left.parent)  # of runs that were killed
        _run_engine(settings, store, held, run, runner, images, watcher, folder)


def _run_engine(
    settings: Settings,
    store: Store,
    held: Lease,
    run: Run,
    runner: str,
    images: Mapping[str, str],
    watcher: Watcher,
    folder: Path,
) -> None:
    source, pipeline = run.record["arguments"].get("source", ""), run.record["pipeline"]
    # Only what reads scans needs a key; one that was made here for anything else would later be taken for the loop's.
    environment = {**stage_environment(settings, source, pipeline == "retrain"), "TMPDIR": str(folder / "tmp")}
    environment[step_log.VARIABLE] = run.id
    keys = stage_keys.for_stages(stages())
    for name in (signing.VARIABLE, stage_keys.VARIABLE):
        environment.pop(name, None)  # each stage is given its own, and no other
    asked: dict[str, Any] = {
        "pipeline": pipeline,
        "arguments": {**run.record["arguments"], "store": store.uri, "by": run.record["by"]},
        "runner": runner,
        "images": dict(images),
        "gpus": run.record["arguments"].get("device") == "cuda",
        "root": str(folder / "root"),
        "keys": keys,
    }
    if runner == "docker":
        from medloop.runner.containers import for_containers

        asked |= for_containers(settings, environment, asked["arguments"], images.values())
    with (
        _no_containers_left(store, runner),
        _engine(environment, folder) as engine,
        (folder / "log.txt").open("w", encoding="utf-8") as log_file,
    ):
        held.hand_to(engine.pid)
        assert engine.stdin is not None
        assert engine.stdout is not None
        engine.stdin.write(json.dumps(asked) + "\n")
        engine.stdin.flush()
        hide = Redactor(environment)
        for line in engine.stdout:
            shown = printable(hide(line.rstrip("\n"))) + "\n"
            log_file.write(shown)
            log_file.flush()
            if event := read_event(shown):
                watcher(printable_all(event))
        status = engine.wait()
    run.record["stages"] = step_log.steps(store, run.id)
    _conclude(run, status, folder / "log.txt")


@contextmanager
def _no_containers_left(store: Store, runner: str) -> Iterator[None]:
    """Before the block and after it, no container of this home works on: not even of a run that was killed."""
    if runner != "docker":
        yield
        return
    from medloop.runner import containers

    containers.end(store.uri)
    try:
        yield
    finally:
        containers.end(store.uri)


@contextmanager
def _engine(environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The process that does the run, in a group of its own; the group is ended when the block is left early."""
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


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Inside, the run's folder is known to be in use: a home may hold runs of several stores at a time."""
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _clear_unclaimed(folder: Path) -> None:
    """Remove what a run left on its way, if no one is at work there."""
    with contextlib.suppress(OSError), (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear(folder / "tmp")


def _clear(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def read_event(line: str) -> dict[str, Any] | None:
    """The event of a stage in a line of its log, or None where the line is something else."""
    text = line.strip()
    if not text.startswith('{"event"'):
        return None
    try:
        event = parse_json(text)
    except ValueError:
        return None
    if not isinstance(event, dict) or not {"stage", *TOLD.get(event["event"], ())} <= set(event):
        return None  # of an image that says other things, in the same form
    return event


def _conclude(run: Run, status: int, log_file: Path) -> None:
    """Say how the run ended, by what its steps left, not by the engine's word alone."""
    run.record |= ending(run.stages)
    if run.record["outcome"] == "failed" or status:
        run.record = {"failed_stage": "", "why": _last_word(log_file)} | run.record
        run.record |= {"outcome": "failed", "last_lines": _last_lines(log_file)}


def ending(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """How a run ended that has done these steps: its outcome, and the sentence or the failure that goes with it."""
    last = next((step for step in reversed(steps) if step["stage"] in ("deploy", "reject")), None)
    done = [(step["stage"], step["key"]) for step in steps if step["state"] in DONE]
    broken = [step for step in steps if step["state"] not in DONE and (step["stage"], step.get("key")) not in done]
    if broken:  # the first one: what came after may have broken for its sake
        why = broken[0].get("why", "It ended without saying why.")
        return {"outcome": "failed", "failed_stage": broken[0]["stage"], "why": why}
    if not last:
        return {"outcome": "failed"}
    values = last["values"]
    outcome = values.get("outcome", "refused")
    return {"outcome": outcome, "sentence": values["sentence"], "in_service": values["version"]}


def _last_lines(log_file: Path) -> list[str]:
    """What the stage that failed said last, without events and the runner's own talk."""
    said: list[str] = []
    for line in log_file.read_text(encoding="utf-8").splitlines():
        event = read_event(line)
        if event and event["event"] == "started":
            said = []
        elif not event and line.startswith(" ") and line.strip() and NOISE not in line:  # the runner indents it
            said.append(line.removeprefix("    ").rstrip())
    return said[-LAST_LINES:]


def _last_word(log_file: Path) -> str:
    """What was said last, where no stage said why it ended."""
    lines = [line.strip() for line in log_file.read_text(encoding="utf-8").splitlines() if not read_event(line)]
    return next((line for line in reversed(lines) if line), "It ended without saying why.")


def _keep(store: Store, run: Run) -> None:
    record = {name: value for name, value in run.record.items() if name != "stages"}  # each step keeps its own
    store.write(f"{FOLDER}/{run.id}.json", encode("run", redact_all(record)))


def find(store: Store, name: str = "") -> Run:
    """The run of that id (its beginning is enough), or the latest; ValueError when there is none.

    A run that released what a person approved stands for the one that left it waiting: that has the evidence.
    """
    ids = _ids(store)
    if not ids:
        raise RefusedError("There is no run yet. Start one with: medloop run --source DIR")
    matching = [run_id for run_id in ids if run_id.startswith(name)]
    if not matching:
        raise RefusedError(f"There is no run {name!r}. The latest ones: {', '.join(ids[-5:])}.")
    found = _open(store, matching[-1] if name else _latest(store, ids))
    if found.releases_what_waited and found.record["outcome"] != "failed":  # a failure is its own
        return _open(store, str(found.record["arguments"]["run"]))
    return found


def _latest(store: Store, ids: list[str]) -> str:
    """The run that was started last, by the order in the store: ids are times of clocks, which may have been wrong."""
    try:
        logged = [entry.record.get("run") for entry in read_chain(store)]
    except ValueError:
        return ids[-1]
    latest = next((run_id for run_id in reversed(logged) if run_id in ids), "")
    if not latest:
        return ids[-1]
    for run_id in ids[ids.index(latest) + 1 :]:  # later by the clock
        if run_id in logged:
            continue
        mine, newest = _order(store, run_id), _order(store, latest)
        if not mine or not newest or mine > newest:
            latest = run_id
    return latest


def _order(store: Store, run_id: str) -> int:
    """How many runs were started before, as the lease counted them; 0 where nobody counted."""
    try:
        order = (try_decode("run", store.read(f"{FOLDER}/{run_id}.json")) or {}).get("order")
    except ValueError:
        return 0
    return order if isinstance(order, int) else 0


def only(store: Store, name: str) -> Run:
    """The one run whose id begins so; ValueError where several do: what a person answers for must be named."""
    matching = [run_id for run_id in _ids(store) if run_id.startswith(name)]
    if len(matching) > 1 and name not in matching:
        raise RefusedError(
            f"{len(matching)} runs begin with {name!r}: {', '.join(matching[-5:])}. Name one by more of its id."
        )
    return find(store, name)


def recent(store: Store, count: int = 5, releases: bool = False) -> list[Run]:
    """The latest runs, the newest first; with `releases` also those that only released what a person approved."""
    found: list[Run] = []
    for run_id in reversed(_ids(store)):
        if len(found) == count:
            break
        with contextlib.suppress(ValueError, FileNotFoundError):  # a damaged record is no help to those who ask
            run = _open(store, run_id)
            if releases or not run.releases_what_waited:
                found.append(run)
    return found


def _ids(store: Store) -> list[str]:
    """The runs of this machine and those of which steps on a cluster tell, the oldest first."""
    here = {Path(name).stem: Path(name).stem for name in store.names(FOLDER) if name.endswith(".json")}
    begun = {run_id: at for run_id, at in {**step_log.runs(store), **here}.items() if ID.fullmatch(run_id)}
    return sorted(begun, key=lambda run_id: (begun[run_id], run_id))


def _open(store: Store, run_id: str) -> Run:
    if not ID.fullmatch(run_id):
        raise RefusedError(f"A record of the store names a run by {len(run_id)} characters that no run's id has.")
    path = f"{FOLDER}/{run_id}.json"
    data = store.read(path)
    steps = step_log.steps(store, run_id)
    if data is None:
        return Run(run_id, _on_a_cluster(run_id, steps, len(store.names(f"{step_log.FOLDER}/{run_id}"))))
    record = decode("run", data, path)
    missing = {"run", "arguments", "by", "started", "outcome"} - set(record)
    if missing:
        raise RefusedError(
            f"The record {path} lacks {', '.join(sorted(missing))}: it was changed. Restore it from a copy."
        )
    if record["outcome"] == "running" and holder(store) != run_id:
        record["outcome"] = "interrupted"  # it was killed before it could say so
    if record["outcome"] == "failed":
        record = {"failed_stage": "", "why": "It ended without saying why.", "last_lines": [], **record}
    return Run(run_id, {**record, "stages": steps})


def _on_a_cluster(run_id: str, steps: list[dict[str, Any]], written: int) -> dict[str, Any]:
    """The record of a run that no one started from here, as its steps tell it."""
    if not steps:
        raise FileNotFoundError(f"The steps of {run_id} were listed and cannot be read. The store is not whole.")
    asked: dict[str, Any] = next(
        (step["parameters"] for step in steps if step["stage"] == "resolve" and "parameters" in step), {}
    )
    by = next((step["parameters"]["by"] for step in steps if step.get("parameters", {}).get("by")), "")
    ended = {"outcome": "running"} if _goes_on(steps) else ending(steps)
    if missing := written - len(steps):
        damaged = "one record of its steps is" if missing == 1 else f"{missing} records of its steps are"
        why = f"{damaged} damaged, so nobody knows. Restore the store from a copy."
        ended = {"outcome": "unknown", "failed_stage": "", "why": why}
    spent = _moment(steps[-1]) - _moment(steps[0])
    return {
        "run": run_id,
        "arguments": {"source": asked.get("source", ""), **asked.get("asked", {})},
        "runner": "cluster",
        "by": by or "a schedule or another client",
        "started": steps[0]["at"],
        "seconds": round(spent.total_seconds() + steps[-1].get("seconds", 0.0), 2),
        "last_lines": [],
        "stages": steps,
        **ended,
    }


def _goes_on(steps: list[dict[str, Any]]) -> bool:
    """Whether a run on a cluster may still go on: its last step is no ending, and has not failed."""
    last = steps[-1]
    return last["state"] == "started" or (last["state"] != "failed" and last["stage"] not in ("deploy", "reject"))


def _moment(step: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(step["at"])
