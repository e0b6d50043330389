"""Times the loop as its users meet it: the first run, the repeated one, what orchestration adds, the help."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from components.shared import contracts
from components.shared.privacy.keyed_hash import SYNTHETIC
from components.shared.runtime.stage_interface import read
from components.shared.storage.store import open_store

ROOT = Path(__file__).resolve().parents[1]


def clock(command: list[str], home: Path, **environment: str) -> tuple[float, str]:
    """The seconds a command takes as a whole process, and what it printed on standard output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MEDLOOP_", "MLFLOW_"))}
    begun = time.perf_counter()
    done = subprocess.run(
        command,
        env={**inherited, "MEDLOOP_HOME": str(home), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return time.perf_counter() - begun, done.stdout


def medloop(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "medloop.cli.main", *arguments]


def by_hand(run: dict[str, Any], orchestrated: Path, home: Path, scans: Path) -> float:
    """The seconds that the same stages take, each called in a process of its own, without any orchestration."""
    done_before = open_store(str(orchestrated / "store"))
    empty = home / "empty"
    empty.mkdir(parents=True)
    made: dict[str, Path] = {"previous": empty, "champion": empty}
    commands: list[list[str]] = []
    for step in run["stages"]:
        interface = read(step["stage"])
        if step["stage"] in ("resolve", "deploy", "reject"):
            parameters = _impure(step["stage"], run, scans)
        else:
            data = done_before.read(f"work/{step['key']}/result.json")
            assert data is not None
            parameters = contracts.decode("result", data, "result")["parameters"]
        command = [sys.executable, "-m", "components", step["stage"], "--store", str(home / "store")]
        for name in interface.inputs:
            place = {"model": "quantized" if "quantized" in made else "model", "portions": "portion"}.get(name, name)
            command += [f"--{name}", str(made[place])]
        for name in interface.outputs:
            place = name if name not in ("previous", "champion") else f"seen-{name}"
            made[place] = home / f"{place}-{len(commands)}"
            command += [f"--{name}", str(made[place])]
        for name, value in parameters.items():
            command += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
        commands.append(command)
    begun = time.perf_counter()
    for command in commands:
        clock(command, home, MEDLOOP_HASH_KEY=SYNTHETIC, MLFLOW_TRACKING_URI=f"sqlite:///{home / 'tracking.db'}")
    return time.perf_counter() - begun


def _impure(stage: str, run: dict[str, Any], scans: Path) -> dict[str, Any]:
    if stage == "resolve":
        options: dict[str, Any] = {name: {} for name in read("resolve").parameters if name.endswith("_options")}
        return {"source": str(scans), "asked": {}, **options}
    return {"run": run["run"]}


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.loop", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="paired runs of the loop, orchestrated and by hand")
    parser.add_argument("--set", action="append", default=[], help="parameters of the runs, as name=value")
    arguments = parser.parse_args()
    settings = [part for assignment in arguments.set for part in ("--set", assignment)]
    with tempfile.TemporaryDirectory(prefix="medloop-bench-") as scratch:
        base = Path(scratch)
        helps = [clock(medloop("--help"), base)[0] for _ in range(12)][1:]
        synth, _ = clock(medloop("synth", str(base / "scans")), base)
        firsts, repeats, ratios = [], [], []
        for pair in range(arguments.pairs):
            home = base / f"orchestrated-{pair}"
            command = medloop("run", "--source", str(base / "scans"), "--json", *settings)
            first, printed = clock(command, home)
            again, printed_again = clock(command, home)
            reused = [step["state"] for step in json.loads(printed_again)["stages"]][1:-1]
            assert set(reused) == {"reused"}, reused
            hand = by_hand(json.loads(printed), home, base / f"by-hand-{pair}", base / "scans")
            firsts.append(first)
            repeats.append(again)
            ratios.append(first / hand)
            print(f"pair {pair + 1}: run {first:.1f} s, by hand {hand:.1f} s, repeated {again:.1f} s", file=sys.stderr)
    print("| figure | bar | measured (median, range) |")
    print("|---|---|---|")
    print(_row("`make run` after install: synth and first run", "< 180 s", [synth + first for first in firsts], "s"))
    print(_row("a run repeated with nothing changed", "< 15 s, all reused", repeats, "s"))
    print(_row("orchestrated, against the stages by hand", "< 1.10", ratios, "×"))
    print(_row("`medloop --help`", "< 0.3 s", helps, "s"))


def _row(name: str, bar: str, values: list[float], unit: str) -> str:
    return f"| {name} | {bar} | {statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f}) |"


if __name__ == "__main__":
    main()
