"""The process in which Kubeflow Pipelines' local runner does a run: `python -m medloop.runner.engine`.

Its first line of input is the run as JSON. When its input then closes, the one who started it is gone, and it ends
with all its children: a run never goes on unwatched.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from typing import Any

from components.shared.privacy.redaction import protect_process


def main() -> int:
    """Do the run that standard input describes; gives the exit status."""
    protect_process()
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_starter, args=(asked,), daemon=True).start()
    warnings.filterwarnings("ignore", message="You may be attemping to run", category=RuntimeWarning)
    from kfp import local

    from workflows.package import build

    images = asked["images"] if asked["runner"] == "docker" else None
    pipeline = build(asked["pipeline"], images, environments=asked["keys"])
    local.init(_runner(local, asked), pipeline_root=asked["root"], raise_on_error=True)
    try:
        pipeline(**asked["arguments"])
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _runner(local: Any, asked: dict[str, Any]) -> Any:
    if asked["runner"] == "subprocess":
        return local.SubprocessRunner(use_venv=False)
    from docker.types import DeviceRequest, Mount

    gpus = {"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]} if asked["gpus"] else {}
    return local.DockerRunner(
        environment=asked["environment"],
        mounts=[
            *(Mount(path, path, "bind", read_only=mode == "ro") for path, mode in asked["mounts"].items()),
            *(Mount(path, os.devnull, "bind", read_only=True) for path in asked["covered"]),
        ],
        user=asked["user"],
        entrypoint="",  # the images are commands by themselves; here the pipeline brings its own
        network_mode=asked["network"],
        shm_size="1g",  # the usual 64 MB are too little for training
        labels=asked["labels"],
        **gpus,
    )


def _end_with_the_starter(asked: dict[str, Any]) -> None:
    sys.stdin.read()
    if asked["runner"] == "docker":
        from medloop.runner import containers

        for store in asked["labels"].values():
            containers.end(store)
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
