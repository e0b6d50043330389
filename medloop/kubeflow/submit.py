"""Start runs on a Kubeflow Pipelines server."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from components.shared.contracts import file_digest
from components.shared.errors import UnavailableError
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
    run_id = server.start(run_body(server, request))
    try:
        _refuse_overlap(server, request, run_id)  # of concurrent submissions, only the first continues
    except RuntimeError:
        server.terminate(run_id)
        raise
    return run_id


def run_body(server: Server, request: RunRequest) -> dict[str, Any]:
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
