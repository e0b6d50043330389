"""Logging of a training to MLflow. The training continues if MLflow cannot be reached."""

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
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from components.shared import environment
from components.shared.runtime import step_log
from components.shared.runtime.code_and_package_versions import code_version
from components.shared.runtime.events import log

EXPERIMENT = "medloop"
PATIENCE = 60.0
"""Seconds before a failed server is tried again; doubled at each further failure."""
BATCH = 100
"""Maximum number of parameters in a request to MLflow."""


class Tracking:
    """One MLflow run; does nothing if no tracking URI is set.

    Calls that fail are queued and repeated later in order, because a server can be restarted during a long training.
    A resumed training continues in the same run until it is finished. `tags` get the prefix `medloop.`.
    """

    def __init__(self, key: str, parameters: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> None:
        self.key, self.parameters, self.tags = key, parameters, dict(tags or {})
        self._client: Any = None
        self._monitor: Any = None
        self._run = ""
        self._logged = 0  # the last epoch that an earlier attempt logged
        self._queue: deque[Callable[[], None]] = deque()
        self._patience, self._failed, self._warned = PATIENCE, 0.0, False
        self._on = bool(environment.get("MLFLOW_TRACKING_URI"))

    def __enter__(self) -> Tracking:
        # Give up after seconds if there is no server; by default, MLflow retries for four minutes.
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
        """Set a tag whose value is known only later, such as the cost."""
        self._send(lambda: self._client.set_tag(self._run, f"medloop.{name}", value))

    def artifacts(self, files: Mapping[str, bytes]) -> None:
        """Log files; if that fails, continue with the rest of the run."""

        def send() -> None:
            with tempfile.TemporaryDirectory(prefix="medloop-artifacts-") as folder:
                for name, data in files.items():
                    (Path(folder) / name).write_bytes(data)
                try:
                    self._client.log_artifacts(self._run, folder)
                except Exception as error:  # artifacts can be in another storage, with other permissions
                    _warn("files not tracked", error)

        self._send(send)

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"

        def end() -> None:
            if self._monitor:
                self._monitor.finish()
            self._client.set_terminated(self._run, status)

        self._send(end, last=True)

    def _start(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # its info messages do not help here
        client = MlflowClient()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, _artifact_location())
        unfinished = f"tags.`medloop.work` = '{self.key}' and attributes.status != 'FINISHED'"
        earlier = client.search_runs([number], unfinished, max_results=1, order_by=["attributes.start_time DESC"])
        if earlier:
            self._run = earlier[0].info.run_id
            self._logged = _last_epoch(client, earlier[0])
            client.update_run(self._run, status="RUNNING")
        else:
            work = {"medloop.work": self.key}
            self._run = client.create_run(number, run_name=f"train {self.key[:12]}", tags=work).info.run_id
        values = {"code": code_version("train"), "run": step_log.run(), **self.tags}
        tags = [RunTag(f"medloop.{name}", value) for name, value in values.items() if value]
        parameters = [Param(name, str(value)) for name, value in self.parameters.items()]
        for first in range(0, max(len(parameters), 1), BATCH):
            client.log_batch(self._run, params=parameters[first : first + BATCH], tags=tags)
        self._client = client
        self._watch_system()

    def _watch_system(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self._run, resume_logging=True, tracking_uri=self._client.tracking_uri)
        self._monitor.start()

    def _send(self, call: Callable[[], None], last: bool = False) -> None:
        """Queue a call, and run the queue unless the server failed recently."""
        if not self._on:
            return
        self._queue.append(call)
        since = time.monotonic() - self._failed
        if self._failed and since < (PATIENCE if last else self._patience):
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations in MLflow do not concern the user
                while self._queue:
                    self._queue[0]()
                    self._queue.popleft()
        except Exception as error:
            if not self._warned:
                _warn("tracking stopped", error, " The training continues; missing data is sent as soon as possible.")
            self._warned = True
            self._patience *= 2 if self._failed else 1
            self._failed = time.monotonic()
        else:
            if self._failed and not last:
                self._monitor.finish()  # the monitor stops forever if the server does not respond
                self._watch_system()
            self._patience, self._failed = PATIENCE, 0.0


def history_files(history: list[dict[str, float]]) -> dict[str, bytes]:
    """Return the files history.json and history.csv with the figures of each epoch."""
    rows: list[dict[str, float]] = [{"epoch": number, **figures} for number, figures in enumerate(history, 1)]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(["epoch", *chain(*rows)])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    lines = json.dumps(rows, indent=1)
    return {"history.json": (lines + "\n").encode(), "history.csv": table.getvalue().encode()}


def _artifact_location() -> str | None:
    """Return a directory beside an SQLite database, instead of the working directory; None to let the server decide."""
    kind, _, path = environment.get("MLFLOW_TRACKING_URI").partition(":///")
    return str(Path(path).absolute().with_suffix("")) if kind == "sqlite" else None


def _last_epoch(client: Any, run: Any) -> int:
    """Return the last logged epoch of a run, or 0."""
    name = next((name for name in sorted(run.data.metrics) if not name.startswith("system/")), None)
    return max((point.step for point in client.get_metric_history(run.info.run_id, name)), default=0) if name else 0


def _warn(event: str, error: Exception, consequence: str = "") -> None:
    why = str(error).split("\n")[0].rstrip(".")
    log.warning(event, extra={"fields": {"stage": "train", "why": f"{why}.{consequence}"}})
