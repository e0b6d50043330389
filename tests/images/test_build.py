"""`make images`: names, labels, and what is said where something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.shared.runtime.stage_interface import stages
from images.build import LABEL, labels, names, reference
from tests.images.built import docker, image, require
from workflows.image_names import choose

ROOT = Path(__file__).resolve().parents[2]


def build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "images.build", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("registry", "tag", "where"),
    [
        ("", "", ""),
        ("", "dev", ":dev"),
        ("registry.example/team/", "", "registry.example/team"),
        ("r:5000", "1", "r:5000:1"),
    ],
)
def test_images_are_named_as_runs_and_pipelines_look_for_them(registry: str, tag: str, where: str) -> None:
    assert {stage: reference(stage, registry, tag) for stage in stages()} == choose(where, [])


def test_each_dependency_group_of_a_stage_and_the_service_has_an_image() -> None:
    assert {*stages(), "serve"} == set(names())


def test_labels_follow_from_the_commit_alone() -> None:
    assert labels("split") == labels("split")
    assert labels("split", "https://git.example/medloop")[LABEL + "source"] == "https://git.example/medloop"
    assert LABEL + "source" not in labels("split")
    assert all(labels("serve").values())


def test_what_cannot_be_built_or_pushed_is_told_before_anything_is_begun() -> None:
    for arguments, sentence in (
        (["splitt"], "there is no image of 'splitt'; there are: deploy, "),
        (["--push"], "no registry is named to push to. Say which: make push REGISTRY="),
    ):
        done = build(*arguments, PATH="/nowhere")
        assert done.returncode == 2
        assert sentence in done.stderr
    done = build("split", PATH="/nowhere")
    assert done.returncode == 1
    assert "There is no docker command on this machine" in done.stderr


def test_a_push_that_the_registry_refuses_says_so() -> None:
    require("split")
    where = f"127.0.0.1:9/{uuid.uuid4().hex}"
    docker("tag", image("split"), reference("split", where))
    try:
        done = build("split", "--push", "--registry", where)
    finally:
        docker("rmi", reference("split", where))
    assert done.returncode == 1
    assert f"{where}/medloop-split:latest: `docker push` ended with 1" in done.stderr
    assert "connection refused" in done.stderr


@pytest.fixture
def base(request: pytest.FixtureRequest) -> Iterator[str]:
    """An image to build on: files of one of ours without its settings, changed by what the test runs in it."""
    require("reject")
    name = f"medloop-test-{uuid.uuid4().hex}"
    given = f"FROM scratch\nCOPY --from={image('reject')} / /\nRUN {request.param}\n"
    done = docker("build", "--quiet", "--tag", name, "-", given=given)
    assert done.returncode == 0, done.stderr
    yield name
    docker("rmi", name)


@pytest.mark.parametrize(
    "base",
    [
        "rm -rf /opt/medloop /usr/bin/python3 /usr/local/bin/python3",
        "rm -rf /opt/medloop /usr/lib/python3*/venv /usr/local/lib/python3*/venv",
    ],
    indirect=True,
)
def test_a_base_that_has_no_such_python_is_refused_with_what_to_do(base: str) -> None:
    done = build("split", "--base", base, "--tag", "never")
    assert done.returncode == 1
    assert "needs Python 3.11 or newer with venv" in " ".join(done.stderr.split())
    assert "--build-arg BASE=python:3.11-slim-bookworm" in done.stderr
    assert docker("image", "inspect", reference("split", tag="never")).returncode != 0


@pytest.mark.parametrize("base", ["true"], indirect=True)
def test_a_build_without_a_stage_says_which_argument_is_missing(base: str) -> None:
    done = docker("build", "--force-rm", f"--build-arg=BASE={base}", "-f", ROOT / "images" / "stage.Dockerfile", ROOT)
    assert done.returncode != 0
    assert "Build with --build-arg STAGE=split" in done.stdout + done.stderr
