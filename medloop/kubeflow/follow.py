"""Watches a run on a Kubeflow Pipelines server until it ends: states, what the stages say, and how it came out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.shared.runtime.interface import stages
from medloop.kubeflow.server import Server
from medloop.runner.run import LAST_LINES, NOISE, Watcher, read_event
from workflows.placement import Placement

ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
EXECUTORS = ("retry-system-container-impl", "system-container-impl")
"""What Kubeflow calls the templates of the pods in which stages work, as far as nothing is asked for that it counts."""

LONG = 120.0
"""Seconds after which a stage that does not begin to run deserves a word."""

BLIND = 900.0
"""Seconds without an answer after which watching is given up: servers are restarted, and runs take days."""

UNSAID = "It ended without a word, as what is killed does: look at its memory (OOMKilled), its node and its timeout."


@dataclass
class Stage:
    """One step of the run, as the server and its own words tell it."""

    name: str
    state: str = ""
    since: float = field(default_factory=time.monotonic)
    tries: tuple[tuple[str, ...], ...] = ()
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
    stopped: bool = False

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
    server: Server,
    run_id: str,
    watcher: Watcher,
    say: Callable[[str], None],
    pause: float,
    patience: float | None,
    long: float = LONG,
    blind: float = BLIND,
    cluster: Mapping[str, Placement] | None = None,
) -> Outcome:
    """Watch until the run has ended; TimeoutError when it has not within `patience` seconds.

    After `long` seconds a word is said of what does not begin; after `blind` ones without an answer of the server
    watching ends with its error. `cluster` says how the stages were placed, where that is known.
    """
    seen: dict[str, Stage] = {}
    begun = heard = time.monotonic()
    state, stopped, warned, lost = "pending", False, False, False
    while True:
        try:
            run = server.run(run_id)
            heard, lost = time.monotonic(), False
        except ConnectionError as error:
            if time.monotonic() - heard > blind:
                raise
            if not lost:
                say(f"! {error} The run goes on; it is asked for again.")
            run, lost = {"state": state}, True
        if run.get("state") != state:
            state = run.get("state", "")
            stopped = stopped or state in ("CANCELING", "CANCELED")
            say(f"run       {state.lower()}")
        for node, stage in _stages(run, seen, cluster):
            _note(server, run_id, node, stage, say, long)
            _listen(server, run_id, stage, watcher)
        if state in ENDED:
            return Outcome(run_id, state, list(seen.values()), stopped)
        waited = time.monotonic() - begun
        if not seen and waited > long and not warned:
            warned = True
            say(
                f"No step has begun for {waited:.0f} s. The workflow controller may be down or the quota used up: "
                f"kubectl get workflows -A -l pipeline/runid={run_id}"
            )
        if patience is not None and waited > patience:
            raise TimeoutError(f"The run {run_id} is {state.lower()} after {waited:.0f} s.")
        time.sleep(pause)


def _stages(
    run: dict[str, Any], seen: dict[str, Stage], cluster: Mapping[str, Placement] | None
) -> Iterator[tuple[dict[str, Any], Stage]]:
    """The run's nodes that are stages, each with what is known of it, in the order in which they began."""
    nodes = (run.get("run_details") or {}).get("task_details") or []
    known = stages()
    waits = any(node["display_name"].startswith("executor") and node.get("state") == "PENDING" for node in nodes)
    for node in sorted(nodes, key=lambda node: (_begun(node), node["task_id"])):
        shown = node["display_name"].removesuffix("-driver")
        name, _, number = shown.rpartition("-")
        name = name if number.isdigit() else shown
        if name not in known:
            continue
        if shown != node["display_name"]:
            if node.get("state") == "FAILED":
                why = "Kubeflow could not prepare it: its driver failed. The driver's log, on the run's page, says why."
                yield node, seen.setdefault(node["task_id"], Stage(name, why=why))
            continue
        stage = seen.setdefault(node["task_id"], Stage(name))
        stage.tries = tuple(_tries(node, nodes, _templates((cluster or {}).get(name))))
        # A stage runs, to Kubeflow, while its pod waits; and of one stage at a time each pod that waits is that one's.
        yield ({**node, "state": "PENDING"} if waits and node.get("state") == "RUNNING" else node), stage


def _begun(node: dict[str, Any]) -> str:
    start = node.get("start_time") or ""
    return "~" if start < "1971" else str(start)  # the server writes the year 1 for "not yet"


def _tries(node: dict[str, Any], nodes: list[dict[str, Any]], templates: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The tries of a stage's work, the first one first: of each the names that its pod may have.

    Most servers tell no names of pods, and of a node only the ids of those that follow from it. An id ends in a hash of
    the node's full name, and a pod's name in the hash of its node's.
    """
    all_ids = {child.get("pod_name", "") for each in nodes for child in each.get("child_tasks") or []}
    for child in node.get("child_tasks") or []:
        workflow, _, number = child.get("pod_name", "").rpartition("-")
        if not number.isdigit():
            continue
        retried: list[int] = []
        while f"{workflow}-{(each := _hash(f'({len(retried)})', int(number)))}" in all_ids:
            retried.append(each)
        for each in retried or [int(number)]:
            named = (other["pod_name"] for other in nodes if other.get("pod_name", "").endswith(f"-{each}"))
            yield (*named, *(f"{workflow}-{template}-{each}" for template in templates))


def _hash(text: str, begun: int = 2166136261) -> int:
    """The hash (FNV-1a, 32 bits) that Argo makes of names; `begun` is that of what stands before the text."""
    for byte in text.encode():
        begun = (begun ^ byte) * 16777619 % 2**32
    return begun


def _templates(place: Placement | None) -> tuple[str, ...]:
    """What the template of a stage's pod may be called: Kubeflow names it by what is asked for."""
    if place and (place.annotations or place.labels):
        counts = f"metadata-{len(place.annotations)}-{len(place.labels)}-"
        return (*(counts + name for name in EXECUTORS), *EXECUTORS)
    return EXECUTORS


def _note(
    server: Server, run_id: str, node: dict[str, Any], stage: Stage, say: Callable[[str], None], long: float
) -> None:
    """Tell of a stage's new state, where it does not tell itself."""
    state = node.get("state") or "PENDING"
    if state != stage.state:
        stage.state, stage.since = state, time.monotonic()
        if not stage.spoke and state in ("RUNNING", "SUCCEEDED", "FAILED"):
            say(f"{stage.name:9} {state.lower()}")
    waited = time.monotonic() - stage.since
    if state == "PENDING" and waited > long and not stage.warned:
        stage.warned = True
        pods = (name for names in reversed(stage.tries) for name in names)
        told = next(filter(None, (server.held_up(run_id, pod) for pod in pods)), "")
        why = f"its node says: {told}" if told else "its image cannot be pulled, or no node has room for it"
        say(
            f"{stage.name} has been pending for {waited:.0f} s: {why}. See: kubectl describe pods -A -l "
            f"pipeline/runid={run_id}"
        )


def _listen(server: Server, run_id: str, stage: Stage, watcher: Watcher) -> None:
    """Hand on what a stage has said since the last time, in whole lines while it may go on speaking."""
    if stage.state in ("", "SKIPPED", "RUNTIME_STATE_UNSPECIFIED"):
        return
    for names in stage.tries:
        known = next((name for name in names if name in stage.heard), "")
        if stage.heard.get(known) == -1:
            continue
        spoken = ((name, server.log(run_id, name)) for name in ([known] if known else names))
        pod, text = next(((name, text) for name, text in spoken if text), ("", ""))
        lines = (text if stage.state in ENDED else text[: text.rfind("\n") + 1]).splitlines()
        for line in lines[stage.heard.get(pod, 0) :]:
            event = read_event(line)
            if event is None and NOISE in line:
                continue
            if event is None:
                stage.last_lines.append(line)
                continue
            stage.spoke = True
            stage.why = event.get("why", "") if event["event"] == "failed" else stage.why
            if event["event"] in ("finished", "reused"):
                stage.values = event["values"]
            watcher(event)
        if pod:
            stage.heard[pod] = -1 if stage.state in ENDED else len(lines)
