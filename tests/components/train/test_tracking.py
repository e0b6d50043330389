"""MLflow shows a training as it was, in one run, and costs it nothing but seconds where it does not answer."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.shared.runtime.code_and_package_versions import code_version
from components.train import tracking
from components.train.tracking import Tracking, history_files
from tests import tracking_database
from tests.components.shared.servers import free_port

KEY = "0123456789ab" * 5 + "cdef"
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "home").mkdir()
    uri = tracking_database.place_in(tmp_path / "home", "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("medloop")
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def history(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, name)]


@pytest.mark.slow
def test_a_run_has_its_parameters_figures_tags_and_files(database: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    figures = [{"loss": 0.7, "val_auc": 0.8}, {"loss": 0.5, "val_auc": 0.9}]
    parameters = {f"p{number}": number for number in range(130)}  # more than MLflow takes at a time
    with Tracking(KEY, parameters, {"data": "d" * 64, "split": "s" * 64, "device": "cpu"}) as track:
        for epoch, values in enumerate(figures, 1):
            track.epoch(epoch, values)
        track.artifacts({"sheet.png": b"a picture", **history_files(figures)})
        track.tag("cost", "0.42 EUR")
    (run,) = runs(database)
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"train {KEY[:12]}")
    assert run.data.params == {name: str(value) for name, value in parameters.items()}
    tags = {name.removeprefix("medloop."): value for name, value in run.data.tags.items() if "medloop." in name}
    assert tags == {
        "work": KEY, "code": code_version("train"), "data": "d" * 64, "split": "s" * 64, "device": "cpu",
        "cost": "0.42 EUR",
    }  # fmt: skip
    assert history(database, run, "loss") == [(1, 0.7), (2, 0.5)]
    client = MlflowClient(database)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "sheet.png", "history.csv", "history.json",
    }  # fmt: skip
    kept = Path(client.download_artifacts(run.info.run_id, "sheet.png", str(tmp_path)))
    assert kept.read_bytes() == b"a picture"
    assert not (Path.cwd() / "mlruns").exists(), "the files lie beside the database"
    assert list((tmp_path / "home" / "mlflow").rglob("sheet.png"))


@pytest.mark.slow
def test_nothing_of_the_machine_or_its_user_is_told(database: str) -> None:
    with Tracking(KEY, {"epochs": 2}) as track:
        track.epoch(1, {"loss": 0.5})
    (run,) = runs(database)
    told = json.dumps([run.data.tags, run.data.params])
    for word in (socket.gethostname(), str(REPOSITORY), sys.prefix):
        assert word not in told


def test_the_history_is_a_table(tmp_path: Path) -> None:
    files = history_files([{"loss": 0.7}, {"loss": 0.5, "val_auc": 0.9}])
    assert json.loads(files["history.json"]) == [{"epoch": 1, "loss": 0.7}, {"epoch": 2, "loss": 0.5, "val_auc": 0.9}]
    assert list(csv.reader(io.StringIO(files["history.csv"].decode()))) == [
        ["epoch", "loss", "val_auc"], ["1", "0.7", ""], ["2", "0.5", "0.9"],
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("NaN"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED"), (None, "FINISHED")],
)
def test_how_a_training_ended_is_told(error: BaseException | None, status: str, database: str) -> None:
    with contextlib.suppress(BaseException), Tracking(KEY, {}) as track:
        track.epoch(1, {"loss": 0.5})
        if error:
            raise error
    (run,) = runs(database)
    assert run.info.status == status


TRAINING = """\
import signal, sys, time
from components.train.tracking import Tracking
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with Tracking(sys.argv[1], {"epochs": 4}) as track:
    for epoch in range(1, 4):
        track.epoch(epoch, {"loss": 1 / epoch})
    print("told", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, "KILLED"), (signal.SIGKILL, "RUNNING")], ids=["SIGTERM", "SIGKILL"]
)
def test_a_training_that_was_killed_goes_on_in_its_run(number: signal.Signals, status: str, database: str) -> None:
    command = [sys.executable, "-c", TRAINING, KEY]
    with subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ}, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "told\n"
        first.send_signal(number)
    (run,) = runs(database)
    assert run.info.status == status
    with Tracking(KEY, {"epochs": 4}) as track:
        assert runs(database)[0].info.status == "RUNNING"
        for epoch in (3, 4):  # the checkpoint was of the second
            track.epoch(epoch, {"loss": 1 / epoch})
    (run,) = runs(database)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(database, run, "loss")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_work_that_was_finished_and_is_done_again_is_another_run(database: str) -> None:
    for key in (KEY, KEY, "f" * 64):
        with Tracking(key, {}) as track:
            track.epoch(1, {"loss": 0.5})
    assert [run.data.tags["medloop.work"] for run in runs(database)] == [KEY, KEY, "f" * 64]


@pytest.mark.slow
def test_the_machine_is_watched(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with Tracking(KEY, {}):
        deadline = time.monotonic() + 60
        while not (found := runs(database)[0].data.metrics) and time.monotonic() < deadline:
            time.sleep(0.2)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= set(found)
    assert 0 < found["system/system_memory_usage_percentage"] <= 100


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A real tracking server, which keeps the files that it is sent."""
    folder.mkdir(exist_ok=True)
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        tracking_database.place_in(folder),
        "--artifacts-destination",
        str(folder / "kept"),
    ]
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.slow
def test_a_server_that_comes_later_gets_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(tracking, "PATIENCE", 0.5)
    with caplog.at_level(logging.WARNING, "medloop"), Tracking(KEY, {"epochs": 4}) as track:
        track.epoch(1, {"loss": 1.0})
        time.sleep(0.6)
        track.epoch(2, {"loss": 0.5})
        assert [record.message for record in caplog.records if record.name == "medloop"] == ["tracking stopped"]
        with mlflow_server(tmp_path / "server", port) as uri:
            time.sleep(1.2)
            track.epoch(3, {"loss": 0.25})
            (run,) = runs(uri)
            assert run.info.status == "RUNNING"
            assert history(uri, run, "loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
            track.artifacts({"sheet.png": b"a picture"})
            assert [file.read_bytes() for file in (tmp_path / "server" / "kept").rglob("sheet.png")] == [b"a picture"]
        track.epoch(4, {"loss": 0.125})
    (run,) = runs(tracking_database.place_in(tmp_path / "server"))  # what it has kept
    assert run.data.metrics["loss"] == 0.25, "it was gone at the end"


@pytest.mark.slow
@pytest.mark.parametrize("state", ["gone", "silent", "nonsense"])
def test_a_server_that_does_not_answer_is_asked_a_few_times_at_most(
    state: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        port = silent.getsockname()[1] if state == "silent" else free_port()
        uri = "nonsense://x" if state == "nonsense" else f"http://127.0.0.1:{port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with caplog.at_level(logging.WARNING, "medloop"), Tracking(KEY, {}) as track:
            for epoch in range(1, 100):
                track.epoch(epoch, {"loss": 0.5})
            track.artifacts({"sheet.png": b"a picture"})
        assert asked(silent) <= 4  # once and once again, a second each; by itself MLflow would ask on for minutes
    (warning,) = (record for record in caplog.records if record.name == "medloop")
    assert "The training continues" in warning.__dict__["fields"]["why"]


def asked(server: socket.socket) -> int:
    """How many connections wait at a server that takes none."""
    server.settimeout(0.1)
    count = 0
    with contextlib.suppress(TimeoutError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


def test_without_an_address_nothing_is_tracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with Tracking(KEY, {}) as track:
        track.epoch(1, {"loss": 0.5})
        track.artifacts({"sheet.png": b"a picture"})
        track.tag("cost", "1 EUR")
    assert not list(tmp_path.iterdir())
