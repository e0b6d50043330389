"""What is broken, stopped or killed leaves everything whole, and the same command goes on from there."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from components.shared.ledger import release_log
from components.shared.storage.store import open_store
from tests.e2e.loop import Place, end, states, wait_for

LONG = ("--set", "epochs=10")


def checkpoints(place: Place) -> list[Path]:
    return list((place.home / "store" / "work").glob("*/checkpoint-*"))


def epochs_shown(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"train\s+([\d.]+)/10 epochs,", printed)]


def test_ctrl_c_ends_all_children_and_the_run_goes_on(place: Place) -> None:
    running = place.begin(*LONG)
    wait_for(lambda: bool(checkpoints(place)))
    printed = first = end(running, signal.SIGINT)
    assert running.returncode == 130
    assert "the same command resumes the run" in printed
    assert place.processes() == []
    assert not list((place.home / "runs").glob("*/tmp"))
    assert release_log.read_log(open_store(str(place.home / "store"))) == []
    again = place.begin(*LONG)
    printed, _ = again.communicate(timeout=250)
    assert again.returncode == 0, printed
    assert "epochs restored from the checkpoint" in printed
    assert min(epochs_shown(printed)) > 0
    assert min(epochs_shown(printed)) >= int(max(epochs_shown(first), default=0)), "no finished epoch is done again"


def test_a_run_whose_starter_was_killed_ends_and_can_be_taken_up(place: Place) -> None:
    running = place.begin(*LONG)
    wait_for(lambda: bool(checkpoints(place)))
    os.kill(running.pid, signal.SIGKILL)
    running.communicate(timeout=30)
    wait_for(lambda: place.processes() == [], 30)
    assert place.run("--set", "epochs=2")["outcome"] == "released"


def test_a_stage_that_is_killed_is_named_and_leaves_service_alone(place: Place) -> None:
    assert place.run()["in_service"] == "v1"
    before = place.models()
    running = place.begin(*LONG)
    wait_for(lambda: bool(checkpoints(place)))
    trainer = next(pid for pid in place.processes() if trains(pid))
    os.kill(trainer, signal.SIGKILL)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "The stage train failed." in printed
    assert place.models() == before
    assert place.processes() == []
    again = place.begin(*LONG)
    printed, _ = again.communicate(timeout=250)
    assert again.returncode == 0, printed
    assert "epochs restored from the checkpoint" in printed


def trains(pid: int) -> bool:
    """Whether this is the process that trains: Python, handed the function train."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"python" in command[0] and b"--function_to_execute" in command and b"train" in command


def test_a_second_run_is_refused_and_the_first_goes_on_unharmed(place: Place) -> None:
    running = place.begin("--set", "epochs=4")
    wait_for(lambda: bool(list((place.home / "store" / "lease").glob("*.json"))))
    second = place.medloop("run", "--source", str(place.scans), status=1)
    assert re.search(r"The run \S+ holds the lock .* Wait for it to end", second.stderr)
    printed, _ = running.communicate(timeout=250)
    assert running.returncode == 0, printed
    assert place.models()["in_service"] == "v1"


UNFIT = ("--set", "architecture=vit", "--set", "image_size=100")
"""A network and a size that do not go together, which only train can tell."""


def test_a_stage_that_fails_for_its_parameters_says_so_each_time(place: Place) -> None:
    for _ in range(2):
        done = place.medloop("run", "--source", str(place.scans), *UNFIT, status=1)
        assert "The stage train failed." in done.stdout
        assert "or choose another architecture" in " ".join(done.stdout.split())
    run = place.run(*UNFIT, status=1)
    assert states(run)["split"] == "reused"
    assert run["failed_stage"] == "train"
    assert place.models()["in_service"] is None
