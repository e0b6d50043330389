"""What a run's containers are given: the directories they share with this machine, and their environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components import TELEMETRY_OFF, THREADS
from components.shared.errors import UnavailableError
from medloop.settings import Settings

HANDED_ON = (
    "MEDLOOP_CURRENCY",
    "MEDLOOP_DEVICE_PRICE",
    "MEDLOOP_HASH_KEY",
    "MEDLOOP_LOG",
    "MEDLOOP_NOTIFY_URL",
    "MEDLOOP_RUN",
    "MEDLOOP_SCRATCH",
    "MEDLOOP_SIGNING_KEY",  # of a replay; a run gives each stage its own key
    "MEDLOOP_TRACEBACK",
    "MEDLOOP_VERIFY_KEYS",
    "PYTHONUNBUFFERED",
    *TELEMETRY_OFF,
    *THREADS,
)
FAMILIES = ("AWS_", "MLFLOW_")
FILES = ("AWS_CA_BUNDLE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
ADDRESSES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "MLFLOW_TRACKING_URI",
    "MEDLOOP_NOTIFY_URL",
)
LABEL = "medloop.store"
"""The label of a run's containers: the store they work on. One run at a time holds a store."""


def for_containers(
    settings: Settings, environment: dict[str, str], arguments: dict[str, Any], images: Iterable[str]
) -> dict[str, Any]:
    """Mounts (path → ro or rw, the same path inside), the key files that an empty file covers there, and environment;
    refuses where engine or image is missing.
    """
    check_images(images)
    mounts = {str(settings.home): "rw"}
    if "://" not in arguments["store"]:
        Path(arguments["store"]).mkdir(parents=True, exist_ok=True)
        mounts[arguments["store"]] = "rw"
    for address in (arguments.get("source", ""), arguments.get("weights", "")):
        if address and "://" not in address and Path(address).exists():
            mounts[address] = "ro"
    return {
        "mounts": {**mounts, **named_files(environment)},
        "covered": [str(path) for path in settings.key_files if path.exists()],
        "environment": handed_on(environment),
        "user": f"{os.getuid()}:{os.getgid()}",
        "network": network(environment),
        "labels": {LABEL: arguments["store"]},
    }


def end(store: str) -> None:
    """End the containers that work on a store: Docker's engine does not end them with the process that asked it."""
    import docker
    from docker.errors import DockerException

    with contextlib.suppress(DockerException), contextlib.closing(docker.from_env()) as client:
        for container in client.containers.list(all=True, filters={"label": f"{LABEL}={store}"}):
            with contextlib.suppress(DockerException):  # it has just ended by itself
                container.remove(force=True)


def named_files(environment: Mapping[str, str]) -> dict[str, str]:
    """Mounts of the files that the environment names: keys, tokens, certificates."""
    paths = (Path(environment[name]).absolute() for name in FILES if environment.get(name))
    return {str(path): "ro" for path in paths if path.is_file()}


def network(environment: Mapping[str, str]) -> str:
    """The machine's own network, where storage or tracking are on it and no other container would reach them."""
    hosts = (urlsplit(environment.get(name, "")).hostname for name in ADDRESSES)
    return "host" if any(host in ("localhost", "127.0.0.1", "::1") for host in hosts) else "bridge"


def handed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a stage has a use for."""
    kept = {name: value for name, value in environment.items() if name in HANDED_ON or name.startswith(FAMILIES)}
    # A path from here leads nowhere there.
    return {name: str(Path(value).absolute()) if name in FILES and value else value for name, value in kept.items()}


def check_images(images: Iterable[str]) -> None:
    """Refuse where no Docker engine answers, or it lacks one of the images."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env()
    except DockerException as error:
        raise UnavailableError(
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
            raise UnavailableError(
                f"There is no image {', '.join(missing)} on this machine. Build them with: make images, or fetch them "
                "with: docker pull"
            )
    finally:
        client.close()
