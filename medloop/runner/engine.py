"""The process that executes a run with Kubeflow Pipelines' local runner: `python -m medloop.runner.engine`.

The first line of standard input is the run as JSON. When standard input closes, the parent process has ended, and this
process terminates with all its children, so that no run continues unattended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from typing import Any

from components.shared.privacy.secret_redaction import protect_process


def main() -> int:
    """Execute the run described on standard input, and return the exit status."""
    protect_process()
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_terminate_with_parent, args=(request,), daemon=True).start()
    warnings.filterwarnings("ignore", message="You may be attemping to run", category=RuntimeWarning)
    from kfp import local

    from workflows.package import build

    images = request["images"] if request["runner"] == "docker" else None
    pipeline = build(request["pipeline"], images, environments=request["keys"])
    local.init(_runner(local, request), pipeline_root=request["root"], raise_on_error=True)
    try:
        pipeline(**request["arguments"])
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _runner(local: Any, request: dict[str, Any]) -> Any:
    if request["runner"] == "subprocess":
        return local.SubprocessRunner(use_venv=False)
    from docker.types import DeviceRequest, Mount

    gpus = {"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]} if request["gpus"] else {}
    return local.DockerRunner(
        environment=request["environment"],
        mounts=[
            *(Mount(path, path, "bind", read_only=mode == "ro") for path, mode in request["mounts"].items()),
            *(Mount(path, os.devnull, "bind", read_only=True) for path in request["covered"]),
        ],
        user=request["user"],
        entrypoint="",  # the images have an entry point; the pipeline sets its own command
        network_mode=request["network"],
        shm_size="1g",  # Docker's default of 64 MB is too small for training
        labels=request["labels"],
        **gpus,
    )


def _terminate_with_parent(request: dict[str, Any]) -> None:
    sys.stdin.read()
    if request["runner"] == "docker":
        from medloop.runner import containers

        for store in request["labels"].values():
            containers.remove(store)
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
