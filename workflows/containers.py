"""What a run's containers are given: the directories they share with this machine, and their environment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workflows.settings import Settings

HANDED_ON = (
    "MEDLOOP_HASH_KEY",
    "MEDLOOP_LOG",
    "MEDLOOP_NOTIFY_URL",
    "MEDLOOP_RUN",
    "MEDLOOP_SCRATCH",
    "MEDLOOP_TRACEBACK",
    "PYTHONUNBUFFERED",
)
FAMILIES = ("AWS_", "MLFLOW_")


def for_containers(
    settings: Settings, environment: dict[str, str], arguments: dict[str, Any], images: Iterable[str]
) -> dict[str, Any]:
    """Mounts (path → ro or rw, the same path inside) and environment; refuses where engine or image is missing."""
    check_images(images)
    mounts = {str(settings.home): "rw"}
    if "://" not in arguments["store"]:
        Path(arguments["store"]).mkdir(parents=True, exist_ok=True)
        mounts[arguments["store"]] = "rw"
    if "://" not in arguments["source"] and Path(arguments["source"]).exists():
        mounts[arguments["source"]] = "ro"
    return {"mounts": mounts, "environment": handed_on(environment), "user": f"{os.getuid()}:{os.getgid()}"}


def handed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a stage has a use for."""
    return {name: value for name, value in environment.items() if name in HANDED_ON or name.startswith(FAMILIES)}


def check_images(images: Iterable[str]) -> None:
    """Refuse where no Docker engine answers, or it lacks one of the images."""
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
        for name in sorted(set(images)):
            try:
                client.images.get(name)
            except ImageNotFound:
                missing.append(name)
        if missing:
            raise RuntimeError(
                f"There is no image {', '.join(missing)} on this machine. Build them with: make images, or fetch them "
                "with: docker pull"
            )
    finally:
        client.close()
