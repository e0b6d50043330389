"""Runs of Kubeflow Pipelines as the API shows them: what a test's script says becomes of their tasks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

Json = dict[str, Any]
NEVER = "1970-01-01T00:00:00Z"  # what the server gives as the time of what has not happened to a run
NOT_YET = "0001-01-01T00:00:00Z"  # and to a task
FINAL = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")


class Step(NamedTuple):
    """A task reaches a state, and so many seconds pass before the next step.

    States are the API's, and CACHED (done before) and OMITTED (what it needs did not succeed). A task whose pod cannot
    start is PENDING. `train-driver` is the pod that prepares `train`. The empty name is the run itself.
    """

    task: str
    state: str
    seconds: float = 0.0
    log: str = ""


Script = Sequence[Step | tuple[str, str] | tuple[str, str, float]]


@dataclass(frozen=True)
class Task:
    """A task of the spec: where it stands, and whether it is a graph of tasks itself."""

    name: str
    parent: str
    after: tuple[str, ...]
    graph: bool
    conditional: bool
    retried: bool


def tasks_of(spec: Json) -> dict[str, Task]:
    """All tasks of a pipeline, those in graphs after the graph's own, in an order in which they can run."""
    found: dict[str, Task] = {}

    def visit(tasks: Json, parent: str) -> None:
        waiting = dict(tasks)
        while waiting:
            ready = [name for name, about in waiting.items() if not set(about.get("dependentTasks", ())) & set(waiting)]
            for name in ready:
                about = waiting.pop(name)
                component = spec["components"][about["componentRef"]["name"]]
                found[name] = Task(
                    name,
                    parent,
                    tuple(about.get("dependentTasks", ())),
                    "dag" in component,
                    "condition" in about.get("triggerPolicy", {}),
                    "retryPolicy" in about,
                )
                visit(component.get("dag", {}).get("tasks", {}), name)

    visit(spec["root"]["dag"]["tasks"], "root")
    return found


def smooth(tasks: Mapping[str, Task], pace: float = 0.0) -> list[Step]:
    """The script of a run in which all goes well: of the conditions beside one another the first one holds."""
    steps: list[Step] = []
    chosen: set[str] = set()
    left: set[str] = set()
    for task in tasks.values():
        if task.parent in left:
            left.add(task.name)
        elif task.conditional and task.parent in chosen:
            left.add(task.name)
            steps.append(Step(task.name, "SKIPPED"))
        else:
            if task.conditional:
                chosen.add(task.parent)
            if not task.graph:
                steps += [Step(task.name, "RUNNING", pace, f"{task.name} works\n"), Step(task.name, "SUCCEEDED")]
    return steps


@dataclass
class Node:
    """A node of the workflow; the API calls it a task."""

    name: str
    state: str
    number: int
    template: str
    children: list[int] = field(default_factory=list)
    started: float = 0.0
    ended: float = 0.0
    log: str = ""


@dataclass
class Run:
    """A run, and what is to become of it."""

    about: Json
    spec: Json
    tasks: dict[str, Task]
    script: list[Step]
    created: float
    begun: float
    history: list[Json] = field(default_factory=list)
    stopped: float = 0.0
    stops_as: str = "FAILED"

    @property
    def workflow(self) -> str:
        return f"{self.spec['pipelineInfo']['name']}-{self.about['run_id'][:8]}"

    def number(self, node: str) -> int:
        return hashed(f"{self.workflow}.{node}")

    def play(self, script: Script) -> None:
        """From now on this becomes of the run."""
        steps = [Step(*step) for step in script]
        for step in steps:
            base = step.task.removesuffix("-driver")
            if base and base not in self.tasks:
                raise KeyError(f"the pipeline has no task {step.task}; its tasks are {', '.join(self.tasks)}")
        self.script, self.begun = steps, time.time()

    def _done(self, now: float) -> list[tuple[float, Step]]:
        at = self.begun
        done: list[tuple[float, Step]] = []
        for step in self.script:
            if at > (self.stopped or now):
                break
            done.append((at, step))
            at += step.seconds
        return done

    def _end(self, now: float) -> tuple[str, float]:
        """The state in which the run has ended, and when; empty while it goes on."""
        done = self._done(now)
        if self.stopped:
            # What no engine has taken up can't be stopped by it either.
            return (self.stops_as, self.stopped + 0.2) if self.script and now > self.stopped + 0.2 else ("", 0.0)
        if not done or len(done) < len(self.script):
            return "", 0.0
        at, last = done[-1]
        if not last.task:
            return (last.state, at) if last.state in FINAL else ("", 0.0)
        over = at + last.seconds
        states = {step.task: step.state for _, step in done}.values()
        if over > now or not set(states) <= {*FINAL, "CACHED", "OMITTED"}:
            return "", 0.0
        return ("FAILED" if "FAILED" in states else "SUCCEEDED"), over

    def states(self, now: float) -> list[tuple[float, str]]:
        """The states that the run has had since it was created, or retried."""
        passed = [(self.created, "PENDING")]
        if self._done(now):
            passed.append((self.begun, "RUNNING"))
        if self.stopped:
            passed.append((self.stopped, "CANCELING"))
        state, at = self._end(now)
        return [*passed, (at, state)] if state else passed

    def state(self, now: float) -> str:
        return self.states(now)[-1][1]

    def answer(self, now: float) -> Json:
        """The run as the API shows it."""
        states = self.states(now)
        at, state = states[-1]
        shown = {
            **self.about,
            "state": state,
            "finished_at": stamp(at) if state in FINAL else NEVER,
            # The engine does not report that it is stopping a run: that state is never in the history.
            "state_history": self.history
            + [{"update_time": stamp(at), "state": name} for at, name in states if name != "CANCELING"],
        }
        nodes = self.nodes(now)
        if nodes:
            shown["run_details"] = {"task_details": [self._detail(node) for node in nodes]}
        return {name: value for name, value in shown.items() if value not in ("", None, {}, [])}

    def _detail(self, node: Node) -> Json:
        detail = {
            "run_id": self.about["run_id"],
            "task_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.about['run_id']}.{node.number}")),
            "display_name": node.name,
            "create_time": stamp(self.created),
            "start_time": stamp(node.started) if node.started else NOT_YET,
            "end_time": stamp(node.ended) if node.ended else NOT_YET,
            "state": node.state,
            "state_history": [{"update_time": stamp(node.ended or node.started or self.begun), "state": node.state}],
            "child_tasks": [{"pod_name": f"{self.workflow}-{child}"} for child in node.children],
        }
        return {name: value for name, value in detail.items() if value not in ([], "RUNTIME_STATE_UNSPECIFIED")}

    def nodes(self, now: float) -> list[Node]:
        """What the engine has made of the script so far."""
        done = self._done(now)
        if not done:
            return []
        ended, over = self._end(now)
        nodes: dict[str, Node] = {}
        for name, driver in (("", False), ("root-driver", True), ("root", False)):
            state = "SUCCEEDED" if driver else ended or "RUNNING"
            template = "system-dag-driver" if driver else "entrypoint" if not name else "root"
            ending = self.begun if driver else over
            nodes[name] = Node(name or self.workflow, state, self.number(name), template, [], self.begun, ending)
        passed: dict[str, list[tuple[float, Step]]] = {}
        for at, step in done:
            if step.task:
                passed.setdefault(step.task, []).append((at, step))
        for task in self.tasks.values():
            if own := passed.get(f"{task.name}-driver"):
                self._put_driver(nodes, task, own[-1][1].state, own)
            elif own := passed.get(task.name):
                self._put_task(nodes, task, own, ended, over)
            elif task.graph and any(self._is_under(name, task.name) for name in passed):
                state = ended or "RUNNING"
                self._put_driver(nodes, task, "SUCCEEDED", [(self.begun, Step(task.name, state))])
                nodes[task.name] = Node(task.name, state, self.number(task.name), "graph", [], self.begun, over)
        self._link(nodes)
        return sorted(nodes.values(), key=lambda node: f"{self.workflow}-{node.number}")

    def _is_under(self, name: str, graph: str) -> bool:
        parent = self.tasks[name.removesuffix("-driver")].parent
        return parent == graph or (parent != "root" and self._is_under(parent, graph))

    def _put_driver(self, nodes: dict[str, Node], task: Task, state: str, own: list[tuple[float, Step]]) -> None:
        name = f"{task.name}-driver"
        template = "system-dag-driver" if task.graph else "system-container-driver"
        log = "".join(step.log for _, step in own if step.task == name)
        shown = "RUNTIME_STATE_UNSPECIFIED" if state == "OMITTED" else state
        ended = own[-1][0] if state in FINAL else 0.0
        nodes[name] = Node(name, shown, self.number(name), template, [], own[0][0], ended, log)

    def _put_task(
        self, nodes: dict[str, Node], task: Task, own: list[tuple[float, Step]], ended: str, over: float
    ) -> None:
        at, last = own[-1]
        self._put_driver(nodes, task, "OMITTED" if last.state == "OMITTED" else "SUCCEEDED", own)
        state = {"PENDING": "RUNNING", "CACHED": "SUCCEEDED", "OMITTED": "RUNTIME_STATE_UNSPECIFIED"}.get(
            last.state, last.state
        )
        again = task.retried and any(
            step.task == task.name for step in self.script[self.script.index(last) + 1 :] if last.state == "FAILED"
        )
        state = "RUNNING" if again else state
        if ended and state == "RUNNING":
            state = ended if ended != "SUCCEEDED" else state
        ending = at if last.state in {*FINAL, "CACHED"} and not again else over
        node = Node(task.name, state, self.number(task.name), "system-container-executor", [], own[0][0], ending)
        nodes[task.name] = node
        if task.graph or last.state in {"SKIPPED", "OMITTED"}:
            return
        attempts: list[list[tuple[float, Step]]] = [[]]
        for moment in own:
            if task.retried and attempts[-1] and attempts[-1][-1][1].state == "FAILED":
                attempts.append([])
            attempts[-1].append(moment)
        template = "retry-system-container-impl" if task.retried else "system-container-impl"
        for index, attempt in enumerate(attempts):
            shown = {"CACHED": "SKIPPED"}.get(attempt[-1][1].state, attempt[-1][1].state)
            if ended and shown in {"PENDING", "RUNNING"}:
                shown = ended
            until = attempt[-1][0] if attempt[-1][1].state in {*FINAL, "CACHED"} else over
            label = f"executor({index})" if task.retried else "executor"
            name = f"{task.name}.{label}"
            log = "".join(step.log for _, step in attempt)
            nodes[name] = Node(label, shown, self.number(name), template, [], attempt[0][0], until, log)
        if task.retried:
            number = self.number(f"{task.name}.executor")
            nodes[f"{task.name}.executor"] = Node("executor", state, number, "retry", [], own[0][0], ending)

    def _link(self, nodes: dict[str, Node]) -> None:
        nodes[""].children = [nodes["root-driver"].number]
        nodes["root-driver"].children = [nodes["root"].number]
        for task in self.tasks.values():
            driver, node = nodes.get(f"{task.name}-driver"), nodes.get(task.name)
            if driver is None:
                continue
            if node is not None:
                driver.children = [node.number]
            for before in task.after:
                last = nodes.get(f"{before}.executor") or nodes.get(before)
                if last is not None:
                    last.children.append(driver.number)
            if not task.after:
                nodes[task.parent].children.append(driver.number)
            executor = nodes.get(f"{task.name}.executor")
            if node is not None and executor is not None:
                node.children = [executor.number]
                for name, attempt in nodes.items():
                    if name.startswith(f"{task.name}.executor("):
                        executor.children.append(attempt.number)

    def pods(self, now: float) -> dict[str, Node]:
        """The pods of the run so far, by name."""
        pods = [node for node in self.nodes(now) if node.template.endswith(("-impl", "-driver"))]
        return {f"{self.workflow}-{node.template}-{node.number}": node for node in pods}


def hashed(name: str) -> int:
    """The hash that Argo's ids of nodes and names of pods end in (FNV-1a, 32 bits)."""
    value = 2166136261
    for byte in name.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return value


def stamp(at: float) -> str:
    """A time as the API writes it: whole seconds."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
