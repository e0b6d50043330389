"""What a run's containers are given: the directories they share with this machine, and their environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from components.shared.interface import stages
from components.stage import image
from workflows.settings import Settings

HANDED_ON = ("MEDLOOP_HASH_KEY", "MEDLOOP_LOG", "MEDLOOP_NOTIFY_URL", "PYTHONUNBUFFERED")
FAMILIES = ("AWS_", "MLFLOW_")


def for_containers(settings: Settings, environment: dict[str, str], arguments: dict[str, Any]) -> dict[str, Any]:
    """Mounts (path → ro or rw, the same path inside) and environment; refuses where engine or image is missing."""
    _check_images()
    mounts = {str(settings.home): "rw"}
    if "://" not in arguments["store"]:
        Path(arguments["store"]).mkdir(parents=True, exist_ok=True)
        mounts[arguments["store"]] = "rw"
    if "://" not in arguments["source"] and Path(arguments["source"]).exists():
        mounts[arguments["source"]] = "ro"
    inside = {name: value for name, value in environment.items() if name in HANDED_ON or name.startswith(FAMILIES)}
    return {"mounts": mounts, "environment": inside, "user": f"{os.getuid()}:{os.getgid()}"}


def _check_images() -> None:
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env()
    except DockerException as error:
        raise RuntimeError(
            f"No Docker engine answers ({str(error).splitlines()[0]}). Start one, or use --runner subprocess."
        ) from None
    try:
        missing = []
        for stage in stages():
            try:
                client.images.get(image(stage))
            except ImageNotFound:
                missing.append(image(stage))
        if missing:
            raise RuntimeError(f"There is no image {', '.join(missing)} on this machine. Build them with: make images")
    finally:
        client.close()
