"""A place to run the command line as a user does: its own home, real processes, everything captured."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from components.shared.storage.store import Store
from medloop.runner.explain import artifact_file
from tests import tracking_database

ROOT = Path(__file__).resolve().parents[2]
README = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/laptop.md"))
"""The README and the page that continues it."""
QUICK = ("--params", str(ROOT / "workflows" / "params" / "smoke.yaml"))


@dataclass(frozen=True)
class Place:
    """A home for one loop, and the means to act on it."""

    home: Path
    extra: Mapping[str, str] = field(default_factory=dict)
    """What stands in the environment besides the home."""

    @property
    def scans(self) -> Path:
        return self.home / "scans"

    def environment(self) -> dict[str, str]:
        dropped = ("MEDLOOP_", "MLFLOW_", "AWS_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return {**inherited, "MEDLOOP_HOME": str(self.home), "COLUMNS": "120", **self.extra}

    def medloop(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `medloop` to its end; the exit status must be as said."""
        tracking_database.place_in(self.home)
        command = [sys.executable, "-W", "error::DeprecationWarning:components", "-m", "medloop.cli.main", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment(), cwd=ROOT, timeout=280, check=False
        )
        assert done.returncode == status, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def run(self, *arguments: str, status: int = 0, source: Path | str | None = None) -> dict[str, Any]:
        """Run the loop on this place's scans; gives what --json prints."""
        scans = str(source or self.scans)
        done = self.medloop("run", "--source", scans, *QUICK, *arguments, "--json", status=status)
        return dict(json.loads(done.stdout))

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a run on this place's scans without waiting for it."""
        tracking_database.place_in(self.home)
        command = [sys.executable, "-m", "medloop.cli.main", "run", "--source", str(self.scans), *QUICK, *arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(),
            cwd=ROOT,
            start_new_session=True,
        )

    def models(self) -> dict[str, Any]:
        """What `medloop models --json` says."""
        return dict(json.loads(self.medloop("models", "--json").stdout))

    def processes(self) -> list[int]:
        """The processes that work for this place: those whose environment names its home."""
        mine = f"MEDLOOP_HOME={self.home}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mine in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


def shown_as(language: str) -> list[str]:
    """The README's code blocks in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def states(run: dict[str, Any]) -> dict[str, str]:
    """How each stage of a run ended; a stage that ran twice stands with its last state."""
    return {step["stage"]: step["state"] for step in run["stages"]}


def outputs(run: dict[str, Any], stage: str) -> dict[str, str]:
    """The digests of what a stage of a run gave, in its first place."""
    return dict(next(step["outputs"] for step in run["stages"] if step["stage"] == stage))


def same_but_for_time(stage: str, ours: tuple[Store, dict[str, str]], theirs: tuple[Store, dict[str, str]]) -> bool:
    """Whether a stage gave the same twice, but for what it measured: evaluate times the model, and gate reads that."""
    if stage not in ("evaluate", "gate"):
        return ours[1] == theirs[1]
    name, kind, changing = {
        "evaluate": ("report", "metrics", {"latency"}),
        "gate": ("decision", "decision", {"report", "page"}),
    }[stage]
    records = []
    for store, digests in (ours, theirs):
        record = json.loads(artifact_file(store, digests[name], f"{kind}.json"))
        records.append({field: value for field, value in record.items() if field not in changing})
    return records[0] == records[1]


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until it is so, or fail."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.05)


def end(process: subprocess.Popen[str], number: int = signal.SIGINT) -> str:
    """Send a signal and wait for the end; gives what the process printed."""
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    return printed


@pytest.fixture(scope="session")
def few_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few synthetic scans, made once and then copied."""
    made = Place(tmp_path_factory.mktemp("few"))
    made.medloop("synth", str(made.scans), "--patients", "24")
    return made.scans


@pytest.fixture
def place(few_scans: Path, tmp_path: Path) -> Place:
    """A place of its own with a few synthetic scans."""
    made = Place(tmp_path / "home")
    shutil.copytree(few_scans, made.scans)
    return made
