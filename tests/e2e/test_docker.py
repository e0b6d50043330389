"""The loop in its real images gives what it gives in processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from components.shared.interface import stages
from components.shared.work import code_version
from components.stage import image
from tests.e2e.loop import QUICK, ROOT, Place


def images_are_of_this_code() -> str:
    """Why the images cannot be used, or nothing."""
    for stage in stages():
        command = f"from components.shared.work import code_version; print(code_version('{stage}'))"
        done = subprocess.run(
            ["docker", "run", "--rm", "--entrypoint", "python3", image(stage), "-c", command],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return f"{image(stage)} does not run here ({done.stderr.strip()[-80:]}); build it with: make images"
        if done.stdout.strip() != code_version(stage):
            return f"{image(stage)} was made of other code; build it with: make images"
    return ""


def test_a_run_in_containers_equals_a_run_in_processes(place: Place) -> None:
    try:
        why_not = images_are_of_this_code()
    except FileNotFoundError:
        why_not = "there is no docker command on this machine"
    if why_not:
        pytest.skip(why_not)
    inside = place.run("--runner", "docker")
    other = Place(place.home.parent / "other")
    command = ("run", "--source", str(place.scans), *QUICK, "--json")
    outside = json.loads(other.medloop(*command).stdout)
    assert inside["outcome"] == outside["outcome"] == "released"
    for one, two in zip(inside["stages"][1:-1], outside["stages"][1:-1], strict=True):
        assert one["key"] == two["key"], one["stage"]
        assert one["outputs"] == two["outputs"], one["stage"]


def test_without_an_engine_a_run_in_containers_says_so(place: Place) -> None:
    command = [sys.executable, "-m", "workflows.cli", "run", "--source", str(place.scans), "--runner", "docker"]
    environment = {**place.environment(), "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "No Docker engine answers" in done.stderr
    assert "--runner subprocess" in done.stderr
