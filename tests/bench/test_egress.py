"""Nothing that medloop loads looks up a host or writes into the user's home, and the tracer would see it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.egress import ROOT, available, control, environment, read, traced
from components import TELEMETRY_OFF

pytestmark = pytest.mark.skipif(not available(), reason="this machine has no strace that may trace")

EVERYTHING = """
import components, time
import onnxruntime, fastapi, uvicorn, mlflow, sqlalchemy, alembic, kfp, kfp.local, docker, pyarrow, pydicom, nibabel
import onnx, matplotlib, jinja2, minio, cryptography, typer, rich, tensorboardX
from mlflow import MlflowClient
from serving.app import create_app
MlflowClient(tracking_uri="sqlite:///{home}/tracking.db").search_experiments()
time.sleep(2)
"""


def test_the_tracer_sees_a_look_up_and_a_file_of_telemetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")  # with it in its environment ONNX Runtime would send nothing
    found = control(tmp_path)
    assert found.lookups
    assert any(path.endswith("onnxruntime.db") for path in found.files), found.files


@pytest.mark.slow
def test_the_libraries_look_up_nothing_and_write_nothing(tmp_path: Path) -> None:
    settings = environment(tmp_path, MPLCONFIGDIR=str(tmp_path / "home" / "cache"))
    program = EVERYTHING.format(home=tmp_path / "home")
    command = traced([sys.executable, "-c", program], tmp_path / "traces")
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "traces", [tmp_path / "home", tmp_path / "tmp"])
    assert (found.lookups, found.connections, found.files) == ([], [], [])


@pytest.mark.parametrize("name", ["serve", "stage"])
def test_the_images_switch_the_same_telemetry_off(name: str) -> None:
    text = (ROOT / "images" / f"{name}.Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    said = dict(word.split("=", 1) for line in re.findall(r"^ENV (.*)$", text, re.MULTILINE) for word in line.split()
                if "=" in word and not word.startswith('"'))  # fmt: skip
    assert {key: said.get(key) for key in TELEMETRY_OFF} == TELEMETRY_OFF


@pytest.mark.parametrize(
    "module", ["medloop.cli.main", "medloop.runner.engine", "components.stage", "components.__main__"]
)
def test_an_entry_point_switches_it_off_before_it_loads_a_library(module: str) -> None:
    program = f"import {module}, os, sys; print({{n: os.environ.get(n) for n in {list(TELEMETRY_OFF)}}}, end='')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, env={})
    assert done.stdout == str(TELEMETRY_OFF)
