"""Runs a stage once for each distinct work: the work key, its result in the store, its checkpoints, its errors."""

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
from components.shared.ledger import lineage, stage_keys
from components.shared.privacy.redaction import redact
from components.shared.runtime import step_log
from components.shared.runtime.events import event, log, sentence
from components.shared.runtime.interface import Interface, read
from components.shared.runtime.stage_code import code_version
from components.shared.storage.artifacts import gather, lay_out
from components.shared.storage.scratch import VARIABLE as SCRATCH
from components.shared.storage.store import Store, open_store

IMPURE = frozenset({"resolve", "deploy", "reject"})
"""Stages that read or change what is outside: they run each time and have no work key."""

SETTLED = {"split": ("previous", "splits")}
"""Stages that, handed their own output as that input, give the same output again: so that work is known as done too."""


@dataclass(frozen=True)
class Work:
    """What a stage may use besides its directories: the store, its inputs' digests, a place for checkpoints."""

    key: str
    store: Store
    inputs: Mapping[str, str]
    run: str = ""
    stage: str = ""
    spent: dict[str, float] = field(default_factory=dict)
    """What the work took over all its tries (device_seconds): told with its times, and no value of it."""

    def keep(self, name: str, data: bytes) -> None:
        """Keep a checkpoint, replacing the one of that name, so that the same work can go on after an interruption."""
        place = f"work/{self.key}/{name}"
        self.store.write(place, stage_keys.seal(stage_keys.held(self.stage), place, data))

    def kept(self, name: str) -> bytes | None:
        """The checkpoint of that name from an earlier, unfinished try, or None.

        Where public keys are set, one that this stage did not sign counts as none.
        """
        place = f"work/{self.key}/{name}"
        data = self.store.read(place)
        return None if data is None else stage_keys.unseal(place, data, (self.stage,))

    def names(self, prefix: str) -> list[str]:
        """The names of the checkpoints that begin with this, sorted."""
        found = (name.rpartition("/")[2] for name in self.store.names(f"work/{self.key}"))
        return sorted(name for name in found if name.startswith(prefix))

    def drop(self, name: str) -> None:
        """Remove the checkpoint of that name."""
        self.store.delete(f"work/{self.key}/{name}")


@dataclass(frozen=True)
class Plan:
    """A step before it is done: what it is made of, and the key that follows from that."""

    stage: str
    inputs: dict[str, str]
    parameters: dict[str, Any]
    code: str

    @property
    def key(self) -> str:
        """The digest of inputs, parameters and code."""
        return lineage.work_key(self.stage, self.inputs, self.parameters, self.code)


@dataclass(frozen=True)
class Done:
    """What a step gave: manifests by output name, values by name, and whether an earlier result served."""

    key: str
    outputs: dict[str, Manifest]
    values: dict[str, Any]
    seconds: float
    reused: bool
    spent: dict[str, float] = field(default_factory=dict)


def step(stage: str, store_uri: str, inputs: Mapping[str, Path], parameters: Mapping[str, Any]) -> Done:
    """Do a stage's work, or take the result of the same work done before; `inputs` are files that hold manifests."""
    interface = read(stage)
    store = open_store(store_uri)
    page = step_log.Page(store, stage)
    try:
        done = _step(interface, store, inputs, parameters, page)
    except Exception as error:
        page.fail(sentence(error))
        raise
    except SystemExit:
        page.fail("It was asked to end before it was done.")
        raise
    told = {
        "key": done.key,
        "seconds": round(done.seconds, 2),
        "outputs": {name: manifest.digest for name, manifest in done.outputs.items()},
        "values": done.values,
        **({"spent": done.spent} if done.spent else {}),
    }
    state = "reused" if done.reused else "finished"
    page.write(state, **told)
    event(state, stage, **told)
    return done


def _step(
    interface: Interface, store: Store, inputs: Mapping[str, Path], parameters: Mapping[str, Any], page: step_log.Page
) -> Done:
    stage = interface.stage
    manifests = {name: Manifest.decode(inputs[name].read_bytes(), name) for name in interface.inputs}
    plan = prepare(stage, {name: manifest.digest for name, manifest in manifests.items()}, parameters)
    event("started", stage, key=plan.key)
    page.write("started", key=plan.key, inputs=plan.inputs, parameters=plan.parameters, code=plan.code)
    if stage in IMPURE or environment.get(SCRATCH):
        return _run(interface, store, plan, manifests)
    stage_keys.require(stage)
    if trusted := stage_keys.trusted():
        lineage.check_inputs(store, trusted, manifests)
    if earlier := finished(store, plan.key):
        _refer(store, plan, earlier.outputs.values())
        return earlier
    if refusal := _refusal(store, plan):
        raise RefusedError(
            f"{refusal['message']} (The same work failed before; it is not tried again until it changes.)"
        )
    return _run(interface, store, plan, manifests)


def prepare(stage: str, inputs: Mapping[str, str], parameters: Mapping[str, Any]) -> Plan:
    """The step that these input digests and parameters make, or a ValueError that names the wrong one."""
    return Plan(stage, dict(inputs), read(stage).settle(parameters), code_version(stage))


def finished(store: Store, key: str) -> Done | None:
    """The result of work done before, or None. A result that is damaged, or whose objects have gone, is no result.

    Neither is one that its stage did not sign, where public keys are set.
    """
    record = _result(store, key)
    if record is None:
        return None
    outputs = {}
    try:
        for name, digest in record["outputs"].items():
            if not store.has(digest):
                return None
            outputs[name] = Manifest.decode(store.get(digest), f"{record['stage']} {name}")
            if not all(store.has(named) for named in _named(store, outputs[name])):
                return None
    except ValueError as error:
        _tell_unbelieved(key, sentence(error))
        return None
    return Done(key, outputs, record["values"], record["seconds"], True, record.get("spent", {}))


def _result(store: Store, key: str) -> dict[str, Any] | None:
    data = store.read(f"work/{key}/result.json", lineage.LARGEST)
    record = contracts.try_decode("result", data)
    if data is None or record is None or not {"stage", "outputs", "values", "seconds", "inputs"} <= set(record):
        return None
    if not all(isinstance(record[name], dict) for name in ("outputs", "values", "inputs")):
        return None
    if trusted := stage_keys.trusted():
        try:
            lineage.check_result(trusted, data, f"The result of {record['stage']}")
            if lineage.key_of(record) != key:
                raise PermissionError("The result belongs to other work.")
        except (PermissionError, KeyError) as error:
            _tell_unbelieved(key, sentence(error))
            return None
    return record


def _refusal(store: Store, plan: Plan) -> dict[str, Any] | None:
    """The error for which this work is not tried again, or None; where signatures count, one that its stage signed."""
    data = store.read(f"work/{plan.key}/error.json", lineage.LARGEST)
    record = contracts.try_decode("error", data)
    if data is None or record is None or not isinstance(record.get("message"), str):
        return None
    if trusted := stage_keys.trusted():
        try:
            signed = stage_keys.check(trusted, "error", data, "The error")
        except PermissionError:
            return None
        return record if (signed["stage_key"]["stage"], record.get("key")) == (plan.stage, plan.key) else None
    return record


def _tell_unbelieved(key: str, why: str) -> None:
    why = f"{why} The work is done again."
    log.warning("result not believed", extra={"fields": {"stage": "work", "work": key[:12], "why": why}})


def _named(store: Store, manifest: Manifest) -> Iterator[str]:
    """The objects that an artifact consists of, the shards of a data set among them."""
    yield from (blob.digest for blob in manifest.files.values())
    for kind in ("dataset", "portion"):
        about = manifest.files.get(f"{kind}.json")
        if about and store.has(about.digest):
            record = contracts.decode(kind, store.get(about.digest), f"{kind}.json")
            yield from (shard["digest"] for shard in record["shards"])


def whole(store: Store, output: str) -> bool:
    """Whether the work that gave this artifact, and all the work it rests on, would be found done."""
    manifest = contracts.try_decode("manifest", store.get(output)) if store.has(output) else None
    if manifest and manifest.get("parts"):
        return all(whole(store, part) for part in manifest["parts"])
    ref = contracts.try_decode("ref", store.read(f"refs/{output}.json", lineage.LARGEST)) or {}
    key = str(ref.get("key", ""))
    done = _result(store, key) if key else None
    if done is None or finished(store, key) is None:
        return False
    # What came from outside (an earlier split, a model in service) was made by other runs, and is not asked for.
    given = {name: digest for name, digest in done["inputs"].items() if name not in ("previous", "champion")}
    return all(whole(store, digest) for digest in given.values())


def _run(interface: Interface, store: Store, plan: Plan, manifests: Mapping[str, Manifest]) -> Done:
    begun = time.perf_counter()
    function = getattr(importlib.import_module(f"components.{plan.stage}.{plan.stage}"), plan.stage)
    with tempfile.TemporaryDirectory(prefix=f"medloop-{plan.stage}-") as scratch:
        folders = {name: Path(scratch) / name for name in (*interface.inputs, *interface.outputs)}
        for name in interface.outputs:
            folders[name].mkdir()
        for name, manifest in manifests.items():
            lay_out(store, manifest, folders[name])
        own = Work(plan.key, store, plan.inputs, step_log.run(), plan.stage)
        extra = {"work": own} if interface.takes_work else {}
        try:
            values = function(**folders, **extra, **interface.arguments(plan.parameters)) or {}
        except RefusedError as error:
            if plan.stage not in IMPURE:
                refusal = _signed("error", plan.stage, {"key": plan.key, "message": redact(str(error))})
                store.write(f"work/{plan.key}/error.json", refusal)
            raise
        outputs = {name: gather(store, folders[name]) for name in interface.outputs}
    done = Done(plan.key, outputs, values, time.perf_counter() - begun, False, own.spent)
    if plan.stage not in IMPURE:
        _record(store, plan, done)
    return done


def _record(store: Store, plan: Plan, done: Done) -> None:
    kept = store.names(f"work/{plan.key}")
    record = {
        "stage": plan.stage,
        "inputs": plan.inputs,
        "parameters": plan.parameters,
        "code": plan.code,
        "outputs": {name: manifest.digest for name, manifest in done.outputs.items()},
        "values": done.values,
        "seconds": round(done.seconds, 3),
        **({"spent": done.spent} if done.spent else {}),
    }
    plans = [plan]
    if plan.stage in SETTLED:
        given, gave = SETTLED[plan.stage]
        plans.append(replace(plan, inputs={**plan.inputs, given: done.outputs[gave].digest}))
    for each in plans:
        result = _signed("result", plan.stage, {**record, "inputs": each.inputs})
        store.write(f"work/{each.key}/result.json", result)
    _refer(store, plan, done.outputs.values())
    for name in kept:
        if not name.endswith("/result.json"):
            store.delete(name)  # the checkpoints have served


def _signed(kind: str, stage: str, record: dict[str, Any]) -> bytes:
    """The bytes of a record, signed by the key of its stage where there is one."""
    key = stage_keys.held(stage)
    return contracts.encode(kind, key.sign(kind, record) if key else record)


def _refer(store: Store, plan: Plan, outputs: Iterable[Manifest]) -> None:
    """Write down for each artifact which work gave it: the newest that did, since several may give the same."""
    data = contracts.encode("ref", {"key": plan.key, "stage": plan.stage})
    for manifest in outputs:
        name = f"refs/{manifest.digest}.json"
        if store.read(name) != data:
            store.write(name, data)
