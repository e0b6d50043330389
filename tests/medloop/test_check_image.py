"""An image that a team brings is proved by asking it and by letting it work: those that do not fit are told apart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.images.built import image, require
from tests.medloop.test_cli import medloop

OURS = "/medloop/components/split/split.py"


@pytest.fixture(autouse=True, scope="module")
def _ours() -> None:
    require("split")


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Any]:
    """Makes an image of a Dockerfile's lines; all are removed after the test."""
    made: list[str] = []

    def make(*lines: str) -> str:
        name = f"medloop-test-{tmp_path.name.strip('_')[:40].lower()}:{len(made) + 1}".replace("_", "-")
        recipe = "\n".join((f"FROM {image('split')}", "USER 0", *lines, "USER 10001", ""))
        done = subprocess.run(
            ["docker", "build", "--quiet", "--tag", name, "-"],
            input=recipe,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        made.append(name)
        return name

    yield make
    for name in made:
        subprocess.run(["docker", "rmi", "--force", name], capture_output=True, check=True)


def checks(told: str) -> dict[str, tuple[str, str]]:
    return {each["part"]: (each["state"], each["means"]) for each in json.loads(told)["checks"]}


def changed(before: str, after: str) -> str:
    """A Dockerfile's line that changes the stage's code, and fails where there is nothing to change."""
    return f"RUN grep -q '{before}' {OURS} && sed -i 's/{before}/{after}/' {OURS}"


@pytest.mark.slow
def test_an_image_with_a_parameter_more_fits_and_the_steps_after_it_go_on(tmp_path: Path, build: Any) -> None:
    own = build(changed("seed: Annotated", r"site_aware: bool = False,\n    seed: Annotated"))
    done = medloop(tmp_path, "check-image", own, "--stage", "split", "--json")
    told = json.loads(done.stdout)
    assert told["fits"] is True
    found = checks(done.stdout)
    assert {state for state, _ in found.values()} == {"ok"}
    assert "site_aware" in found["parameters"][1]
    assert "read-only root" in found["works"][1]
    understood = [each["means"] for each in told["checks"] if each["part"] == "is understood"]
    assert understood == ["by train", "by evaluate", "by gate", "by quantize", "by evaluate", "by gate", "by deploy"]


def test_what_the_next_step_cannot_read_is_a_problem(tmp_path: Path, build: Any) -> None:
    last = "leaks(dataset, splits):"
    own = build(
        changed(last, r'(leaks(dataset, splits), (splits \/ "splits.parquet").rename(splits \/ "sides.parquet"))[0]:')
    )
    done = medloop(tmp_path, "check-image", own, "--stage", "split", "--json", status=1)
    state, means = checks(done.stdout)["is understood"]
    assert state == "problem"
    assert "splits.parquet" in means


@pytest.mark.slow
def test_another_interface_is_told_before_anything_is_run(tmp_path: Path, build: Any) -> None:
    own = build(changed("test_fraction: Annotated", "held_out: Annotated"), changed("previous: In", "earlier: In"))
    done = medloop(tmp_path, "check-image", own, "--stage", "split", "--json", status=1)
    found = checks(done.stdout)
    assert found["inputs"] == ("problem", "the image has dataset, earlier, the pipeline has dataset, previous")
    assert found["parameters"] == ("problem", "test_fraction is missing, not float")
    assert "works" not in found


@pytest.mark.slow
def test_an_image_without_medloop_is_told_what_it_lacks(tmp_path: Path, build: Any) -> None:
    done = medloop(tmp_path, "check-image", build("RUN rm -r /medloop/components"), "--stage", "split", status=1)
    assert "No module named 'components'" in " ".join(done.stdout.split())
    assert "FROM medloop-split" in " ".join(done.stdout.split())
    done = medloop(tmp_path, "check-image", build("RUN rm -r /opt/medloop/lib/python3*/site-packages/kfp"),
                   "--stage", "split", "--json", status=1)  # fmt: skip
    assert checks(done.stdout)["executor"][0] == "problem"


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("nowhere/there:1", "--stage", "split"), 1, "These images are not on this machine: nowhere/there:1."),
        (("medloop-split", "--stage", "splitt"), 2, "There is no stage 'splitt'. Did you mean 'split'?"),
    ],
)
def test_what_cannot_be_checked_is_a_sentence(
    arguments: tuple[str, ...], status: int, sentence: str, tmp_path: Path
) -> None:
    assert sentence in medloop(tmp_path, "check-image", *arguments, status=status).stderr
