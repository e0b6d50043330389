"""Check that a custom image can replace a stage's image: its interface, packages and results."""

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
from components.shared.ledger import signing, stage_signing
from components.shared.parsing.json_documents import parse_json, read_json
from components.shared.runtime.stage_interface import nearest, read, stages
from components.shared.storage import artifacts
from components.shared.storage.store import Store, open_scratch
from medloop.check_results import CheckResult
from medloop.runner import replay
from medloop.runner.containers import check_images
from medloop.runner.run import Run, start
from medloop.settings import Settings

RESTRICTIONS = ("--network", "none", "--read-only", "--tmpfs", "/tmp:exec")  # noqa: S108 - the container's own
"""Docker options of a restricted container. It needs no network, since the store is a directory."""

QUICK = Path(workflows.__file__).parent / "params" / "smoke.yaml"

TIMEOUT = 120
"""Maximum seconds for a container that prints its interface."""

DESCRIBE = """
import json
import os
from components.shared.contracts import SCHEMAS
from components.shared.runtime.stage_interface import read
from components.shared.runtime.code_and_package_versions import package_versions
stage = read({stage!r})
parameters = {{name: [p.type.__name__, p.required] for name, p in stage.parameters.items()}}
interface = {{"inputs": stage.inputs, "outputs": stage.outputs, "parameters": parameters, "schemas": SCHEMAS}}
absent = [name for name, version in package_versions({stage!r}).items() if version == "absent"]
print(json.dumps({{**interface, "absent": absent, "made_for": os.environ.get("STAGE", "")}}))
"""
EXECUTOR = "import os; os.environ['_KFP_RUNTIME'] = 'true'; import kfp.dsl.executor_main, components.stage; print('ok')"


def check(image: str, stage: str) -> Iterator[CheckResult]:
    """Yield the result of each check; stop after a failure that makes the following checks meaningless."""
    if stage not in stages():
        raise RefusedError(f"There is no stage {stage!r}.{nearest(stage, stages())} Stages: {', '.join(stages())}.")
    check_images([image])
    # This check runs a loop of its own, which must not be signed.
    environment.remove(signing.VARIABLE, signing.VERIFY, stage_signing.VARIABLE)
    output, error = _python(image, DESCRIBE.format(stage=stage))
    theirs = _parse_interface(output)
    if theirs is None:
        error = error or f"its output ends with {output[-80:]!r}"
        yield CheckResult(
            "interface",
            "problem",
            f"the image does not describe components/{stage}/{stage}.py ({error}). Build it FROM medloop-{stage} and "
            f"replace that file, or install python3, medloop's package `components` and `kfp` (--no-deps) in it",
        )
        return
    results = list(_compare(stage, theirs))
    yield from results
    output, error = _python(image, EXECUTOR)
    if output:
        yield CheckResult("executor", "ok", "Kubeflow's executor and components.stage can be imported")
    else:
        yield CheckResult(
            "executor", "problem", f"Kubeflow's executor cannot be imported: {error}. Add: pip install --no-deps kfp"
        )
        return
    if all(result.state != "problem" for result in results):
        yield from _run_steps(image, stage)


def _python(image: str, code: str) -> tuple[str, str]:
    """Run Python code in the image; return its output, or "" and the last line of the error."""
    options = ("--rm", "--network", "none", "--entrypoint", "python3")
    command = ["docker", "run", *options, image, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return "", f"its python3 printed nothing within {TIMEOUT} s"
    last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
    return (done.stdout.strip(), "") if done.returncode == 0 else ("", last)


def _parse_interface(output: str) -> dict[str, Any] | None:
    """Return the interface in the last line of the output, or None if there is none."""
    try:
        interface = parse_json(output.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return interface if isinstance(interface, dict) and {"inputs", "outputs", "parameters"} <= set(interface) else None


def _compare(stage: str, theirs: dict[str, Any]) -> Iterator[CheckResult]:
    """Compare the interface of the image with that of the pipeline."""
    ours = read(stage)
    for kind, names in (("inputs", ours.inputs), ("outputs", ours.outputs)):
        same = set(theirs[kind]) == set(names)
        words = ", ".join(names) or "none"
        means = words if same else f"the image has {', '.join(theirs[kind]) or 'none'}, the pipeline has {words}"
        yield CheckResult(kind, "ok" if same else "problem", means)
    wrong = [
        f"{name} is {theirs['parameters'].get(name, ['missing'])[0]}, not {parameter.type.__name__}"
        for name, parameter in ours.parameters.items()
        if theirs["parameters"].get(name, [""])[0] != parameter.type.__name__
    ]
    more = [name for name in theirs["parameters"] if name not in ours.parameters]
    required = [name for name in more if theirs["parameters"][name][1]]
    if wrong or required:
        wrong += [f"{name} is required, but the pipeline does not pass it" for name in required]
        yield CheckResult("parameters", "problem", "; ".join(wrong))
    else:
        extra = f"; additional: {', '.join(more)}" if more else ""
        yield CheckResult("parameters", "ok", f"all {len(ours.parameters)}{extra}")
    if theirs["absent"]:
        made_for = f"; the image seems to be for {theirs['made_for']}" if theirs["made_for"] not in ("", stage) else ""
        lacks = f"missing: {', '.join(theirs['absent'])}, required by its pyproject.toml for {stage}{made_for}"
        yield CheckResult("packages", "problem", lacks)
    else:
        yield CheckResult("packages", "ok", f"all that its pyproject.toml requires for {stage}")
    other = [
        f"{kind} {version} (image: {theirs['schemas'].get(kind, 'none')})"
        for kind, version in contracts.SCHEMAS.items()
        if theirs["schemas"].get(kind) != version
    ]
    means = f"this version of medloop has {', '.join(other)}" if other else "the same versions of every record"
    yield CheckResult("contracts", "problem" if other else "ok", means)


def _run_steps(image: str, stage: str) -> Iterator[CheckResult]:
    """Run the image's step of a small loop, and the following steps on its outputs."""
    with tempfile.TemporaryDirectory(prefix="medloop-check-") as folder:
        tracking = f"sqlite:///{folder}/tracking.db" if stage in ("train", "deploy") else ""  # others do not track
        settings = Settings(Path(folder), f"{folder}/store", tracking, "")
        run = _loop(settings, "reject" if stage == "reject" else "deploy")
        # All steps share one scratch directory, so that each finds the outputs of the previous ones.
        store = open_scratch(settings.store, Path(folder) / "scratch")
        replaced: dict[str, str] = {}  # digest of medloop's output to digest of the image's output
        worked = False
        for step in run.stages:
            mine = step["stage"] == stage
            if not mine and not any(_contains(store, digest, replaced) for digest in step["inputs"].values()):
                continue
            inputs = {name: _replace(store, digest, replaced) for name, digest in step["inputs"].items()}
            prepared = replay.prepare(settings, store, run, {**step, "inputs": inputs}, Path(folder) / "scratch")
            result = _run_step(prepared, image if mine else "")
            if mine and result.restricted is False and not result.error:
                yield CheckResult("rights", "note", "it needs the network, or a writable path other than /tmp")
            if result.error:
                subject = "it" if mine else f"{step['stage']}, with the image's output,"
                yield CheckResult("works" if mine else "is understood", "problem", f"{subject} failed: {result.error}")
                return
            replaced |= {digest: result.outputs[name] for name, digest in step["outputs"].items()}
            if mine:
                yield from _compare_results(step, result, first=not worked)
                worked = True
            elif step["stage"] == "gate" and result.values["outcome"] != step["values"]["outcome"]:
                means = f"the outcome of the gate would be {result.values['outcome']!r} on the synthetic scans"
                yield CheckResult("is understood", "note", means)
                return
            else:
                yield CheckResult("is understood", "ok", f"by {step['stage']}")


def _contains(store: Store, digest: str, replaced: dict[str, str]) -> bool:
    """Return whether an artifact or one of its parts was replaced by the image's output."""
    return bool({digest, *Manifest.decode(store.get(digest), digest[:12]).parts} & set(replaced))


def _replace(store: Store, digest: str, replaced: dict[str, str]) -> str:
    """Return the artifact with itself or its parts replaced by the image's outputs."""
    parts = Manifest.decode(store.get(digest), digest[:12]).parts
    if not set(parts) & set(replaced):
        return replaced.get(digest, digest)
    members = [replaced.get(part, part) for part in parts]
    return artifacts.combine(store, (Manifest.decode(store.get(member), member[:12]) for member in members)).digest


@dataclass(frozen=True)
class _StepResult:
    values: dict[str, Any]
    outputs: dict[str, str]
    error: str
    restricted: bool | None


def _compare_results(step: dict[str, Any], result: _StepResult, first: bool) -> Iterator[CheckResult]:
    if not first:
        yield CheckResult("works", "ok", "also in its second step of the loop")
        return
    missing = set(step["values"]) - set(result.values)
    if missing:
        means = f"it does not return {', '.join(sorted(missing))}, which the pipeline passes on"
        yield CheckResult("values", "problem", means)
    restricted = ", without network, on a read-only root" if result.restricted else ""
    yield CheckResult("works", "ok", f"on synthetic scans, as an arbitrary user{restricted}")
    same = all(result.outputs[name] == digest for name, digest in step["outputs"].items())
    if step["outputs"]:
        means = "identical to the output of medloop's own stage" if same else "differs from medloop's own stage"
        yield CheckResult("result", "ok", means)


def _loop(settings: Settings, ending: str) -> Run:
    """Run medloop's own loop on a few synthetic scans, so that it ends with the stage `ending`."""
    from medloop.synth import synth
    from workflows.parameters import settle

    scans = settings.home / "scans"
    synth(scans, patients=24)
    parameters = settle(str(scans), QUICK, [] if ending == "deploy" else ["policy.floors.accuracy=0.999"], {})
    run = start(settings, parameters, "subprocess", {}, lambda _event: None)
    if not run.last(ending):
        why = run.record.get("why") or run.record.get("sentence")
        raise UnavailableError(
            f"medloop's own loop did not reach {ending} on this machine: {why}. See `medloop doctor`."
        )
    return run


def _run_step(prepared: replay.Replay, image: str) -> _StepResult:
    for restricted in (True, False) if image else (None,):
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            status = replay.run(prepared, image, False, stdout, stderr, RESTRICTIONS if restricted else ())
            stdout.seek(0)
            stderr.seek(0)
            values, errors = stdout.read().strip(), stderr.read().strip().splitlines()
        if status == 0:
            break
    if status:
        return _StepResult({}, {}, errors[-1] if errors else f"exited {status} without a message", restricted)
    missing = [name for name, path in prepared.outputs.items() if not path.exists()]
    if missing:
        return _StepResult({}, {}, f"exited 0 but wrote no {', '.join(missing)}", restricted)
    outputs = {name: Manifest.decode(path.read_bytes(), name).digest for name, path in prepared.outputs.items()}
    return _StepResult(read_json(values, "its output"), outputs, "", restricted)
