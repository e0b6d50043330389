"""Shows a training to MLflow while it runs. Training goes on when MLflow cannot be reached."""

from __future__ import annotations

import os
import warnings
from types import TracebackType
from typing import Any

from components.shared.work import log


class Tracking:
    """One MLflow run, or nothing where no tracking address is set or it does not answer."""

    def __init__(self, key: str, parameters: dict[str, Any]) -> None:
        self.key, self.parameters = key, parameters
        self._client: Any = None
        self._run = ""

    def __enter__(self) -> Tracking:
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            return self
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing about a hospital's runs goes elsewhere
        # A server that is not there is given up in seconds; MLflow by itself goes on asking for four minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._try(self._start)
        return self

    def _start(self) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name("medloop")
        number = experiment.experiment_id if experiment else self._client.create_experiment("medloop")
        name = f"train {self.key[:12]}"
        self._run = self._client.create_run(number, run_name=name, tags={"medloop.work": self.key}).info.run_id
        for parameter, value in self.parameters.items():
            self._client.log_param(self._run, parameter, value)

    def epoch(self, number: int, figures: dict[str, float]) -> None:
        """Log an epoch's figures."""

        def send() -> None:
            for name, value in figures.items():
                self._client.log_metric(self._run, name, value, step=number)

        self._try(send)

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._try(lambda: self._client.set_terminated(self._run, "FAILED" if kind else "FINISHED"))

    def _try(self, call: Any) -> None:
        if self._client is None and call != self._start:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what MLflow deprecates is not this user's concern
                call()
        except Exception as error:
            self._client = None
            log.warning("tracking stopped", extra={"fields": {"stage": "train", "why": str(error).split("\n")[0]}})
