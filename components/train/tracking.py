"""Shows a training to MLflow while it runs. Training goes on when MLflow cannot be reached."""

from __future__ import annotations

import csv
import io
import json
import logging
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from components.shared import environment
from components.shared.runtime import step_log
from components.shared.runtime.events import log
from components.shared.runtime.stage_code import code_version

EXPERIMENT = "medloop"
PATIENCE = 60.0
"""Seconds for which a server that failed is left alone; each further failure doubles them."""
MOST = 100
"""Parameters that MLflow takes at a time."""


class Tracking:
    """One MLflow run, or nothing where no tracking address is set.

    What cannot be sent is kept and sent later, in its order: a server may be started anew during a long training. The
    same work goes on in the same run until it is finished. `tags` get the prefix `medloop.`.
    """

    def __init__(self, key: str, parameters: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> None:
        self.key, self.parameters, self.tags = key, parameters, dict(tags or {})
        self._client: Any = None
        self._monitor: Any = None
        self._run = ""
        self._logged = 0  # the last epoch that an earlier try has told of
        self._todo: deque[Callable[[], None]] = deque()
        self._patience, self._failed, self._warned = PATIENCE, 0.0, False
        self._on = bool(environment.get("MLFLOW_TRACKING_URI"))

    def __enter__(self) -> Tracking:
        # A server that is not there is given up in seconds; MLflow by itself goes on asking for four minutes.
        environment.set_default("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        environment.set_default("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        self._send(self._start)
        return self

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """Log an epoch's figures."""
        now = int(time.time() * 1000)

        def send() -> None:
            from mlflow.entities import Metric

            if number > self._logged:
                metrics = [Metric(name, float(value), now, number) for name, value in figures.items()]
                self._client.log_batch(self._run, metrics=metrics)

        self._send(send)

    def tag(self, name: str, value: str) -> None:
        """Set a tag that is known only later, such as the cost."""
        self._send(lambda: self._client.set_tag(self._run, f"medloop.{name}", value))

    def artifacts(self, files: Mapping[str, bytes]) -> None:
        """Keep files with the run. Where they cannot be kept, the rest of the run is shown all the same."""

        def send() -> None:
            with tempfile.TemporaryDirectory(prefix="medloop-artifacts-") as folder:
                for name, data in files.items():
                    (Path(folder) / name).write_bytes(data)
                try:
                    self._client.log_artifacts(self._run, folder)
                except Exception as error:  # they may lie elsewhere than the rest, with rights of their own
                    _warn("files not tracked", error)

        self._send(send)

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        ended = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"

        def end() -> None:
            if self._monitor:
                self._monitor.finish()
            self._client.set_terminated(self._run, ended)

        self._send(end, last=True)

    def _start(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # what it says of its own doings is for no one here
        client = MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, _place_of_artifacts())
        asked = f"tags.`medloop.work` = '{self.key}' and attributes.status != 'FINISHED'"
        earlier = client.search_runs([number], asked, max_results=1, order_by=["attributes.start_time DESC"])
        if earlier:
            self._run = earlier[0].info.run_id
            self._logged = _last_epoch(client, earlier[0])
            client.update_run(self._run, status="RUNNING")
        else:
            mark = {"medloop.work": self.key}
            self._run = client.create_run(number, run_name=f"train {self.key[:12]}", tags=mark).info.run_id
        told = {"code": code_version("train"), "run": step_log.run(), **self.tags}
        tags = [RunTag(f"medloop.{name}", value) for name, value in told.items() if value]
        parameters = [Param(name, str(value)) for name, value in self.parameters.items()]
        for first in range(0, max(len(parameters), 1), MOST):
            client.log_batch(self._run, params=parameters[first : first + MOST], tags=tags)
        self._client = client
        self._watch_system()

    def _watch_system(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self._run, resume_logging=True, tracking_uri=self._client.tracking_uri)
        self._monitor.start()

    def _send(self, call: Callable[[], None], last: bool = False) -> None:
        """Do this after all that is waiting, if the server is to be asked now; else it waits, too."""
        if not self._on:
            return
        self._todo.append(call)
        since = time.monotonic() - self._failed
        if self._failed and since < (PATIENCE if last else self._patience):
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what MLflow deprecates is not this user's concern
                while self._todo:
                    self._todo[0]()
                    self._todo.popleft()
        except Exception as error:
            if not self._warned:
                _warn("tracking stopped", error, " The training goes on, and what is missing is sent when it can be.")
            self._warned = True
            self._patience *= 2 if self._failed else 1
            self._failed = time.monotonic()
        else:
            if self._failed and not last:
                self._monitor.finish()  # it gives up for good where the server does not answer
                self._watch_system()
            self._patience, self._failed = PATIENCE, 0.0


def history_files(history: list[dict[str, float]]) -> dict[str, bytes]:
    """The figures of each epoch as files, history.json and history.csv."""
    names = list(dict.fromkeys(name for figures in history for name in figures))
    table = io.StringIO()
    writer = csv.DictWriter(table, ["epoch", *names], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"epoch": number, **figures} for number, figures in enumerate(history, 1))
    lines = json.dumps([{"epoch": number, **figures} for number, figures in enumerate(history, 1)], indent=1)
    return {"history.json": (lines + "\n").encode(), "history.csv": table.getvalue().encode()}


def _place_of_artifacts() -> str | None:
    """Beside a database in a file, where MLflow by itself takes the directory it is in; else the server says where."""
    kind, _, path = environment.get("MLFLOW_TRACKING_URI").partition(":///")
    return str(Path(path).absolute().with_suffix("")) if kind == "sqlite" else None


def _last_epoch(client: Any, run: Any) -> int:
    """The last epoch of which a run tells."""
    name = next((name for name in sorted(run.data.metrics) if not name.startswith("system/")), None)
    return max((point.step for point in client.get_metric_history(run.info.run_id, name)), default=0) if name else 0


def _warn(what: str, error: Exception, more: str = "") -> None:
    why = str(error).split("\n")[0].rstrip(".")
    log.warning(what, extra={"fields": {"stage": "train", "why": f"{why}.{more}"}})
