"""The loop in its real images gives what it gives in processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from components.shared.runtime.stage_interface import stages
from components.shared.storage.store import open_store
from medloop.runner.containers import LABEL, network
from tests.components.shared.servers import moto
from tests.e2e.loop import QUICK, ROOT, Place, end, same_but_for_time
from tests.e2e.test_interruptions import checkpoints
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
        assert one["key"] == two["key"] or one["stage"] == "gate", one["stage"]  # its report says how long things took
        ours, theirs = (
            (open_store(str(at.home / "store")), step["outputs"]) for at, step in ((place, one), (other, two))
        )
        assert same_but_for_time(one["stage"], ours, theirs), one["stage"]


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


def containers(place: Place) -> list[str]:
    """The images of the containers that work for this place."""
    with contextlib.closing(docker.from_env()) as client:
        found = client.containers.list(filters={"label": f"{LABEL}={place.home / 'store'}"})
        return [str(container.attrs["Config"]["Image"]) for container in found]


def trainers(place: Place) -> list[Container]:
    """The containers that train for this place."""
    with contextlib.closing(docker.from_env()) as client:
        ours = {"label": f"{LABEL}={place.home / 'store'}"}
        return [one for one in client.containers.list(filters=ours) if one.attrs["Config"]["Image"] == image("train")]


def soon(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_container_works_on_when_its_run_has_ended(number: signal.Signals, place: Place) -> None:
    for stage in stages():
        require(stage)
    begun = place.begin("--runner", "docker", "--set", "epochs=300", *(["--images", WHERE] if WHERE else []))
    soon(lambda: image("train") in containers(place))
    os.kill(begun.pid, number)
    begun.communicate(timeout=60)
    soon(lambda: not containers(place))


def test_a_training_whose_container_is_asked_to_end_keeps_what_it_learned(place: Place) -> None:
    for stage in stages():
        require(stage)
    command = ("--runner", "docker", "--set", "epochs=300", *(["--images", WHERE] if WHERE else []))
    begun = place.begin(*command)
    soon(lambda: bool(checkpoints(place)))
    trainers(place)[0].stop(timeout=60)  # SIGTERM, as to a pod of a node that goes away, and time to end
    printed, _ = begun.communicate(timeout=60)
    assert begun.returncode == 1
    assert "SIGTERM received; the checkpoint of step" in printed
    assert "The stage train failed. It was stopped before it was done." in printed
    again = place.begin(*command)
    assert again.stdout is not None
    assert any("epochs restored from the checkpoint" in line for line in again.stdout)
    end(again)


def test_the_network_of_this_machine_is_used_where_storage_is_on_it() -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS", "MLFLOW_TRACKING_URI"):
        assert network({name: "http://127.0.0.1:9000"}) == "host"
        assert network({name: "https://s3.example:9000"}) == "bridge"


def test_without_an_engine_a_run_in_containers_says_so(place: Place) -> None:
    command = [sys.executable, "-m", "medloop.cli.main", "run", "--source", str(place.scans), "--runner", "docker"]
    environment = {**place.environment(), "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "Docker does not respond" in done.stderr
    assert "--runner subprocess" in done.stderr
