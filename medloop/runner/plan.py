"""What a run would do: which steps are done already, which must be done and why, and how long they took before."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from components.shared import environment
from components.shared.contracts import Manifest, decode
from components.shared.privacy import hash_keys
from components.shared.runtime import work
from components.shared.runtime.interface import read
from components.shared.storage.store import Store, open_store
from medloop.runner.run import Run, recent
from medloop.settings import Settings, stage_environment

UNKNOWN = object()
"""A value that only the run itself will bring."""


@dataclass(frozen=True)
class Step:
    """One step of the run to come."""

    stage: str
    state: str  # reused | runs | depends
    why: str
    last_seconds: float | None


@dataclass
class _Walk:
    """A walk through the compiled pipeline with what is known of its values."""

    spec: dict[str, Any]
    store: Store
    earlier: list[Run]
    steps: list[Step] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)


def plan(settings: Settings, arguments: dict[str, Any]) -> list[Step]:
    """The steps of a run with these arguments, as things stand now. No stage is started."""
    from google.protobuf import json_format
    from kfp import dsl  # noqa: F401 - the pipeline needs it loaded first

    from workflows.retrain import retrain

    spec = json_format.MessageToDict(retrain.pipeline_spec)
    store = open_store(settings.store)
    walk = _Walk(spec, store, recent(store))
    variables = stage_environment(settings, arguments["source"], make_key=False)
    # A home without a key gets one from the run. No result exists under it yet, whatever it is.
    variables[hash_keys.VARIABLE] = variables[hash_keys.VARIABLE] or secrets.token_hex(32)
    with environment.replaced(variables):
        _dag(walk, spec["root"]["dag"], {**arguments, "store": store.uri, "by": ""})
    return walk.steps


def _dag(walk: _Walk, dag: dict[str, Any], inputs: dict[str, Any], unsure: bool = False) -> dict[str, Any]:
    """Walk through a pipeline; gives its outputs as far as they are known."""
    results: dict[str, dict[str, Any]] = {}
    waiting = dict(dag["tasks"])
    while waiting:
        name = next(n for n, t in waiting.items() if not set(t.get("dependentTasks", [])) & set(waiting))
        task = waiting.pop(name)
        given = _given(task.get("inputs", {}), inputs, results)
        condition = task.get("triggerPolicy", {}).get("condition", "")
        holds = _holds(condition, given) if condition else True
        if holds is False:
            continue
        component = walk.spec["components"][task["componentRef"]["name"]]
        if "parameterIterator" in task:
            results[name] = _loop(walk, task["parameterIterator"], component["dag"], given, unsure or holds is None)
        elif "dag" in component:
            results[name] = _dag(walk, component["dag"], given, unsure or holds is None)
        else:
            stage = re.sub(r"-\d+$", "", component["executorLabel"].removeprefix("exec-"))
            results[name] = _step(walk, stage, given, unsure or holds is None)

    selected = dag.get("outputs", {}).get("artifacts", {})
    outputs = {}
    for name, origin in selected.items():
        chosen = origin["artifactSelectors"][0]
        outputs[name] = results.get(chosen["producerSubtask"], {}).get(chosen["outputArtifactKey"], UNKNOWN)
    return outputs


def _loop(
    walk: _Walk, iterator: dict[str, Any], dag: dict[str, Any], given: dict[str, Any], unsure: bool
) -> dict[str, Any]:
    """Walk through a loop's body for each item; each output becomes the list of what the items gave."""
    items = given[iterator["items"]["inputParameter"]]
    each = [_dag(walk, dag, {**given, iterator["itemInput"]: item}, unsure) for item in items]
    names = dag.get("outputs", {}).get("artifacts", {})
    return {name: [found.get(name, UNKNOWN) for found in each] for name in names}


def _given(wanted: dict[str, Any], inputs: dict[str, Any], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, origin in wanted.get("parameters", {}).items():
        if "componentInputParameter" in origin:
            given[name] = inputs.get(origin["componentInputParameter"], UNKNOWN)
        elif "taskOutputParameter" in origin:
            place = origin["taskOutputParameter"]
            given[name] = results.get(place["producerTask"], {}).get(place["outputParameterKey"], UNKNOWN)
        else:
            given[name] = origin["runtimeValue"]["constant"]
    for name, origin in wanted.get("artifacts", {}).items():
        if "componentInputArtifact" in origin:
            given[name] = inputs.get(origin["componentInputArtifact"], UNKNOWN)
        else:
            place = origin["taskOutputArtifact"]
            given[name] = results.get(place["producerTask"], {}).get(place["outputArtifactKey"], UNKNOWN)
    return {name: _filled(value, given) for name, value in given.items()}


_PLACE = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")


def _filled(value: Any, given: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(inner, given) for name, inner in value.items()}
    if isinstance(value, str) and (found := _PLACE.fullmatch(value)):
        return given.get(found[1], UNKNOWN)
    return value


def _holds(condition: str, given: dict[str, Any]) -> bool | None:
    """Return whether a task's condition holds, by KFP's evaluator for local runs; None while a value is unknown."""
    from kfp.local.io import IOStore
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

    values = IOStore()
    for name, value in given.items():
        if f"'{name}'" in condition:
            if value is UNKNOWN:
                return None
            values.put_parent_input(name, value)
    return bool(ConditionEvaluator.evaluate_condition(condition, values))


def _step(walk: _Walk, stage: str, given: dict[str, Any], unsure: bool) -> dict[str, Any]:
    interface = read(stage)
    order = walk.seen[stage] = walk.seen.get(stage, 0) + 1
    before = _before(walk.earlier, stage, order)
    seconds = before.get("seconds") if before else None
    options = given.pop("options", {})
    parameters = {name: given[name] for name in interface.parameters if name in given}
    inputs = {name: given[name] for name in interface.inputs}
    for name in interface.several:
        inputs[name] = _together(walk.store, inputs[name])
    if stage == "resolve":
        done = work.step(stage, walk.store.uri, {}, {**options, **parameters})
        walk.steps.append(Step(stage, "runs", "it always reads what is new", seconds))
        return {**{name: manifest.digest for name, manifest in done.outputs.items()}, **done.values}
    unknown = [name for name, value in inputs.items() if value is UNKNOWN]
    if unsure:
        walk.steps.append(Step(stage, "depends", "on the decision", seconds))
        return {}
    if stage in work.IMPURE:
        walk.steps.append(Step(stage, "runs", "it always writes down the outcome", seconds))
        return {}
    if unknown or any(value is UNKNOWN for value in parameters.values()):
        why = f"its {' and '.join(unknown) or 'parameters'} will be new"
        walk.steps.append(Step(stage, "runs", why, seconds))
        return {}
    wanted = work.prepare(stage, inputs, {**options, **parameters})
    done_before = work.finished(walk.store, wanted.key)
    if done_before is None:
        walk.steps.append(Step(stage, "runs", _why(walk.store, wanted, before), seconds))
        return {}
    walk.steps.append(Step(stage, "reused", "same inputs, parameters and code", done_before.seconds))
    return {**{name: m.digest for name, m in done_before.outputs.items()}, **done_before.values}


def _together(store: Store, digests: Any) -> Any:
    if digests is UNKNOWN or UNKNOWN in digests:
        return UNKNOWN
    return Manifest.of(Manifest.decode(store.get(digest), digest[:12]) for digest in digests).digest


def _before(earlier: list[Run], stage: str, order: int) -> dict[str, Any] | None:
    """The latest step of that stage, in that place of its run, that came to an end."""
    for run in earlier:
        steps = [step for step in run.stages if step["stage"] == stage]
        if len(steps) >= order and "seconds" in steps[order - 1]:
            return steps[order - 1]
    return None


def _why(store: Store, wanted: work.Plan, before: dict[str, Any] | None) -> str:
    data = store.read(f"work/{before['key']}/result.json") if before else None
    if data is None:
        return "it was not done before"
    record = decode("result", data, wanted.stage)
    changes = [f"{name} changed" for name, digest in wanted.inputs.items() if record["inputs"].get(name) != digest]
    for name, value in wanted.parameters.items():
        was = record["parameters"].get(name)
        if was != value:
            changes.append("the source changed" if name == "revision" else f"{name} {was!r} → {value!r}")
    if record["code"] != wanted.code:
        changes.append("its code or packages changed")
    return ", ".join(changes) or "its result is no longer in the store"
