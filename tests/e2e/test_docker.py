"""The loop in its real images gives what it gives in processes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from components.shared.interface import stages
from tests.components.shared.servers import moto
from tests.e2e.loop import QUICK, ROOT, Place
from tests.e2e.test_s3 import over
from tests.images.built import WHERE, image, require


def test_a_run_in_containers_equals_a_run_in_processes(place: Place) -> None:
    for stage in stages():
        require(stage)
    inside = place.run("--runner", "docker", *(["--images", WHERE] if WHERE else []))
    other = Place(place.home.parent / "other")
    command = ("run", "--source", str(place.scans), *QUICK, "--json")
    outside = json.loads(other.medloop(*command).stdout)
    assert inside["outcome"] == outside["outcome"] == "released"
    for one, two in zip(inside["stages"][1:-1], outside["stages"][1:-1], strict=True):
        assert one["key"] == two["key"], one["stage"]
        assert one["outputs"] == two["outputs"], one["stage"]


def test_containers_reach_storage_on_this_machine_with_keys_in_a_file(place: Place, tmp_path: Path) -> None:
    for stage in stages():
        require(stage)
    with moto(tmp_path / "server") as server:
        bucket = over(server, place)
        keys = tmp_path / "keys"  # outside of all that is mounted anyway
        keys.write_bytes(Path(bucket.extra["AWS_SHARED_CREDENTIALS_FILE"]).read_bytes())
        bucket = dataclasses.replace(bucket, extra={**bucket.extra, "AWS_SHARED_CREDENTIALS_FILE": str(keys)})
        run = bucket.run("--runner", "docker", *(["--images", WHERE] if WHERE else []))
    assert run["outcome"] == "released"
    assert {step["image"] for step in run["stages"] if step["stage"] == "train"} == {image("train")}


def test_without_an_engine_a_run_in_containers_says_so(place: Place) -> None:
    command = [sys.executable, "-m", "workflows.cli", "run", "--source", str(place.scans), "--runner", "docker"]
    environment = {**place.environment(), "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "No Docker engine answers" in done.stderr
    assert "--runner subprocess" in done.stderr
