"""Watch a run on a Kubeflow Pipelines server until it ends: states, log events and outcome."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.shared.runtime.stage_interface import stages
from medloop.kubeflow.server import Server
from medloop.runner.run import KFP_PREFIX, LAST_LINES, Watcher, read_event
from workflows.placement import Placement

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
EXECUTORS = ("retry-system-container-impl", "system-container-impl")
"""Template names of the pods of stages without labels and annotations."""

PENDING_SECONDS = 120.0
"""Seconds after which a pending stage is reported."""

UNREACHABLE_SECONDS = 900.0
"""Seconds without a response after which watching ends. Servers restart, and runs take days."""

NO_REASON = "It ended without a message, so it was probably killed: check memory (OOMKilled), node and timeout."


@dataclass
class Stage:
    """One step of the run, from the server's state and the stage's log."""

    name: str
    state: str = ""
    since: float = field(default_factory=time.monotonic)
    tries: tuple[tuple[str, ...], ...] = ()
    lines_read: dict[str, int] = field(default_factory=dict)
    """Number of log lines read of each pod; -1 after the end."""
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    values: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    has_events: bool = False
    warned: bool = False


@dataclass
class Outcome:
    """The final state of a run."""

    run: str
    state: str
    stages: list[Stage]
    stopped: bool = False

    @property
    def failed(self) -> Stage | None:
        """The stage that failed, or None."""
        return next((stage for stage in self.stages if stage.state == "FAILED"), None)

    @property
    def ending(self) -> dict[str, Any]:
        """The values of deploy or reject: outcome, version, sentence; empty if unknown."""
        last = next((s for s in reversed(self.stages) if s.name in ("deploy", "reject") and s.values), None)
        return {"outcome": "refused", **last.values} if last else {}


def follow(
    server: Server,
    run_id: str,
    watcher: Watcher,
    show: Callable[[str], None],
    pause: float,
    timeout: float | None,
    pending_seconds: float = PENDING_SECONDS,
    unreachable_seconds: float = UNREACHABLE_SECONDS,
    cluster: Mapping[str, Placement] | None = None,
) -> Outcome:
    """Watch a run until it ends; raise TimeoutError if it does not end within `timeout` seconds.

    Report what is pending for `pending_seconds`, and raise the server's error after `unreachable_seconds` without a
    response. `cluster` is the placement of the stages, if known.
    """
    seen: dict[str, Stage] = {}
    begun = responded = time.monotonic()
    state, stopped, warned, lost = "pending", False, False, False
    while True:
        try:
            run = server.run(run_id)
            responded, lost = time.monotonic(), False
        except ConnectionError as error:
            if time.monotonic() - responded > unreachable_seconds:
                raise
            if not lost:
                show(f"! {error} The run continues; retrying.")
            run, lost = {"state": state}, True
        if run.get("state") != state:
            state = run.get("state", "")
            stopped = stopped or state in ("CANCELING", "CANCELED")
            show(f"run       {state.lower()}")
        for node, stage in _stages(run, seen, cluster):
            _show_state(server, run_id, node, stage, show, pending_seconds)
            _read_log(server, run_id, stage, watcher)
        if state in ENDED:
            return Outcome(run_id, state, list(seen.values()), stopped)
        waited = time.monotonic() - begun
        if not seen and waited > pending_seconds and not warned:
            warned = True
            show(
                f"No step has started for {waited:.0f} s. The workflow controller may be down or the quota exhausted: "
                f"kubectl get workflows -A -l pipeline/runid={run_id}"
            )
        if timeout is not None and waited > timeout:
            raise TimeoutError(f"The run {run_id} is {state.lower()} after {waited:.0f} s.")
        time.sleep(pause)


def _stages(
    run: dict[str, Any], seen: dict[str, Stage], cluster: Mapping[str, Placement] | None
) -> Iterator[tuple[dict[str, Any], Stage]]:
    """Yield the run's nodes that are stages, with their state so far, in the order of their start."""
    nodes = (run.get("run_details") or {}).get("task_details") or []
    known = stages()
    waits = any(node["display_name"].startswith("executor") and node.get("state") == "PENDING" for node in nodes)
    for node in sorted(nodes, key=lambda node: (_begun(node), node["task_id"])):
        full_name = node["display_name"].removesuffix("-driver")
        name, _, number = full_name.rpartition("-")
        name = name if number.isdigit() else full_name
        if name not in known:
            continue
        if full_name != node["display_name"]:
            if node.get("state") == "FAILED":
                why = "Kubeflow could not start it: its driver failed. See the driver's log on the page of the run."
                yield node, seen.setdefault(node["task_id"], Stage(name, why=why))
            continue
        stage = seen.setdefault(node["task_id"], Stage(name))
        stage.tries = tuple(_tries(node, nodes, _templates((cluster or {}).get(name))))
        # Kubeflow shows a stage as running while its pod is pending. Only one stage runs at a time, so a pending pod
        # belongs to it.
        yield ({**node, "state": "PENDING"} if waits and node.get("state") == "RUNNING" else node), stage


def _begun(node: dict[str, Any]) -> str:
    start = node.get("start_time") or ""
    return "~" if start < "1971" else str(start)  # the server uses the year 1 for "not started"


def _tries(node: dict[str, Any], nodes: list[dict[str, Any]], templates: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the possible pod names of each try of a stage, in order.

    Most servers return no pod names, only the ids of child nodes. An id ends with a hash of the node's full name, and
    so does the name of its pod.
    """
    all_ids = {child.get("pod_name", "") for parent in nodes for child in parent.get("child_tasks") or []}
    for child in node.get("child_tasks") or []:
        workflow, _, number = child.get("pod_name", "").rpartition("-")
        if not number.isdigit():
            continue
        retried: list[int] = []
        while f"{workflow}-{(digest := _hash(f'({len(retried)})', int(number)))}" in all_ids:
            retried.append(digest)
        for digest in retried or [int(number)]:
            names = (other["pod_name"] for other in nodes if other.get("pod_name", "").endswith(f"-{digest}"))
            yield (*names, *(f"{workflow}-{template}-{digest}" for template in templates))


def _hash(text: str, prefix_hash: int = 2166136261) -> int:
    """Return Argo's hash of a name (FNV-1a, 32 bits), continuing from the hash of its prefix."""
    value = prefix_hash
    for byte in text.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return value


def _templates(placement: Placement | None) -> tuple[str, ...]:
    """Return the possible template names of a stage's pod; they contain the number of labels and annotations."""
    if placement and (placement.annotations or placement.labels):
        counts = f"metadata-{len(placement.annotations)}-{len(placement.labels)}-"
        return (*(counts + name for name in EXECUTORS), *EXECUTORS)
    return EXECUTORS


def _show_state(
    server: Server, run_id: str, node: dict[str, Any], stage: Stage, show: Callable[[str], None], pending_seconds: float
) -> None:
    """Show the new state of a stage that has logged no events, and report a long pending time."""
    state = node.get("state") or "PENDING"
    if state != stage.state:
        stage.state, stage.since = state, time.monotonic()
        if not stage.has_events and state in ("RUNNING", "SUCCEEDED", "FAILED"):
            show(f"{stage.name:9} {state.lower()}")
    waited = time.monotonic() - stage.since
    if state == "PENDING" and waited > pending_seconds and not stage.warned:
        stage.warned = True
        pods = (name for names in reversed(stage.tries) for name in names)
        reason = next(filter(None, (server.waiting_reason(run_id, pod) for pod in pods)), "")
        why = f"reason: {reason}" if reason else "its image cannot be pulled, or no node has enough resources"
        show(
            f"{stage.name} has been pending for {waited:.0f} s: {why}. See: kubectl describe pods -A -l "
            f"pipeline/runid={run_id}"
        )


def _read_log(server: Server, run_id: str, stage: Stage, watcher: Watcher) -> None:
    """Pass new log events of a stage to the watcher; read only complete lines while it is running."""
    if stage.state in ("", "SKIPPED", "RUNTIME_STATE_UNSPECIFIED"):
        return
    for names in stage.tries:
        known = next((name for name in names if name in stage.lines_read), "")
        if stage.lines_read.get(known) == -1:
            continue
        logs = ((name, server.log(run_id, name)) for name in ([known] if known else names))
        pod, text = next(((name, text) for name, text in logs if text), ("", ""))
        lines = (text if stage.state in ENDED else text[: text.rfind("\n") + 1]).splitlines()
        for line in lines[stage.lines_read.get(pod, 0) :]:
            event = read_event(line)
            if event is None:
                if KFP_PREFIX not in line:
                    stage.last_lines.append(line)
                continue
            stage.has_events = True
            stage.why = event.get("why", "") if event["event"] == "failed" else stage.why
            if event["event"] in ("finished", "reused"):
                stage.values = event["values"]
            watcher(event)
        if pod:
            stage.lines_read[pod] = -1 if stage.state in ENDED else len(lines)
