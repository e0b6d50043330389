"""Mounts, environment and network of a run's containers."""

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

PASSED = (
    "MEDLOOP_CURRENCY",
    "MEDLOOP_DEVICE_PRICE",
    "MEDLOOP_HASH_KEY",
    "MEDLOOP_LOG",
    "MEDLOOP_NOTIFY_URL",
    "MEDLOOP_RUN",
    "MEDLOOP_SCRATCH",
    "MEDLOOP_SIGNING_KEY",  # for a replay; in a run each stage gets its own key
    "MEDLOOP_TRACEBACK",
    "MEDLOOP_VERIFY_KEYS",
    "PYTHONUNBUFFERED",
    *TELEMETRY_OFF,
    *THREADS,
)
PASSED_PREFIXES = ("AWS_", "MLFLOW_")
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
"""Label of a run's containers; its value is the store. Only one run at a time uses a store."""


def container_options(
    settings: Settings, environment: dict[str, str], arguments: dict[str, Any], images: Iterable[str]
) -> dict[str, Any]:
    """Return mounts (path to ro or rw, same path inside), hidden key files, environment, user, network and labels.

    Raise UnavailableError if Docker or an image is missing.
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
        "environment": passed_environment(environment),
        "user": f"{os.getuid()}:{os.getgid()}",
        "network": network(environment),
        "labels": {LABEL: arguments["store"]},
    }


def remove(store: str) -> None:
    """Remove the containers of a store's run; Docker does not stop them when their client process ends."""
    import docker
    from docker.errors import DockerException

    with contextlib.suppress(DockerException), contextlib.closing(docker.from_env()) as client:
        for container in client.containers.list(all=True, filters={"label": f"{LABEL}={store}"}):
            with contextlib.suppress(DockerException):  # it may have just ended
                container.remove(force=True)


def named_files(environment: Mapping[str, str]) -> dict[str, str]:
    """Return read-only mounts of the files named in the environment: keys, tokens, certificates."""
    paths = (Path(environment[name]).absolute() for name in FILES if environment.get(name))
    return {str(path): "ro" for path in paths if path.is_file()}


def network(environment: Mapping[str, str]) -> str:
    """Return "host" if the store, tracking or another service runs on this machine, else "bridge"."""
    hosts = (urlsplit(environment.get(name, "")).hostname for name in ADDRESSES)
    return "host" if any(host in ("localhost", "127.0.0.1", "::1") for host in hosts) else "bridge"


def passed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that stages use, with absolute paths."""
    return {
        name: str(Path(value).absolute()) if name in FILES and value else value
        for name, value in environment.items()
        if name in PASSED or name.startswith(PASSED_PREFIXES)
    }


def check_images(images: Iterable[str]) -> None:
    """Raise UnavailableError if Docker does not respond or lacks one of the images."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env()
    except DockerException as error:
        raise UnavailableError(
            f"Docker does not respond ({str(error).splitlines()[0]}). Start it, or use --runner subprocess."
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
                f"These images are not on this machine: {', '.join(missing)}. Build them with `make images`, or fetch "
                "them with `docker pull`."
            )
    finally:
        client.close()
