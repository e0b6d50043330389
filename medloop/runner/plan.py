"""Dry run of the loop: which steps would be reused or run, why, and their last duration."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from components.shared import environment
from components.shared.contracts import Manifest, decode
from components.shared.privacy import keyed_hash
from components.shared.runtime import work
from components.shared.runtime.stage_interface import read
from components.shared.storage.store import Store, open_store
from medloop.runner.run import Run, recent
from medloop.settings import Settings, stage_environment

UNKNOWN = object()
"""A value that is known only during the run."""


@dataclass(frozen=True)
class Step:
    """A planned step."""

    stage: str
    state: str  # reused | runs | depends
    why: str
    last_seconds: float | None


@dataclass
class _Walk:
    """State of a walk through the compiled pipeline."""

    spec: dict[str, Any]
    store: Store
    earlier: list[Run]
    steps: list[Step] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Number of steps of each stage so far."""


def plan_run(settings: Settings, arguments: dict[str, Any]) -> list[Step]:
    """Return the steps that a run with these arguments would have now, without starting a stage."""
    from google.protobuf import json_format
    from kfp import dsl  # noqa: F401 - the pipeline needs it loaded first

    from workflows.retrain import retrain

    spec = json_format.MessageToDict(retrain.pipeline_spec)
    store = open_store(settings.store)
    walk = _Walk(spec, store, recent(store))
    variables = stage_environment(settings, arguments["source"], make_key=False)
    # A random key stands for the key that the run will create in a home without one.
    variables[keyed_hash.VARIABLE] = variables[keyed_hash.VARIABLE] or secrets.token_hex(32)
    with environment.replaced(variables):
        _dag(walk, spec["root"]["dag"], {**arguments, "store": store.uri, "by": ""})
    return walk.steps


def _dag(walk: _Walk, dag: dict[str, Any], inputs: dict[str, Any], unsure: bool = False) -> dict[str, Any]:
    """Walk through a pipeline and return its outputs as far as they are known."""
    results: dict[str, dict[str, Any]] = {}
    waiting = dict(dag["tasks"])
    while waiting:
        name = next(n for n, t in waiting.items() if not set(t.get("dependentTasks", [])) & set(waiting))
        task = waiting.pop(name)
        values = _task_inputs(task.get("inputs", {}), inputs, results)
        condition = task.get("triggerPolicy", {}).get("condition", "")
        holds = _holds(condition, values) if condition else True
        if holds is False:
            continue
        component = walk.spec["components"][task["componentRef"]["name"]]
        if "parameterIterator" in task:
            results[name] = _loop(walk, task["parameterIterator"], component["dag"], values, unsure or holds is None)
        elif "dag" in component:
            results[name] = _dag(walk, component["dag"], values, unsure or holds is None)
        else:
            stage = re.sub(r"-\d+$", "", component["executorLabel"].removeprefix("exec-"))
            results[name] = _step(walk, stage, values, unsure or holds is None)

    outputs = {}
    for name, origin in dag.get("outputs", {}).get("artifacts", {}).items():
        selector = origin["artifactSelectors"][0]
        outputs[name] = results.get(selector["producerSubtask"], {}).get(selector["outputArtifactKey"], UNKNOWN)
    return outputs


def _loop(
    walk: _Walk, iterator: dict[str, Any], dag: dict[str, Any], inputs: dict[str, Any], unsure: bool
) -> dict[str, Any]:
    """Walk through a loop's body for each item; each output is the list of the items' outputs."""
    items = inputs[iterator["items"]["inputParameter"]]
    results = [_dag(walk, dag, {**inputs, iterator["itemInput"]: item}, unsure) for item in items]
    names = dag.get("outputs", {}).get("artifacts", {})
    return {name: [outputs.get(name, UNKNOWN) for outputs in results] for name in names}


def _task_inputs(spec: dict[str, Any], inputs: dict[str, Any], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for kind, word in (("parameters", "Parameter"), ("artifacts", "Artifact")):
        for name, origin in spec.get(kind, {}).items():
            if f"componentInput{word}" in origin:
                values[name] = inputs.get(origin[f"componentInput{word}"], UNKNOWN)
            elif output := origin.get(f"taskOutput{word}"):
                values[name] = results.get(output["producerTask"], {}).get(output[f"output{word}Key"], UNKNOWN)
            else:
                values[name] = origin["runtimeValue"]["constant"]
    return {name: _substitute(value, values) for name, value in values.items()}


_PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")


def _substitute(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _substitute(inner, values) for name, inner in value.items()}
    if isinstance(value, str) and (match := _PLACEHOLDER.fullmatch(value)):
        return values.get(match[1], UNKNOWN)
    return value


def _holds(condition: str, inputs: dict[str, Any]) -> bool | None:
    """Return whether a task's condition holds, by KFP's evaluator for local runs; None while a value is unknown."""
    from kfp.local.io import IOStore
    from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

    values = IOStore()
    for name, value in inputs.items():
        if f"'{name}'" in condition:
            if value is UNKNOWN:
                return None
            values.put_parent_input(name, value)
    return bool(ConditionEvaluator.evaluate_condition(condition, values))


def _step(walk: _Walk, stage: str, values: dict[str, Any], unsure: bool) -> dict[str, Any]:
    interface = read(stage)
    order = walk.counts[stage] = walk.counts.get(stage, 0) + 1
    previous = _previous(walk.earlier, stage, order)
    seconds = previous.get("seconds") if previous else None
    options = values.pop("options", {})
    parameters = {name: values[name] for name in interface.parameters if name in values}
    inputs = {name: values[name] for name in interface.inputs}
    for name in interface.several:
        inputs[name] = _together(walk.store, inputs[name])
    if stage == "resolve":
        result = work.step(stage, walk.store.uri, {}, {**options, **parameters})
        walk.steps.append(Step(stage, "runs", "it always runs, to read the current state", seconds))
        return {**{name: manifest.digest for name, manifest in result.outputs.items()}, **result.values}
    unknown = [name for name, value in inputs.items() if value is UNKNOWN]
    if unsure:
        walk.steps.append(Step(stage, "depends", "on the decision", seconds))
        return {}
    if stage in work.IMPURE:
        walk.steps.append(Step(stage, "runs", "it always runs, to record the outcome", seconds))
        return {}
    if unknown or any(value is UNKNOWN for value in parameters.values()):
        why = f"its {' and '.join(unknown) or 'parameters'} will be new"
        walk.steps.append(Step(stage, "runs", why, seconds))
        return {}
    planned = work.prepare(stage, inputs, {**options, **parameters})
    finished = work.finished(walk.store, planned.key)
    if finished is None:
        walk.steps.append(Step(stage, "runs", _why(walk.store, planned, previous), seconds))
        return {}
    walk.steps.append(Step(stage, "reused", "same inputs, parameters and code", finished.seconds))
    return {**{name: manifest.digest for name, manifest in finished.outputs.items()}, **finished.values}


def _together(store: Store, digests: Any) -> Any:
    if digests is UNKNOWN or UNKNOWN in digests:
        return UNKNOWN
    return Manifest.of(Manifest.decode(store.get(digest), digest[:12]) for digest in digests).digest


def _previous(earlier: list[Run], stage: str, order: int) -> dict[str, Any] | None:
    """Return the latest completed step of the stage at the same position of its run."""
    for run in earlier:
        steps = [step for step in run.stages if step["stage"] == stage]
        if len(steps) >= order and "seconds" in steps[order - 1]:
            return steps[order - 1]
    return None


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _why(store: Store, planned: work.Plan, previous: dict[str, Any] | None) -> str:
    data = store.read(f"work/{previous['key']}/result.json") if previous else None
    if data is None:
        return "there is no earlier result"
    record = decode("result", data, planned.stage)
    changes = [f"{name} changed" for name, digest in planned.inputs.items() if record["inputs"].get(name) != digest]
    for name, value in planned.parameters.items():
        recorded = record["parameters"].get(name)
        if recorded != value:
            is_source = name == "revision"
            changes.append("the source changed" if is_source else f"{name} {_shown(recorded)} → {_shown(value)}")
    if record["code"] != planned.code:
        changes.append("its code or packages changed")
    return ", ".join(changes) or "its result is no longer in the store"
