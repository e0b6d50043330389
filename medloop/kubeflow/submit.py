"""Starts runs of the loop on a Kubeflow Pipelines server, at once or at set times."""

from __future__ import annotations

import contextlib
import getpass
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from components.shared.contracts import file_digest
from components.shared.errors import RefusedError, UnavailableError
from medloop.kubeflow.cron import Span
from medloop.kubeflow.server import Server
from workflows.package import compile_package, oldest_server
from workflows.placement import Placement

GOING_ON = ("PENDING", "RUNNING", "CANCELING", "PAUSED", "RUNTIME_STATE_UNSPECIFIED")


@dataclass(frozen=True)
class Order:
    """What is to be run: a pipeline in its images and places, its arguments, and under which name."""

    pipeline: str
    images: Mapping[str, str]
    cluster: Mapping[str, Placement]
    arguments: Mapping[str, Any]
    experiment: str
    name: str
    service_account: str = ""

    @property
    def store(self) -> str:
        """Where the loop keeps its state."""
        return str(self.arguments["store"])


def submit(server: Server, order: Order) -> str:
    """Start a run now; gives its id. Refuses while another run of the same loop goes on."""
    server.about(oldest_server(order.cluster))
    _refuse_overlap(server, order)
    run_id = server.start(_wanted(server, order))
    try:
        _refuse_overlap(server, order, run_id)  # someone may have submitted at the same moment: the first one goes on
    except RuntimeError:
        server.terminate(run_id)
        raise
    return run_id


def _wanted(server: Server, order: Order) -> dict[str, Any]:
    """What a run and a schedule have in common, with the package uploaded and the experiment made."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"{order.pipeline}.yaml"
        compile_package(order.pipeline, order.images, order.cluster, package)
        pipeline, version = server.upload(f"medloop-{order.pipeline}", package, file_digest(package))
    wanted = {
        "display_name": order.name,
        "description": f"medloop {order.pipeline}, asked for by {getpass.getuser()}",
        "experiment_id": server.experiment(order.experiment),
        "pipeline_version_reference": {"pipeline_id": pipeline, "pipeline_version_id": version},
        "runtime_config": {"parameters": {**order.arguments, "by": getpass.getuser()}},
    }
    return {**wanted, **({"service_account": order.service_account} if order.service_account else {})}


def _refuse_overlap(server: Server, order: Order, mine: str = "") -> None:
    """Refuse while a run works on the same store; of those that began after `mine`, none counts."""
    going_on = []
    for run in islice(server.runs(), 1000):
        asked = (run.get("runtime_config") or {}).get("parameters") or {}
        if run.get("state", "") in ("", *GOING_ON) and str(asked.get("store", "")).rstrip("/") == order.store.rstrip(
            "/"
        ):
            going_on.append(run)
    going_on.sort(key=lambda run: (run.get("created_at", ""), run["run_id"]))
    before = list(takewhile(lambda run: run["run_id"] != mine, going_on))
    if before:
        run = before[0]
        raise UnavailableError(
            f"The run {run['run_id']} ({run.get('display_name')}) works on the store {order.store} and is "
            f"{run.get('state', 'pending').lower()}. One run at a time holds a loop. Wait for it: medloop runs; or end "
            f"it at {server.link('runs/details/' + run['run_id'])}"
        )


def schedule(server: Server, order: Order, spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Let the loop run at set times, in place of the schedule of that name; gives what the server now holds.

    Pinned: it runs this very package until it is replaced. It never overlaps itself and catches nothing up.
    """
    server.about(oldest_server(order.cluster))
    before = {str(each["recurring_run_id"]) for each in _of_that_name(server, order.name)}
    wanted = _wanted(server, order)
    try:
        made = [_begin_part(server, wanted, order.name, span) for span in spans]
    except (ValueError, OSError, LookupError):
        with contextlib.suppress(ValueError, OSError, LookupError):
            for part in _of_that_name(server, order.name):  # also one whose answer was lost
                if part["recurring_run_id"] not in before:  # half a schedule is none: what was in force stays, alone
                    server.unschedule(str(part["recurring_run_id"]))
        raise
    for old in sorted(before):  # only now: a refusal above leaves the old one in force
        server.unschedule(old)
    return made


def _begin_part(server: Server, wanted: Mapping[str, Any], name: str, span: Span) -> dict[str, Any]:
    """Begin what fires between two changes of a clock; gives what the server now holds."""
    part = f" (until {span.end:%Y-%m-%d})" if span.end else f" (from {span.start:%Y-%m-%d})" if span.start else ""
    trigger: dict[str, Any] = {"cron": span.expression}
    trigger |= {"start_time": _stamp(span.start)} if span.start else {}
    trigger |= {"end_time": _stamp(span.end)} if span.end else {}
    asked = {
        **wanted,
        "display_name": name + part,
        "description": _mark(name),
        "trigger": {"cron_schedule": trigger},
        "max_concurrency": "1",
        "no_catchup": True,
        "mode": "ENABLE",
    }
    about = {"name": name + part, "cron": span.expression, "start": span.start, "end": span.end}
    return {**about, "id": server.schedule(asked)}


def unschedule(server: Server, name: str) -> int:
    """End the schedule of that name; gives how many parts it had. Its runs are left alone."""
    found = _of_that_name(server, name)
    if not found:
        names = sorted({str(each["display_name"]) for each in server.schedules()})
        raise RefusedError(f"There is no schedule {name!r} here. There are: {', '.join(names) or 'none'}.")
    for each in found:
        server.unschedule(str(each["recurring_run_id"]))
    return len(found)


def _of_that_name(server: Server, name: str) -> list[dict[str, Any]]:
    return [each for each in server.schedules() if each.get("description") == _mark(name)]


def _mark(name: str) -> str:
    """What tells that a recurring run belongs to a schedule of ours."""
    return f"medloop schedule {name}"


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
