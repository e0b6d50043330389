"""The wheel, each extra in a fresh environment outside of the clone, does what it is for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from components.shared.runtime.stage_interface import stages
from tests.e2e.loop import ROOT
from tests.medloop.kubeflow.kfp_server import kfp_server
from tests.upgrade.test_upgrade import STORES, restored

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "components", "serving", "workflows", "medloop"]
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(built), "."]
    subprocess.run(command, cwd=source, check=True)
    return next(built.glob("medloop-*.whl"))


def own() -> dict[str, str]:
    """The environment without what points to this clone or to a store."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MEDLOOP_", "PYTHON", "KF_"))}


class Environment:
    """A fresh virtual environment with the wheel, and a directory that is no clone to work in."""

    def __init__(self, folder: Path, wheel: Path, extra: str = "") -> None:
        self.folder, self.home = folder / "venv", folder / "home"
        subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        command = [str(self.bin / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        command += ["-c", str(ROOT / "constraints.txt"), f"{wheel}{f'[{extra}]' if extra else ''}"]
        done = subprocess.run(command, env=own(), capture_output=True, text=True, check=False)
        if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stderr

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def megabytes(self) -> float:
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if path.is_file()) / 1e6

    def medloop(
        self, *arguments: str, status: int = 0, settings: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.bin / "medloop", *arguments],
            env={**own(), "MEDLOOP_HOME": str(self.home), "COLUMNS": "200", **(settings or {})},
            cwd=self.folder.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("bare"), wheel)


@pytest.mark.slow
def test_the_bare_command_is_small(bare: Environment) -> None:
    assert bare.megabytes < 500


@pytest.mark.slow
def test_the_bare_command_compiles_and_submits(bare: Environment, tmp_path: Path) -> None:
    package, image = tmp_path / "package.yaml", f"registry.example/medloop@sha256:{'0' * 64}"
    pinned = [word for stage in stages() for word in ("--image", f"{stage}={image}")]
    bare.medloop("compile", *pinned, "--output", str(package))
    assert image in package.read_text()
    with kfp_server() as server:
        given = ("--source", "/scans", "--store", "s3://medloop/chest")
        bare.medloop("submit", *pinned, *given, settings={"KF_PIPELINES_ENDPOINT": server.host})
        assert (
            len(json.loads(bare.medloop("runs", "--json", settings={"KF_PIPELINES_ENDPOINT": server.host}).stdout)) == 1
        )


@pytest.mark.slow
def test_the_bare_command_reads_a_store(bare: Environment, tmp_path: Path) -> None:
    place, expected = restored(STORES[-1], tmp_path)
    settings = {"MEDLOOP_HOME": str(place.home), **place.extra}
    assert json.loads(bare.medloop("models", "--json", settings=settings).stdout) == expected["models"]
    assert json.loads(bare.medloop("audit", "verify", "--json", settings=settings).stdout)["problems"] == []
    assert json.loads(bare.medloop("explain", "--json", settings=settings).stdout)["sentence"] == expected["sentence"]
    bare.medloop("doctor", settings=settings)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("serve",), "serve"),
        (("run", "--source", "x"), "local"),
        (("run", "--source", "x", "--runner", "docker"), "local"),
        (("synth", "x"), "local"),
        (("data", "show"), "local"),
        (("readers", "--csv", "x.csv"), "local"),
    ],
)
def test_a_command_whose_extra_is_missing_names_it(arguments: tuple[str, ...], extra: str, bare: Environment) -> None:
    said = bare.medloop(*arguments, status=1).stderr
    assert f"pip install 'medloop[{extra}]'" in said
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_the_serve_extra_serves_a_released_model(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    environment = Environment(tmp_path_factory.mktemp("serve"), wheel, "serve")
    place, expected = restored(STORES[-1], tmp_path)
    service = subprocess.Popen(
        [environment.bin / "medloop", "serve", "--port", "0"],
        env={**own(), "MEDLOOP_HOME": str(place.home), **place.extra},
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert service.stderr
        line = next(line for line in service.stderr if "serving v2 at" in line)
        address = line.partition(" at ")[2].split('"')[0].strip()
        assert httpx.get(f"{address}/health", timeout=60).json()["model_version"] == expected["models"]["in_service"]
    finally:
        service.terminate()
        service.communicate(timeout=60)


@pytest.mark.slow
def test_the_local_extra_runs_the_loop(wheel: Path, tmp_path: Path) -> None:
    """Its packages are those that the tests run in, since they take minutes to install; the code is the wheel's."""
    installed = {distribution.metadata["Name"].lower() for distribution in metadata.distributions()}
    code = tmp_path / "code"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(code), str(wheel)]
    subprocess.run(command, check=True)
    wanted = metadata.Distribution.at(next(code.glob("medloop-*.dist-info"))).requires or []
    names = {need.partition(";")[0].strip().lower() for need in wanted if 'extra == "local"' in need}
    assert "torch" in names
    assert names <= installed
    environment = {**own(), "MEDLOOP_HOME": str(tmp_path / "home"), "PYTHONPATH": str(code)}
    medloop = [sys.executable, "-P", "-m", "medloop.cli.main"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*medloop, *arguments], env=environment, cwd=elsewhere, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = "import components, medloop, serving, workflows; print(components.__file__, medloop.__file__)"
    command = [sys.executable, "-P", "-c", where]
    found = subprocess.run(command, env=environment, cwd=elsewhere, capture_output=True, text=True, check=True)
    assert str(ROOT) not in found.stdout
    run("synth", "scans", "--patients", "40")
    smoke = code / "workflows" / "params" / "smoke.yaml"
    told = json.loads(run("run", "--source", "scans", "--params", str(smoke), "--json"))
    assert told["outcome"] == "released"
