"""Run a stage, or reuse its result: work keys, results, checkpoints and remembered errors."""

from __future__ import annotations

import importlib
import importlib.metadata
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from components.shared import contracts, environment
from components.shared.contracts import Manifest
from components.shared.errors import RefusedError
from components.shared.ledger import lineage, stage_signing
from components.shared.privacy.secret_redaction import redact
from components.shared.runtime import step_log
from components.shared.runtime.code_and_package_versions import code_version
from components.shared.runtime.events import event, log, sentence
from components.shared.runtime.stage_interface import Interface, read
from components.shared.storage.artifacts import gather, lay_out
from components.shared.storage.scratch import VARIABLE as SCRATCH
from components.shared.storage.store import Store, open_store

IMPURE = frozenset({"resolve", "deploy", "reject"})
"""Stages that read or change state outside of their inputs: they always run and have no work key."""

IDEMPOTENT = {"split": ("previous", "splits")}
"""Stages that return the same output again when it is passed as this input: that result is recorded, too."""


@dataclass(frozen=True)
class Work:
    """The context of a stage's work: the store, the digests of its inputs, and its checkpoints."""

    key: str
    store: Store
    inputs: Mapping[str, str]
    run: str = ""
    stage: str = ""
    spent: dict[str, float] = field(default_factory=dict)
    """Resources that all attempts used (device_seconds); reported with the times, not part of the values."""

    def keep(self, name: str, data: bytes) -> None:
        """Write or replace a checkpoint."""
        path = f"work/{self.key}/{name}"
        self.store.write(path, stage_signing.seal(stage_signing.held(self.stage), path, data))

    def kept(self, name: str) -> bytes | None:
        """Return the checkpoint of an earlier, unfinished attempt, or None.

        If public keys are set, ignore a checkpoint that this stage did not sign.
        """
        path = f"work/{self.key}/{name}"
        data = self.store.read(path)
        return None if data is None else stage_signing.unseal(path, data, (self.stage,))

    def names(self, prefix: str) -> list[str]:
        names = (name.rpartition("/")[2] for name in self.store.names(f"work/{self.key}"))
        return sorted(name for name in names if name.startswith(prefix))

    def drop(self, name: str) -> None:
        self.store.delete(f"work/{self.key}/{name}")


@dataclass(frozen=True)
class Plan:
    """A step before it runs: its inputs, parameters, code, and the work key that follows from them."""

    stage: str
    inputs: dict[str, str]
    parameters: dict[str, Any]
    code: str

    @property
    def key(self) -> str:
        return lineage.work_key(self.stage, self.inputs, self.parameters, self.code)


@dataclass(frozen=True)
class Result:
    """The result of a step: manifests of its outputs, its values, and whether an earlier result was reused."""

    key: str
    outputs: dict[str, Manifest]
    values: dict[str, Any]
    seconds: float
    reused: bool
    spent: dict[str, float] = field(default_factory=dict)


def step(stage: str, store_uri: str, inputs: Mapping[str, Path], parameters: Mapping[str, Any]) -> Result:
    """Run a stage, or reuse the result of the same work; `inputs` are paths of manifests."""
    interface = read(stage)
    store = open_store(store_uri)
    record = step_log.StepRecord(store, stage)
    try:
        result = _step(interface, store, inputs, parameters, record)
    except Exception as error:
        record.fail(sentence(error))
        raise
    except SystemExit:
        record.fail("It was stopped before it was done.")
        raise
    fields = {
        "key": result.key,
        "seconds": round(result.seconds, 2),
        "outputs": {name: manifest.digest for name, manifest in result.outputs.items()},
        "values": result.values,
        **({"spent": result.spent} if result.spent else {}),
    }
    state = "reused" if result.reused else "finished"
    record.write(state, **fields)
    event(state, stage, **fields)
    return result


def _step(
    interface: Interface,
    store: Store,
    inputs: Mapping[str, Path],
    parameters: Mapping[str, Any],
    record: step_log.StepRecord,
) -> Result:
    stage = interface.stage
    manifests = {name: Manifest.decode(inputs[name].read_bytes(), name) for name in interface.inputs}
    plan = prepare(stage, {name: manifest.digest for name, manifest in manifests.items()}, parameters)
    event("started", stage, key=plan.key)
    record.write("started", key=plan.key, inputs=plan.inputs, parameters=plan.parameters, code=plan.code)
    if stage in IMPURE or environment.get(SCRATCH):
        return _run(interface, store, plan, manifests)
    stage_signing.require(stage)
    if trusted := stage_signing.trusted():
        lineage.check_inputs(store, trusted, manifests)
    if earlier := finished(store, plan.key):
        _refer(store, plan, earlier.outputs.values())
        return earlier
    if refusal := _refusal(store, plan):
        raise RefusedError(
            f"{refusal['message']} (The same work failed before; it is not retried until its inputs change.)"
        )
    return _run(interface, store, plan, manifests)


def prepare(stage: str, inputs: Mapping[str, str], parameters: Mapping[str, Any]) -> Plan:
    """Return the plan of a step; raise UsageError for an invalid parameter."""
    return Plan(stage, dict(inputs), read(stage).complete(parameters), code_version(stage))


def finished(store: Store, key: str) -> Result | None:
    """Return the earlier result of this work, or None.

    Ignore a result that is damaged or has lost its objects and, if public keys are set, one that its stage did not
    sign.
    """
    record = _read_result(store, key)
    if record is None:
        return None
    outputs = {}
    try:
        for name, digest in record["outputs"].items():
            if not store.has(digest):
                return None
            outputs[name] = Manifest.decode(store.get(digest), f"{record['stage']} {name}")
            if not all(map(store.has, _objects(store, outputs[name]))):
                return None
    except ValueError as error:
        _log_rejected(key, sentence(error))
        return None
    return Result(key, outputs, record["values"], record["seconds"], True, record.get("spent", {}))


def _read_result(store: Store, key: str) -> dict[str, Any] | None:
    data = store.read(f"work/{key}/result.json", lineage.MAX_BYTES)
    record = contracts.try_decode("result", data)
    if data is None or record is None or not {"stage", "outputs", "values", "seconds", "inputs"} <= set(record):
        return None
    if not all(isinstance(record[name], dict) for name in ("outputs", "values", "inputs")):
        return None
    if trusted := stage_signing.trusted():
        try:
            lineage.check_result(trusted, data, f"The result of {record['stage']}")
            if lineage.key_of(record) != key:
                raise PermissionError("The result belongs to other work.")
        except (PermissionError, KeyError) as error:
            _log_rejected(key, sentence(error))
            return None
    return record


def _refusal(store: Store, plan: Plan) -> dict[str, Any] | None:
    """Return the error because of which this work is not retried, or None; if keys are set, its stage must have signed
    it.
    """
    data = store.read(f"work/{plan.key}/error.json", lineage.MAX_BYTES)
    record = contracts.try_decode("error", data)
    if data is None or record is None or not isinstance(record.get("message"), str):
        return None
    if trusted := stage_signing.trusted():
        try:
            signed = stage_signing.check(trusted, "error", data, "The error")
        except PermissionError:
            return None
        return record if (signed["stage_key"]["stage"], record.get("key")) == (plan.stage, plan.key) else None
    return record


def _log_rejected(key: str, why: str) -> None:
    why = f"{why} The work is done again."
    log.warning("result not believed", extra={"fields": {"stage": "work", "work": key[:12], "why": why}})


def _objects(store: Store, manifest: Manifest) -> Iterator[str]:
    """Yield the digests of an artifact's objects, including the shards of a data set."""
    yield from (blob.digest for blob in manifest.files.values())
    for kind in ("dataset", "portion"):
        blob = manifest.files.get(f"{kind}.json")
        if blob and store.has(blob.digest):
            record = contracts.decode(kind, store.get(blob.digest), f"{kind}.json")
            yield from (shard["digest"] for shard in record["shards"])


def is_complete(store: Store, output: str) -> bool:
    """Return whether the results of the work behind this artifact, and of all earlier work, can be reused."""
    manifest = contracts.try_decode("manifest", store.get(output)) if store.has(output) else None
    if manifest and manifest.get("parts"):
        return all(is_complete(store, part) for part in manifest["parts"])
    ref = contracts.try_decode("ref", store.read(f"refs/{output}.json", lineage.MAX_BYTES)) or {}
    key = str(ref.get("key", ""))
    result = _read_result(store, key) if key else None
    if result is None or finished(store, key) is None:
        return False
    # An earlier split and a model in service come from other runs.
    inputs = (digest for name, digest in result["inputs"].items() if name not in ("previous", "champion"))
    return all(is_complete(store, digest) for digest in inputs)


def _run(interface: Interface, store: Store, plan: Plan, manifests: Mapping[str, Manifest]) -> Result:
    start = time.perf_counter()
    function = getattr(importlib.import_module(f"components.{plan.stage}.{plan.stage}"), plan.stage)
    with tempfile.TemporaryDirectory(prefix=f"medloop-{plan.stage}-") as scratch:
        folders = {name: Path(scratch) / name for name in (*interface.inputs, *interface.outputs)}
        for name in interface.outputs:
            folders[name].mkdir()
        for name, manifest in manifests.items():
            lay_out(store, manifest, folders[name])
        work = Work(plan.key, store, plan.inputs, step_log.run(), plan.stage)
        extra = {"work": work} if interface.takes_work else {}
        try:
            values = function(**folders, **extra, **interface.arguments(plan.parameters)) or {}
        except RefusedError as error:
            if plan.stage not in IMPURE:
                refusal = _signed("error", plan.stage, {"key": plan.key, "message": redact(str(error))})
                store.write(f"work/{plan.key}/error.json", refusal)
            raise
        outputs = {name: gather(store, folders[name]) for name in interface.outputs}
    result = Result(plan.key, outputs, values, time.perf_counter() - start, False, work.spent)
    if plan.stage not in IMPURE:
        _record(store, plan, result)
    return result


def _record(store: Store, plan: Plan, result: Result) -> None:
    names = store.names(f"work/{plan.key}")
    record = {
        "stage": plan.stage,
        "inputs": plan.inputs,
        "parameters": plan.parameters,
        "code": plan.code,
        "outputs": {name: manifest.digest for name, manifest in result.outputs.items()},
        "values": result.values,
        "seconds": round(result.seconds, 3),
        **({"spent": result.spent} if result.spent else {}),
    }
    plans = [plan]
    if plan.stage in IDEMPOTENT:
        name, output = IDEMPOTENT[plan.stage]
        plans.append(replace(plan, inputs={**plan.inputs, name: result.outputs[output].digest}))
    for done in plans:
        data = _signed("result", plan.stage, {**record, "inputs": done.inputs})
        store.write(f"work/{done.key}/result.json", data)
    _refer(store, plan, result.outputs.values())
    for name in names:
        if not name.endswith("/result.json"):
            store.delete(name)  # checkpoints are no longer needed


def _signed(kind: str, stage: str, record: dict[str, Any]) -> bytes:
    """Return the bytes of a record, signed with the key of its stage if there is one."""
    key = stage_signing.held(stage)
    return contracts.encode(kind, key.sign(kind, record) if key else record)


def _refer(store: Store, plan: Plan, outputs: Iterable[Manifest]) -> None:
    """Record for each artifact the newest work that produced it; several may produce the same."""
    data = contracts.encode("ref", {"key": plan.key, "stage": plan.stage})
    for manifest in outputs:
        name = f"refs/{manifest.digest}.json"
        if store.read(name) != data:
            store.write(name, data)
