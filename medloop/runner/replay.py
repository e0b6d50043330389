"""Does a step of an earlier run again, here, on the very inputs it had; nothing of it reaches the store."""

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
from components.shared.runtime.interface import nearest, read
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
"""Does a stage, and stops in the debugger where it fails: `python -m pdb` would then start it anew, and end well."""


@dataclass(frozen=True)
class Replay:
    """A step set up to be done again: what it was, and where the new try has its files."""

    step: dict[str, Any]
    folder: Path
    environment: dict[str, str]
    store: str
    scratch: Path

    @property
    def inputs(self) -> dict[str, Path]:
        """The manifest of each input."""
        return {name: self.folder / "inputs" / f"{name}.json" for name in self.step["inputs"]}

    @property
    def outputs(self) -> dict[str, Path]:
        """Where the manifest of each output will be."""
        return {name: self.folder / "outputs" / f"{name}.json" for name in read(self.step["stage"]).outputs}


def choose(run: Run, stage: str, number: int) -> dict[str, Any]:
    """The step of that stage in a run (the last one, or the one of that number), or a sentence why it cannot be."""
    steps = [step for step in run.stages if step["stage"] == stage]
    if not steps:
        had = sorted({step["stage"] for step in run.stages})
        raise RefusedError(f"The run {run.id} came to no {stage!r}.{nearest(stage, had)} It did: {', '.join(had)}.")
    if not 0 <= number <= len(steps):
        raise RefusedError(
            f"The run {run.id} did {stage} {len(steps)} times, so there is no number {number}. Leave it out."
        )
    step = steps[number - 1]
    if "inputs" not in step:
        raise RefusedError(
            f"The step {stage} of {run.id} failed before it knew its inputs: {step.get('why', 'it does not say why.')}"
        )
    interface = read(stage)
    foreign = {*step["inputs"]} - {*interface.inputs} | {*step.get("parameters", {})} - {*interface.parameters}
    if foreign:
        raise RefusedError(
            f"The step {stage} of {run.id} had {', '.join(sorted(foreign))}, which {stage} does not take in this "
            "version of medloop. Use the version that ran it."
        )
    return step


def prepare(settings: Settings, store: Store, run: Run, step: dict[str, Any], scratch: Path | None = None) -> Replay:
    """Fetch the step's inputs by their digests, into a directory of its own below the home.

    Whatever the step writes goes into `scratch`, by default into that directory.
    """
    folder = _new_folder(settings.home / "replays", f"{run.id}-{step['stage']}")
    aside = scratch or folder
    aside.mkdir(exist_ok=True)
    replay = Replay(step, folder, _environment(settings, run, step["stage"], folder, aside), store.uri, aside)
    for path in (folder / "inputs", folder / "outputs"):
        path.mkdir()
    for name, digest in step["inputs"].items():
        replay.inputs[name].write_bytes(store.get(digest))
    return replay


def _new_folder(place: Path, name: str) -> Path:
    number = 1
    while (folder := place / f"{name}-{number}").exists():
        number += 1
    folder.mkdir(parents=True)
    return folder


def _environment(settings: Settings, run: Run, stage: str, folder: Path, aside: Path) -> dict[str, str]:
    source = str(run.record["arguments"].get("source", ""))
    # Most stages need no key. One that was made here would fit no data of the store, and later be taken for the loop's.
    environment = stage_environment(settings, source, make_key=False)
    environment.pop("MEDLOOP_LOG")
    # Nothing that others see: no tracking, no message, and all that is written goes aside.
    environment.pop("MEDLOOP_NOTIFY_URL", None)
    if stage not in ("resolve", "deploy", "reject"):
        environment.pop(signing.VARIABLE, None)
    return {**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/tracking.db", VARIABLE: str(aside)}


def do(
    replay: Replay,
    image: str,
    debug: bool,
    told: IO[str],
    heard: IO[str] | None = None,
    options: Sequence[str] = (),
) -> int:
    """Do the step, with this Python or in a container of that image, run with these options; gives its exit status.

    `told` gets the values that the step gives, `heard` what it says besides.
    """
    stage = replay.step["stage"]
    arguments = ["--store", replay.store]
    for name, path in (*replay.inputs.items(), *replay.outputs.items()):
        arguments += [f"--{name}", str(path)]
    # A replay signs nothing: its parameters come from a record that nobody signed.
    for name, value in {**replay.step["parameters"], **({"signer": ""} if stage == "gate" else {})}.items():
        arguments.append(f"--{name.replace('_', '-')}={value if isinstance(value, str) else json.dumps(value)}")
    python = ["-c", DEBUGGED] if debug else ["-m", "components"]
    environment = {**replay.environment, **({"MEDLOOP_TRACEBACK": "1"} if debug else {})}
    command = [*python, stage, *arguments]
    if image:
        command, environment = _in_a_container(replay, image, command, environment, debug, options)
    else:
        command = [sys.executable, *command]
    done = subprocess.run(command, env=environment, stdout=told, stderr=heard, check=False)
    return done.returncode


def _in_a_container(
    replay: Replay, image: str, command: list[str], variables: dict[str, str], debug: bool, more: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The command that does it in a container, and the environment of that command."""
    from medloop.runner.containers import check_images, handed_on, named_files, network

    check_images([image])
    mounts = {str(replay.folder): "rw", str(replay.scratch): "rw"}
    source = replay.step["parameters"].get("source", "")
    for place in (replay.store, source):
        if place and "://" not in place and Path(place).exists():
            mounts[place] = "ro"
    mounts |= named_files(variables)
    named = {**handed_on(variables), "HOME": str(replay.folder), "TMPDIR": "/tmp"}  # noqa: S108 - the container's
    options = ["--rm", "--user", f"{os.getuid()}:{os.getgid()}", "--shm-size", "1g", "--entrypoint", "python3"]
    options += ["--network", network(variables)] if "--network" not in more else []
    options += ["--interactive", "--tty"] if debug and sys.stdin.isatty() else ["--interactive"] if debug else []
    options += [part for path, mode in mounts.items() for part in ("--mount", _mount(path, mode))]
    options += [part for name in named for part in ("--env", name)]  # by name alone: no secret on the command line
    if replay.step["parameters"].get("device") == "cuda":
        options += ["--gpus", "all"]
    return ["docker", "run", *options, *more, image, *command], {**environment.everything(), **named}


def _mount(path: str, mode: str) -> str:
    """A directory or file at the same path inside, in docker's words, which are a line of CSV."""
    line = io.StringIO()
    parts = ("type=bind", f"source={path}", f"target={path}", *(("readonly",) if mode == "ro" else ()))
    csv.writer(line, lineterminator="").writerow(parts)
    return line.getvalue()


def compare(replay: Replay) -> dict[str, bool | None]:
    """Lay out what the new try gave as files, and say of each output whether it equals the earlier one (None: none)."""
    store = open_scratch(replay.store, replay.scratch)
    equal: dict[str, bool | None] = {}
    for name, path in replay.outputs.items():
        manifest = Manifest.decode(path.read_bytes(), path.name)
        artifacts.lay_out(store, manifest, path.with_suffix(""), copy=True)
        before = replay.step.get("outputs", {}).get(name)
        equal[name] = None if before is None else before == manifest.digest
    return equal
