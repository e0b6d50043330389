"""Proves that an image which a team brings keeps a stage's interface: by asking it, and by letting it work."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import workflows
from components.shared import contracts, environment
from components.shared.contracts import Manifest
from components.shared.errors import RefusedError, UnavailableError
from components.shared.ledger import signing, stage_keys
from components.shared.parsing.json_documents import parse_json, read_json
from components.shared.runtime.interface import nearest, read, stages
from components.shared.storage import artifacts
from components.shared.storage.store import Store, open_scratch
from medloop.findings import Finding
from medloop.runner import replay
from medloop.runner.containers import check_images
from medloop.runner.run import Run, start
from medloop.settings import Settings

HARD = ("--network", "none", "--read-only", "--tmpfs", "/tmp:exec")  # noqa: S108 - the container's own
"""What a careful cluster gives a container, and here no network either, since the store is a directory."""

QUICK = Path(workflows.__file__).parent / "params" / "smoke.yaml"

PATIENCE = 120
"""Seconds for a container that only has to say what it is."""

ASK = """
import json
import os
from components.shared.contracts import SCHEMAS
from components.shared.runtime.interface import read
from components.shared.runtime.stage_code import package_versions
found = read({stage!r})
parameters = {{name: [p.type.__name__, p.required] for name, p in found.parameters.items()}}
told = {{"inputs": found.inputs, "outputs": found.outputs, "parameters": parameters, "schemas": SCHEMAS}}
absent = [name for name, version in package_versions({stage!r}).items() if version == "absent"]
print(json.dumps({{**told, "absent": absent, "made_for": os.environ.get("STAGE", "")}}))
"""
EXECUTOR = "import os; os.environ['_KFP_RUNTIME'] = 'true'; import kfp.dsl.executor_main, components.stage; print('ok')"


def check(image: str, stage: str) -> Iterator[Finding]:
    """Each check as it is done. Later ones are left out where they would make no sense."""
    if stage not in stages():
        raise RefusedError(f"There is no stage {stage!r}.{nearest(stage, stages())} Stages: {', '.join(stages())}.")
    check_images([image])
    # This check runs a loop of its own, which must not be signed.
    environment.remove(signing.VARIABLE, signing.VERIFY, stage_keys.VARIABLE)
    told, trouble = _ask(image, ASK.format(stage=stage))
    theirs = _read(told)
    if theirs is None:
        trouble = trouble or f"it says {told[-80:]!r}"
        yield Finding(
            "interface",
            "problem",
            f"it does not answer for components/{stage}/{stage}.py ({trouble}). Build it FROM medloop-{stage} and "
            f"replace that file, or put python3, medloop's package `components` and `kfp` (--no-deps) into it",
        )
        return
    found = list(_compare(stage, theirs))
    yield from found
    told, trouble = _ask(image, EXECUTOR)
    if told:
        yield Finding("executor", "ok", "Kubeflow's executor and components.stage load in it")
    else:
        yield Finding(
            "executor", "problem", f"Kubeflow's executor does not load: {trouble}. Add: pip install --no-deps kfp"
        )
        return
    if all(each.state != "problem" for each in found):
        yield from _work(image, stage)


def _ask(image: str, code: str) -> tuple[str, str]:
    """What Python in the image prints, or nothing and the last line of its trouble."""
    options = ("--rm", "--network", "none", "--entrypoint", "python3")
    command = ["docker", "run", *options, image, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return "", f"its python3 says nothing within {PATIENCE} s"
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return (done.stdout.strip(), "") if done.returncode == 0 else ("", last)


def _read(told: str) -> dict[str, Any] | None:
    """The image's account of itself, in its last line, or None where it is none."""
    try:
        account = parse_json(told.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return account if isinstance(account, dict) and {"inputs", "outputs", "parameters"} <= set(account) else None


def _compare(stage: str, theirs: dict[str, Any]) -> Iterator[Finding]:
    """Its interface beside the one that the pipeline is made for."""
    ours = read(stage)
    for side, wanted in (("inputs", ours.inputs), ("outputs", ours.outputs)):
        same = set(theirs[side]) == set(wanted)
        words = ", ".join(wanted) or "none"
        means = words if same else f"has {', '.join(theirs[side]) or 'none'}, and the pipeline has {words}"
        yield Finding(side, "ok" if same else "problem", means)
    wrong = [
        f"{name} is {theirs['parameters'].get(name, ['missing'])[0]}, not {parameter.type.__name__}"
        for name, parameter in ours.parameters.items()
        if theirs["parameters"].get(name, [""])[0] != parameter.type.__name__
    ]
    more = [name for name in theirs["parameters"] if name not in ours.parameters]
    asking = [name for name in more if theirs["parameters"][name][1]]
    if wrong or asking:
        wrong += [f"{name} is required, and the pipeline does not give it" for name in asking]
        yield Finding("parameters", "problem", "; ".join(wrong))
    else:
        extra = f"; more of its own: {', '.join(more)}" if more else ""
        yield Finding("parameters", "ok", f"all {len(ours.parameters)}{extra}")
    if theirs["absent"]:
        made_for = f"; it seems to be made for {theirs['made_for']}" if theirs["made_for"] not in ("", stage) else ""
        lacks = f"it lacks {', '.join(theirs['absent'])}, which its pyproject.toml names for {stage}{made_for}"
        yield Finding("packages", "problem", lacks)
    else:
        yield Finding("packages", "ok", f"all that its pyproject.toml names for {stage}")
    kinds = contracts.SCHEMAS.items()
    other = [
        f"{kind} {n} ({theirs['schemas'].get(kind, 'none')} there)"
        for kind, n in kinds
        if theirs["schemas"].get(kind) != n
    ]
    means = f"here are {', '.join(other)}" if other else "the same versions of every record"
    yield Finding("contracts", "problem" if other else "ok", means)


def _work(image: str, stage: str) -> Iterator[Finding]:
    """Let it do its step of a small loop, and let the steps after it go on with what it gave."""
    with tempfile.TemporaryDirectory(prefix="medloop-check-") as folder:
        settings = Settings(Path(folder), f"{folder}/store", f"sqlite:///{folder}/tracking.db", "")
        run = _loop(settings, "reject" if stage == "reject" else "deploy")
        # The steps share one scratch, so that each finds what the one before it gave.
        store = open_scratch(settings.store, Path(folder) / "scratch")
        given: dict[str, str] = {}  # what the image gave, by what our own step gave in its place
        worked = False
        for step in run.stages:
            mine = step["stage"] == stage
            if not mine and not any(_concerned(store, digest, given) for digest in step["inputs"].values()):
                continue
            changed = {**step, "inputs": {name: _now(store, digest, given) for name, digest in step["inputs"].items()}}
            again = replay.prepare(settings, store, run, changed, Path(folder) / "scratch")
            done = _do(again, image if mine else "")
            if mine and done.hard is False and not done.trouble:
                yield Finding("rights", "note", "it needs the network, or a place to write besides /tmp")
            if done.trouble:
                who = "it" if mine else f"{step['stage']}, with what it gave,"
                yield Finding("works" if mine else "is understood", "problem", f"{who} failed: {done.trouble}")
                return
            given |= {digest: done.outputs[name] for name, digest in step["outputs"].items()}
            if mine:
                yield from _tell(step, done, first=not worked)
                worked = True
            elif step["stage"] == "gate" and done.values["outcome"] != step["values"]["outcome"]:
                yield Finding(
                    "is understood", "note", f"the gate would say {done.values['outcome']} on the synthetic scans"
                )
                return
            else:
                yield Finding("is understood", "ok", f"by {step['stage']}")


def _concerned(store: Store, digest: str, given: dict[str, str]) -> bool:
    """Whether an artifact is, or has in it, what the image gave in the place of our own."""
    return bool({digest, *Manifest.decode(store.get(digest), digest[:12]).parts} & set(given))


def _now(store: Store, digest: str, given: dict[str, str]) -> str:
    """The artifact that stands in an artifact's place, also where one of its parts was replaced."""
    parts = Manifest.decode(store.get(digest), digest[:12]).parts
    if not set(parts) & set(given):
        return given.get(digest, digest)
    members = [given.get(part, part) for part in parts]
    return artifacts.combine(store, (Manifest.decode(store.get(member), member[:12]) for member in members)).digest


@dataclass(frozen=True)
class _Done:
    values: dict[str, Any]
    outputs: dict[str, str]
    trouble: str
    hard: bool | None


def _tell(step: dict[str, Any], done: _Done, first: bool) -> Iterator[Finding]:
    if not first:
        yield Finding("works", "ok", "also on its second step of the loop")
        return
    missing = set(step["values"]) - set(done.values)
    if missing:
        yield Finding(
            "values", "problem", f"it does not give {', '.join(sorted(missing))}, which the pipeline hands on"
        )
    means = "on synthetic scans, as any user" + (", without a network, on a read-only root" if done.hard else "")
    yield Finding("works", "ok", means)
    same = all(done.outputs[name] == digest for name, digest in step["outputs"].items())
    if step["outputs"]:
        yield Finding(
            "result", "ok", "the very bytes of medloop's own stage" if same else "its own, not medloop's bytes"
        )


def _loop(settings: Settings, ending: str) -> Run:
    """A whole run of medloop's own stages on a few synthetic scans, which comes to that ending."""
    from medloop.synth import synth
    from workflows.parameters import settle

    scans = settings.home / "scans"
    synth(scans, patients=24)
    asked = settle(str(scans), QUICK, [] if ending == "deploy" else ["policy.floors.accuracy=0.999"], {})
    run = start(settings, asked, "subprocess", {}, lambda _event: None)
    if not run.last(ending):
        why = run.record.get("why") or run.record.get("sentence")
        raise UnavailableError(f"medloop's own loop did not come to {ending} here: {why}. See `medloop doctor`.")
    return run


def _do(again: replay.Replay, image: str) -> _Done:
    for hard in (True, False) if image else (None,):
        with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as heard:
            status = replay.do(again, image, False, told, heard, HARD if hard else ())
            told.seek(0)
            heard.seek(0)
            values, said = told.read().strip(), heard.read().strip().splitlines()
        if status == 0:
            break
    if status:
        return _Done({}, {}, said[-1] if said else f"it ended with {status} without a word", hard)
    missing = [name for name, path in again.outputs.items() if not path.exists()]
    if missing:
        return _Done({}, {}, f"it ended well, and left no {', '.join(missing)}", hard)
    outputs = {name: Manifest.decode(path.read_bytes(), name).digest for name, path in again.outputs.items()}
    return _Done(read_json(values, "what it printed"), outputs, "", hard)
