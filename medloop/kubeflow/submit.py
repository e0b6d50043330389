"""Start and schedule runs on a Kubeflow Pipelines server."""

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

ACTIVE = ("PENDING", "RUNNING", "CANCELING", "PAUSED", "RUNTIME_STATE_UNSPECIFIED")


@dataclass(frozen=True)
class RunRequest:
    """A run to start: pipeline, images, placement, arguments and names."""

    pipeline: str
    images: Mapping[str, str]
    cluster: Mapping[str, Placement]
    arguments: Mapping[str, Any]
    experiment: str
    name: str
    service_account: str = ""

    @property
    def store(self) -> str:
        """The store of the run."""
        return str(self.arguments["store"])


def submit(server: Server, request: RunRequest) -> str:
    """Start a run now and return its id; raise UnavailableError if another run uses the same store."""
    server.check(oldest_server(request.cluster))
    _refuse_overlap(server, request)
    run_id = server.start(_run_body(server, request))
    try:
        _refuse_overlap(server, request, run_id)  # of concurrent submissions, only the first continues
    except RuntimeError:
        server.terminate(run_id)
        raise
    return run_id


def _run_body(server: Server, request: RunRequest) -> dict[str, Any]:
    """Upload the package, create the experiment, and return the fields that runs and schedules share."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / f"{request.pipeline}.yaml"
        compile_package(request.pipeline, request.images, request.cluster, package)
        pipeline, version = server.upload(f"medloop-{request.pipeline}", package, file_digest(package))
    body = {
        "display_name": request.name,
        "description": f"medloop {request.pipeline}, requested by {getpass.getuser()}",
        "experiment_id": server.experiment(request.experiment),
        "pipeline_version_reference": {"pipeline_id": pipeline, "pipeline_version_id": version},
        "runtime_config": {"parameters": {**request.arguments, "by": getpass.getuser()}},
    }
    return {**body, **({"service_account": request.service_account} if request.service_account else {})}


def _refuse_overlap(server: Server, request: RunRequest, mine: str = "") -> None:
    """Raise UnavailableError if an active run, older than the run `mine`, uses the same store."""
    active = []
    for run in islice(server.runs(), 1000):
        parameters = (run.get("runtime_config") or {}).get("parameters") or {}
        same_store = str(parameters.get("store", "")).rstrip("/") == request.store.rstrip("/")
        if same_store and run.get("state", "") in ("", *ACTIVE):
            active.append(run)
    active.sort(key=lambda run: (run.get("created_at", ""), run["run_id"]))
    if older := list(takewhile(lambda run: run["run_id"] != mine, active)):
        run = older[0]
        raise UnavailableError(
            f"The run {run['run_id']} ({run.get('display_name')}) uses the store {request.store} and is "
            f"{run.get('state', 'pending').lower()}. Only one run at a time can use a store. Wait for it (see `medloop "
            f"runs`), or stop it at {server.link('runs/details/' + run['run_id'])}"
        )


def schedule(server: Server, request: RunRequest, spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Create a schedule, replacing one of the same name, and return its parts.

    Its runs use the package compiled now, never overlap and are not caught up after a pause.
    """
    server.check(oldest_server(request.cluster))
    old = {str(part["recurring_run_id"]) for part in _parts_of(server, request.name)}
    body = _run_body(server, request)
    try:
        parts = [_create_part(server, body, request.name, span) for span in spans]
    except (ValueError, OSError, LookupError):
        with contextlib.suppress(ValueError, OSError, LookupError):
            for part in _parts_of(server, request.name):  # includes parts whose response was lost
                if part["recurring_run_id"] not in old:  # remove an incomplete schedule and keep the old one
                    server.unschedule(str(part["recurring_run_id"]))
        raise
    for part_id in sorted(old):  # last, so that the old schedule stays valid after an error
        server.unschedule(part_id)
    return parts


def _create_part(server: Server, body: Mapping[str, Any], name: str, span: Span) -> dict[str, Any]:
    """Create the recurring run for the time between two clock changes, and return its description."""
    part = f" (until {span.end:%Y-%m-%d})" if span.end else f" (from {span.start:%Y-%m-%d})" if span.start else ""
    trigger: dict[str, Any] = {"cron": span.expression}
    trigger |= {"start_time": _timestamp(span.start)} if span.start else {}
    trigger |= {"end_time": _timestamp(span.end)} if span.end else {}
    recurring = {
        **body,
        "display_name": name + part,
        "description": _description(name),
        "trigger": {"cron_schedule": trigger},
        "max_concurrency": "1",
        "no_catchup": True,
        "mode": "ENABLE",
    }
    described = {"name": name + part, "cron": span.expression, "start": span.start, "end": span.end}
    return {**described, "id": server.schedule(recurring)}


def unschedule(server: Server, name: str) -> int:
    """Remove a schedule and return the number of its parts. Active runs continue."""
    parts = _parts_of(server, name)
    if not parts:
        names = sorted({str(part["display_name"]) for part in server.schedules()})
        raise RefusedError(f"There is no schedule {name!r}. Existing schedules: {', '.join(names) or 'none'}.")
    for part in parts:
        server.unschedule(str(part["recurring_run_id"]))
    return len(parts)


def _parts_of(server: Server, name: str) -> list[dict[str, Any]]:
    return [part for part in server.schedules() if part.get("description") == _description(name)]


def _description(name: str) -> str:
    """Return the description by which medloop finds its recurring runs again."""
    return f"medloop schedule {name}"


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
