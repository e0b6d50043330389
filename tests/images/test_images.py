"""Each image holds what its stage needs and nothing else, and works without network, rights or a place to write."""

from __future__ import annotations

import json
import os
import re
import socket
import tomllib
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement

from components.shared.contracts import Manifest
from components.shared.runtime.code_and_package_versions import reached
from components.shared.runtime.stage_interface import read, stages
from components.shared.storage.store import Store, open_store
from images.build import LABEL, labels, names
from tests import made
from tests.components.shared.steps import nothing, step
from tests.components.test_import_rule import group, named
from tests.e2e.loop import wait_for
from tests.images.built import ISOLATED, docker, image, python, require

ROOT = Path(__file__).resolve().parents[2]
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
ANYONE = "--user=12345:0"
SAME_GROUP = f"--user=12345:{os.getgid()}"

# What users of these packages may import, beyond what medloop does: no library was taken out to save room.
DOCUMENTED = {
    "ingest": ["pyarrow.csv", "pyarrow.dataset", "pyarrow.parquet", "pydicom.pixels", "PIL.ImageFilter"],
    "merge": ["pyarrow.compute", "pyarrow.csv"],
    "split": ["numpy.f2py", "numpy.testing", "pyarrow.acero", "pyarrow.flight", "pyarrow.orc", "pyarrow.substrait"],
    "evaluate": [
        "onnx.helper",
        "scipy.stats",
        "matplotlib.pyplot",
        "matplotlib.testing",
        "mpl_toolkits.mplot3d",
        "fontTools.subset",
    ],
    "quantize": ["onnx.reference", "onnx.backend.base", "onnxruntime.quantization", "sympy.testing", "mpmath"],
    "deploy": ["mlflow.tracking", "sqlalchemy.orm", "alembic.command"],
    "serve": ["fastapi.staticfiles", "starlette.middleware.cors", "uvicorn.logging", "pydantic.v1"],
}


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> str:
    """Each image in turn."""
    require(request.param)
    return str(request.param)


def main_module(name: str) -> str:
    return "serving.serve" if name == "serve" else f"components.{name}.{name}"


def needed(name: str) -> set[str]:
    """The distributions that an image must hold: its group's, and all that those ask for here."""
    waiting = [Requirement(one) for one in _written(name)]
    found: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            if (named(wanted.name), extra) not in found:
                found.add((named(wanted.name), extra))
                for line in requires(wanted.name) or []:
                    further = Requirement(line)
                    if further.marker is None or further.marker.evaluate({"extra": extra}):
                        waiting.append(further)
    return {distribution for distribution, _ in found}


def _written(group_name: str) -> Iterator[str]:
    for line in GROUPS[group_name]:
        if isinstance(line, dict):
            yield from _written(line["include-group"])
        else:
            yield line


def test_an_image_holds_its_own_dependency_group_and_nothing_else(name: str) -> None:
    code = "import json; from importlib.metadata import distributions as d; print(json.dumps([x.name for x in d()]))"
    done = python(name, code)
    assert done.returncode == 0, done.stderr
    own = set() if name == "serve" else {"kfp"}
    assert {named(one) for one in json.loads(done.stdout)} == needed(name) | own


def test_only_train_holds_torch_and_no_image_holds_pip_or_the_tests_own_packages(name: str) -> None:
    code = "import importlib.util as u, sys; print([x for x in {} if u.find_spec(x)])"
    foreign = ["torch", "pip", "setuptools", "pytest", "moto", "kubernetes", "docker", "workflows", "tests", "bench"]
    done = python(name, code.format(foreign))
    assert done.stdout.strip() == ("['torch', 'setuptools']" if name == "train" else "[]"), done.stderr


def test_every_module_and_package_that_an_image_may_come_to_is_imported_there(name: str) -> None:
    files = reached(ROOT, name)
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    assert main_module(name) in modules
    code = f"""
import importlib, re, sys
from importlib.metadata import packages_distributions
for module in {sorted(modules)}:
    importlib.import_module(module)
wanted, seen = {sorted(group(GROUPS, name))}, set()
for package, owners in packages_distributions().items():
    owners = {{re.sub('[-_.]+', '-', owner).lower() for owner in owners}} & set(wanted)
    if owners and package.isidentifier():
        importlib.import_module(package)
        seen |= owners
for module in {DOCUMENTED.get(name, [])}:
    importlib.import_module(module)
assert seen == set(wanted), set(wanted) - seen
"""
    done = python(name, code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_was_taken_out_of_the_packages_is_tests(name: str) -> None:
    code = """
import json
from importlib.metadata import distributions
gone = [str(f) for d in distributions() for f in d.files or [] if not f.locate().exists()]
print(json.dumps(gone))
"""
    gone = json.loads(python(name, code).stdout)
    assert [one for one in gone if "tests" not in Path(one).parts and not one.startswith("onnx/backend/test/")] == []


def test_bytecode_is_there_for_all_that_is_imported(name: str) -> None:
    code = f"""
import sys
import {main_module(name)}
from pathlib import Path
files = {{getattr(m, '__cached__', None) for m in list(sys.modules.values()) if getattr(m, '__file__', '') }}
print(sorted(f for f in files if isinstance(f, str) and not Path(f).exists()))
"""
    done = python(name, code)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


def test_an_image_says_what_it_is(name: str) -> None:
    told = json.loads(docker("image", "inspect", image(name)).stdout)[0]["Config"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", told["User"])
    expected = labels(name)
    for key in ("title", "description", "version"):
        assert told["Labels"][LABEL + key] == expected[LABEL + key]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", told["Labels"][LABEL + "revision"])
    assert datetime.fromisoformat(told["Labels"][LABEL + "created"]).tzinfo is not None


def test_the_executor_of_kubeflow_pipelines_runs_in_every_stages_image() -> None:
    for stage in stages():
        require(stage)
        script = (
            'program=$(mktemp -d); printf "%s" "$0" > "$program/component.py"; '
            "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main --component_module_path $program/component.py "
            "--executor_input '{}' --function_to_execute told"
        )
        body = "def told():\n    import components.stage\n    print('told', components.stage.image('x'))\n"
        inputs = '{"inputs": {}, "outputs": {"outputFile": "/tmp/out/executor_output.json"}}'
        command = ["--entrypoint=sh", "--env=HOME=/tmp/home", image(stage), "-ec", script.replace("{}", inputs), body]
        done = docker("run", *ISOLATED, ANYONE, *command)
        assert done.returncode == 0, done.stderr
        assert "told medloop-x:latest" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_a_stages_image_by_itself_prints_its_help(arguments: list[str]) -> None:
    for stage in stages():
        require(stage)
        done = docker("run", *ISOLATED, image(stage), *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: docker run medloop-{stage} [-h] --store STORE")
        words = " ".join(done.stdout.split())
        assert read(stage).summary in words
        for parameter in read(stage).parameters:
            assert f"--{parameter.replace('_', '-')} " in words


def test_the_service_prints_its_help_too() -> None:
    require("serve")
    done = docker("run", *ISOLATED, image("serve"), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: docker run --publish 8080:8080 medloop-serve [-h] --store URI")


@pytest.mark.parametrize(
    ("which", "arguments", "status", "sentence"),
    [
        ("split", ["--sed=3"], 2, "the following arguments are required: --store"),
        ("split", ["split", "--help"], 0, "usage: docker run medloop-split"),
        ("split", ["--store=/tmp/s", "--dataset=/nowhere", "--previous=/media", "--splits=/tmp/o"], 1, "no /nowhere"),
        ("split", ["--store=/s", "--dataset=/media", "--previous=/media", "--splits=/tmp/o"], 1, "Read-only"),
        ("serve", ["--store=/store", "--nonsense"], 2, "unrecognized arguments: --nonsense"),
        ("serve", ["--store=/store", "--port=70000"], 2, "The port is 70000; it must be from 0"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_a_status(which: str, arguments: list[str], status: int, sentence: str) -> None:
    require(which)
    done = docker("run", *ISOLATED, image(which), *arguments)
    assert done.returncode == status, done.stderr
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that its owner shares with a group: a service of another user may read it."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o2750)
    return open_store(str(tmp_path / "store"))


def test_a_stage_in_its_container_alone_gives_what_it_gives_here(store: Store, tmp_path: Path) -> None:
    require("split")
    dataset = made.make_dataset(tmp_path / "dataset", store)
    (tmp_path / "previous").mkdir()
    (tmp_path / "out").mkdir()
    me, place = f"--user={os.getuid()}:{os.getgid()}", f"--volume={tmp_path}:/work"
    given = ["--store=/work/store", "--dataset=/work/dataset", "--previous=/work/previous", "--seed=3"]
    for splits in ("/work/splits.json", "/work/out"):
        done = docker("run", *ISOLATED, me, place, image("split"), *given, f"--splits={splits}")
        assert done.returncode == 0, done.stderr
    again = step("split", store, {"dataset": dataset, "previous": nothing(store)}, seed=3)
    assert again.reused, "what the container did is known here as the same work"
    assert Manifest.decode((tmp_path / "splits.json").read_bytes(), "splits") == again.outputs["splits"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(again.outputs["splits"].files)
    assert json.loads(done.stdout) == again.values


def test_a_stage_works_as_any_user_with_nothing_to_write_to_but_tmp(store: Store, tmp_path: Path) -> None:
    require("split")
    dataset = made.make_dataset(tmp_path / "dataset", store)
    expected = step("split", store, {"dataset": dataset, "previous": nothing(store)}, seed=3).values
    tmp_path.chmod(0o755)
    for user in ("--user=12345:0", "--user=65534:65534", "--env=HOME=/nowhere"):
        given = ["--store=/tmp/store", "--dataset=/dataset", "--previous=/media", "--splits=/tmp/out.json", "--seed=3"]
        done = docker("run", *ISOLATED, user, f"--volume={dataset}:/dataset:ro", image("split"), *given)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == expected


def test_a_stage_that_is_told_to_end_ends() -> None:
    require("split")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a store that takes the request and never answers it
        at = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = [f"--env=AWS_ENDPOINT_URL={at}", "--env=AWS_ACCESS_KEY_ID=x", "--env=AWS_SECRET_ACCESS_KEY=y"]
        given = ["--store=s3://bucket", "--dataset=/media", "--previous=/media", "--splits=/tmp/out.json"]
        started = docker("run", "--detach", "--network=host", *settings, image("split"), *given)
        assert started.returncode == 0, started.stderr
        container = started.stdout.strip()
        try:
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                docker("stop", "--time=60", container)
                assert json.loads(docker("inspect", container).stdout)[0]["State"]["ExitCode"] == 143
        finally:
            docker("rm", "--force", container)


class Container:
    """The service in its container, with a store mounted where the image looks for one."""

    def __init__(self, store: Store) -> None:
        isolated = [option for option in ISOLATED if option not in ("--rm", "--network=none")]
        mounted = f"--volume={store.uri}:/store:ro"
        done = docker("run", "--detach", *isolated, SAME_GROUP, "--publish=127.0.0.1::8080", mounted, image("serve"))
        assert done.returncode == 0, done.stderr
        self.id = done.stdout.strip()

    def health(self) -> httpx.Response:
        """What the service says of itself, once it answers."""
        published = docker("port", self.id, "8080").stdout.split()[0]
        answers: list[httpx.Response] = []

        def asked() -> bool:
            try:
                answers.append(httpx.get(f"http://{published}/health", timeout=5))
            except httpx.TransportError:
                assert self.state()["Running"], docker("logs", self.id).stderr
            return bool(answers)

        wait_for(asked, 60)
        return answers[0]

    def check(self) -> tuple[int, str]:
        """How the image's own health check ends, and what it prints."""
        command = json.loads(docker("image", "inspect", image("serve")).stdout)[0]["Config"]["Healthcheck"]["Test"]
        assert command[0] == "CMD"
        done = docker("exec", self.id, *command[1:])
        return done.returncode, done.stdout

    def state(self) -> dict[str, Any]:
        """What the engine knows of it."""
        return dict(json.loads(docker("inspect", self.id).stdout)[0]["State"])

    def end(self) -> int:
        """Tell it to end, with a minute to do so; gives the exit status, which is 137 where it had to be killed."""
        docker("stop", "--time=60", self.id)
        return int(self.state()["ExitCode"])


@pytest.fixture
def serving(store: Store) -> Iterator[Container]:
    require("serve")
    container = Container(store)
    yield container
    docker("rm", "--force", "--volumes", container.id)


def test_the_service_answers_from_a_mounted_store_and_ends_when_told(
    store: Store, serving: Container, tmp_path: Path
) -> None:
    empty = serving.health()
    assert empty.status_code == 503
    assert "No model has been released yet" in empty.json()["detail"]
    status, printed = serving.check()
    assert status == 1
    assert "No model has been released yet" in printed
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    wait_for(lambda: serving.health().status_code == 200, 60)
    assert serving.health().json()["model_loaded"] is True
    assert serving.check()[0] == 0
    assert serving.end() == 0
    assert json.loads(docker("logs", serving.id).stderr.splitlines()[-1])["event"] == "ended"
