"""Stories of runs of the loop on a Kubeflow server: what stages say in their logs, as the steps of a script."""

from __future__ import annotations

import json
from typing import Any

from tests.medloop.kubeflow.kfp_runs import Step

RELEASED: dict[str, Any] = {
    "outcome": "released",
    "version": "v3",
    "sentence": "v3: approved, for every check was passed.",
}
REFUSED: dict[str, Any] = {"version": "v2", "sentence": "Refused: accuracy is 0.700, 0.100 short of 0.800."}


def says(event: str, stage: str, **fields: Any) -> str:
    """A line of a stage's log, as components/shared/runtime/work.py writes it."""
    return json.dumps({"event": event, "at": 1.5, "stage": stage, **fields}) + "\n"


def works(task: str, seconds: float = 0.0, **values: Any) -> list[Step]:
    """A task that goes well."""
    stage = task.removesuffix("-2")
    log = "warning: a line of a library\n" + says("started", stage, key="k")
    log += says("progress", stage, done=1, total=2, note="halves")
    end = says("finished", stage, key="k", seconds=1.25, outputs={}, values=values)
    return [Step(task, "RUNNING", seconds, log), Step(task, "SUCCEEDED", 0.0, end)]


def fails(task: str, why: str, seconds: float = 0.0) -> list[Step]:
    """A try of a task that fails, having said why."""
    log = says("started", task, key="k") + "a line before the end\n" + says("failed", task, why=why, level="ERROR")
    return [Step(task, "RUNNING", seconds, log), Step(task, "FAILED", 0.0, "the very last line\n")]


def upto(last: str) -> list[Step]:
    """All tasks before that one go well."""
    line = ("resolve", "ingest", "split", "train", "evaluate", "gate", "quantize", "evaluate-2", "gate-2")
    return [step for task in line[: line.index(last)] for step in works(task)]


def released() -> list[Step]:
    """A run that ends with a release."""
    return [*upto("gate-2"), *works("gate-2"), *works("deploy", **RELEASED)]


def refusal() -> list[Step]:
    """A run that ends with a refusal."""
    return [*upto("quantize"), *works("reject-2", **REFUSED)]
