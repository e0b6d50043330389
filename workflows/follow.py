"""Watches a run on a Kubeflow Pipelines server until it ends: states, what the stages say, and how it came out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from components.shared.interface import stages
from workflows.run import LAST_LINES, Watcher, read_event
from workflows.server import Server

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
EXECUTORS = ("system-container-impl", "retry-system-container-impl")
"""What Kubeflow calls the templates of the pods in which stages work."""

LONG = 120.0
"""Seconds after which a stage that does not begin to run deserves a word."""


@dataclass
class Stage:
    """One step of the run, as the server and its own words tell it."""

    name: str
    state: str = ""
    since: float = field(default_factory=time.monotonic)
    pods: tuple[str, ...] = ()
    heard: dict[str, int] = field(default_factory=dict)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    values: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    spoke: bool = False
    warned: bool = False


@dataclass
class Outcome:
    """How a run ended."""

    run: str
    state: str
    stages: list[Stage]

    @property
    def failed(self) -> Stage | None:
        """The stage that failed, or None."""
        return next((stage for stage in self.stages if stage.state == "FAILED"), None)

    @property
    def ending(self) -> dict[str, Any]:
        """What deploy or reject gave: outcome, version, sentence; empty where they did not say."""
        last = next((s for s in reversed(self.stages) if s.name in ("deploy", "reject") and s.values), None)
        return {"outcome": "refused", **last.values} if last else {}


def follow(
    server: Server, run_id: str, watcher: Watcher, say: Callable[[str], None], pause: float, patience: float | None
) -> Outcome:
    """Watch until the run has ended; TimeoutError when it has not within `patience` seconds."""
    seen: dict[str, Stage] = {}
    begun, state, warned = time.monotonic(), "", False
    while True:
        run = server.run(run_id)
        if run.get("state") != state:
            state = run.get("state", "")
            say(f"run       {state.lower()}")
        for node, stage in _stages(run, seen):
            _note(node, stage, say)
            _listen(server, run_id, stage, watcher)
        if state in ENDED:
            return Outcome(run_id, state, list(seen.values()))
        waited = time.monotonic() - begun
        if not seen and waited > LONG and not warned:
            warned = True
            say(
                f"No step has begun for {waited:.0f} s. The workflow controller may be down or the quota used up: "
                f"kubectl get workflows -A -l pipeline/runid={run_id}"
            )
        if patience is not None and waited > patience:
            raise TimeoutError(
                f"The run {run_id} is {state.lower()} after {waited:.0f} s. It goes on without being watched."
            )
        time.sleep(pause)


def _stages(run: dict[str, Any], seen: dict[str, Stage]) -> Iterator[tuple[dict[str, Any], Stage]]:
    """The run's nodes that are stages, each with what is known of it, in the order in which they began."""
    nodes = (run.get("run_details") or {}).get("task_details") or []
    known = stages()
    for node in sorted(nodes, key=lambda node: (_begun(node), node["task_id"])):
        name, _, number = node["display_name"].rpartition("-")
        name = name if number.isdigit() else node["display_name"]
        if name in known:
            stage = seen.setdefault(node["task_id"], Stage(name))
            stage.pods = tuple(_pods(node, nodes))
            yield node, stage


def _begun(node: dict[str, Any]) -> str:
    start = node.get("start_time") or ""
    return "~" if start < "1971" else str(start)  # the server writes the year 1 for "not yet"


def _pods(node: dict[str, Any], nodes: list[dict[str, Any]]) -> Iterator[str]:
    """The names of the pods in which a stage works: what the server calls them, or as Argo makes names of node ids."""
    by_hash = {_hash(each["pod_name"]): each for each in nodes if each.get("pod_name")}
    for child in node.get("child_tasks") or []:
        workflow, _, number = child.get("pod_name", "").rpartition("-")
        there = by_hash.get(number)
        if there is None:
            yield from (f"{workflow}-{template}-{number}" for template in EXECUTORS)
        elif "system-container-impl" in there["pod_name"]:
            yield there["pod_name"]
        if there is not None:
            yield from _pods(there, nodes)  # a retried executor has a node for each try


def _hash(pod: str) -> str:
    return pod.rpartition("-")[2]


def _note(node: dict[str, Any], stage: Stage, say: Callable[[str], None]) -> None:
    """Tell of a stage's new state, where it does not tell itself."""
    state = node.get("state") or "PENDING"
    if state != stage.state:
        stage.state, stage.since = state, time.monotonic()
        if not stage.spoke and state in ("RUNNING", "SUCCEEDED", "FAILED"):
            say(f"{stage.name:9} {state.lower()}")
    waited = time.monotonic() - stage.since
    if state == "PENDING" and waited > LONG and not stage.warned:
        stage.warned = True
        say(
            f"{stage.name} has been pending for {waited:.0f} s: its image cannot be pulled, or no node has room for "
            f"it. See: kubectl describe pod -l component={stage.name}, or its page in the server."
        )


def _listen(server: Server, run_id: str, stage: Stage, watcher: Watcher) -> None:
    """Hand on what a stage has said since the last time."""
    if stage.state in ("", "PENDING", "SKIPPED", "RUNTIME_STATE_UNSPECIFIED"):
        return
    for pod in stage.pods:
        if stage.heard.get(pod) == -1:
            continue
        lines = server.log(run_id, pod).splitlines()
        for line in lines[stage.heard.get(pod, 0) :]:
            event = read_event(line)
            if event is None:
                stage.last_lines.append(line)
                continue
            stage.spoke = True
            stage.why = event.get("why", "") if event["event"] == "failed" else stage.why
            if event["event"] in ("finished", "reused"):
                stage.values = event["values"]
            watcher(event)
        stage.heard[pod] = -1 if stage.state in ENDED and lines else len(lines)
