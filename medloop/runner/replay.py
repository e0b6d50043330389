"""Repeat a step of an earlier run on the same inputs, without changing the store."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from components.shared import environment
from components.shared.contracts import Manifest
from components.shared.errors import RefusedError
from components.shared.ledger import signing
from components.shared.runtime.stage_interface import nearest, read
from components.shared.storage import artifacts
from components.shared.storage.scratch import VARIABLE
from components.shared.storage.store import Store, open_scratch
from medloop.runner.run import Run
from medloop.settings import Settings, stage_environment

DEBUGGED = """\
import pdb, sys, traceback
from components.__main__ import main
try:
    status = main(sys.argv[1:])
except Exception:
    traceback.print_exc()
    pdb.post_mortem()
    status = 1
sys.exit(status)
"""
"""Runs a stage and opens the debugger at a failure. `python -m pdb` would restart the stage and exit with 0."""


@dataclass(frozen=True)
class Replay:
    """A recorded step and the directories for its repetition."""

    step: dict[str, Any]
    folder: Path
    environment: dict[str, str]
    store: str
    scratch: Path

    @property
    def inputs(self) -> dict[str, Path]:
        """The manifest file of each input."""
        return {name: self.folder / "inputs" / f"{name}.json" for name in self.step["inputs"]}

    @property
    def outputs(self) -> dict[str, Path]:
        """The manifest file of each output, written by the step."""
        return {name: self.folder / "outputs" / f"{name}.json" for name in read(self.step["stage"]).outputs}


def choose(run: Run, stage: str, number: int) -> dict[str, Any]:
    """Return a step of the stage in a run: the last for 0, otherwise the one with this number."""
    steps = [step for step in run.stages if step["stage"] == stage]
    if not steps:
        available = sorted({step["stage"] for step in run.stages})
        raise RefusedError(
            f"The run {run.id} has no step {stage!r}.{nearest(stage, available)} Its steps: {', '.join(available)}."
        )
    if not 0 <= number <= len(steps):
        raise RefusedError(
            f"--number is {number}, and the run {run.id} has {len(steps)} steps of {stage}. Leave --number out for the "
            "last one."
        )
    step = steps[number - 1]
    if "inputs" not in step:
        raise RefusedError(
            f"The step {stage} of {run.id} failed before its inputs were known: {step.get('why', 'no reason given.')}"
        )
    interface = read(stage)
    foreign = {*step["inputs"]} - {*interface.inputs} | {*step.get("parameters", {})} - {*interface.parameters}
    if foreign:
        raise RefusedError(
            f"The step {stage} of {run.id} has {', '.join(sorted(foreign))}, which {stage} does not accept in this "
            "version of medloop. Use the version that ran it."
        )
    return step


def prepare(settings: Settings, store: Store, run: Run, step: dict[str, Any], scratch: Path | None = None) -> Replay:
    """Fetch the step's inputs into a new directory below the home.

    The step writes to `scratch`, by default to the same directory.
    """
    folder = _new_folder(settings.home / "replays", f"{run.id}-{step['stage']}")
    scratch = scratch or folder
    scratch.mkdir(exist_ok=True)
    replay = Replay(step, folder, _environment(settings, run, step["stage"], folder, scratch), store.uri, scratch)
    for path in (folder / "inputs", folder / "outputs"):
        path.mkdir()
    for name, digest in step["inputs"].items():
        replay.inputs[name].write_bytes(store.get(digest))
    return replay


def _new_folder(parent: Path, name: str) -> Path:
    number = 1
    while (folder := parent / f"{name}-{number}").exists():
        number += 1
    folder.mkdir(parents=True)
    return folder


def _environment(settings: Settings, run: Run, stage: str, folder: Path, scratch: Path) -> dict[str, str]:
    source = str(run.record["arguments"].get("source", ""))
    # Most stages need no hash key. A new one would not match the store, and would later pass for the loop's own.
    environment = stage_environment(settings, source, make_key=False)
    environment.pop("MEDLOOP_LOG")
    # No visible effects: no tracking, no notification, and all output goes to the scratch directory.
    environment.pop("MEDLOOP_NOTIFY_URL", None)
    if stage not in ("resolve", "deploy", "reject"):
        environment.pop(signing.VARIABLE, None)
    return {**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/tracking.db", VARIABLE: str(scratch)}


def run(
    replay: Replay,
    image: str,
    debug: bool,
    stdout: IO[str],
    stderr: IO[str] | None = None,
    options: Sequence[str] = (),
) -> int:
    """Run the step with this Python, or in a container of `image` with these Docker options; return the exit status."""
    stage = replay.step["stage"]
    arguments = ["--store", replay.store]
    for name, path in (*replay.inputs.items(), *replay.outputs.items()):
        arguments += [f"--{name}", str(path)]
    # A replay must not sign: its parameters come from an unsigned record.
    for name, value in {**replay.step["parameters"], **({"signer": ""} if stage == "gate" else {})}.items():
        arguments.append(f"--{name.replace('_', '-')}={value if isinstance(value, str) else json.dumps(value)}")
    python = ["-c", DEBUGGED] if debug else ["-m", "components"]
    environment = {**replay.environment, **({"MEDLOOP_TRACEBACK": "1"} if debug else {})}
    command = [*python, stage, *arguments]
    if image:
        command, environment = _docker_command(replay, image, command, environment, debug, options)
    else:
        command = [sys.executable, *command]
    return subprocess.run(command, env=environment, stdout=stdout, stderr=stderr, check=False).returncode


def _docker_command(
    replay: Replay, image: str, command: list[str], variables: dict[str, str], debug: bool, more: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs the step in a container, and the environment of that command."""
    from medloop.runner.containers import check_images, named_files, network, passed_environment

    check_images([image])
    mounts = {str(replay.folder): "rw", str(replay.scratch): "rw"}
    source = replay.step["parameters"].get("source", "")
    for address in (replay.store, source):
        if address and "://" not in address and Path(address).exists():
            mounts[address] = "ro"
    mounts |= named_files(variables)
    variables = {**passed_environment(variables), "HOME": str(replay.folder), "TMPDIR": "/tmp"}  # noqa: S108 - the container's
    options = ["--rm", "--user", f"{os.getuid()}:{os.getgid()}", "--shm-size", "1g", "--entrypoint", "python3"]
    options += ["--network", network(variables)] if "--network" not in more else []
    options += ["--interactive", "--tty"] if debug and sys.stdin.isatty() else ["--interactive"] if debug else []
    options += [part for path, mode in mounts.items() for part in ("--mount", _mount(path, mode))]
    options += [part for name in variables for part in ("--env", name)]  # names only: no secret on the command line
    if replay.step["parameters"].get("device") == "cuda":
        options += ["--gpus", "all"]
    return ["docker", "run", *options, *more, image, *command], {**environment.everything(), **variables}


def _mount(path: str, mode: str) -> str:
    """Return the value of Docker's --mount option (a line of CSV) for the same path inside the container."""
    line = io.StringIO()
    parts = ("type=bind", f"source={path}", f"target={path}", *(("readonly",) if mode == "ro" else ()))
    csv.writer(line, lineterminator="").writerow(parts)
    return line.getvalue()


def compare(replay: Replay) -> dict[str, bool | None]:
    """Write the new outputs as files, and return for each whether it equals the recorded one (None: not recorded)."""
    store = open_scratch(replay.store, replay.scratch)
    equal: dict[str, bool | None] = {}
    for name, path in replay.outputs.items():
        manifest = Manifest.decode(path.read_bytes(), path.name)
        artifacts.lay_out(store, manifest, path.with_suffix(""), copy=True)
        recorded = replay.step.get("outputs", {}).get(name)
        equal[name] = None if recorded is None else recorded == manifest.digest
    return equal
