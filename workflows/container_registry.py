"""Asks a container registry by what digest it holds an image, with the log-in that Docker has for it."""

from __future__ import annotations

import base64
import hashlib
import re
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from components.shared.errors import UsageError
from workflows.image_names import REFERENCE

HUB = "registry-1.docker.io"
KINDS = ", ".join((
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
))  # fmt: skip


def digest(name: str) -> str:
    """The image's name with its digest in place of its tag, as the registry holds it now."""
    found = REFERENCE.fullmatch(name)
    if found is None:
        raise UsageError(f"{name!r} is no name of an image. Write registry/path/name:tag in small letters.")
    if found["digest"]:
        return name
    host, path = found["host"] or HUB, found["path"]
    if not found["host"] and "/" not in path:
        path = f"library/{path}"
    answer = _ask(host, path, found["tag"] or "latest", name)
    held = answer.headers.get("Docker-Content-Digest") or f"sha256:{hashlib.sha256(answer.data).hexdigest()}"
    return f"{found['host'] + '/' if found['host'] else ''}{found['path']}@{held}"


def _ask(host: str, path: str, tag: str, name: str) -> Any:
    """The registry's answer to who this tag is, asked a second time with a log-in where it wants one."""
    secure = urlsplit(f"//{host}").hostname not in ("localhost", "127.0.0.1")
    url = f"{'https' if secure else 'http'}://{host}/v2/{path}/manifests/{tag}"
    headers = {"Accept": KINDS}
    try:
        answer = _get(url, headers)
        if answer.status == 401:
            granted = _authorization(answer.headers.get("WWW-Authenticate", ""), host)
            answer = _get(url, {**headers, **granted})
    except urllib3.exceptions.HTTPError as error:
        raise ConnectionError(
            f"The registry {host} does not answer, so {name} cannot be pinned: {_reason(error)}. Check the address, or "
            "compile with --no-pin if the cluster may take whatever the tag then names."
        ) from None
    if answer.status == 404:
        raise FileNotFoundError(f"There is no image {name} in its registry. Push it first: make push, or docker push.")
    if answer.status in (401, 403):
        raise PermissionError(f"The registry {host} does not let you read {name}. Log in with: docker login {host}")
    if answer.status >= 300:
        raise OSError(f"The registry {host} answers {answer.status} for {name}. Look at its log, or try again later.")
    return answer


def _get(url: str, headers: dict[str, str]) -> Any:
    return urllib3.request("GET", url, headers=headers, timeout=20, retries=urllib3.Retry(2, backoff_factor=0.2))


def _authorization(challenge: str, host: str) -> dict[str, str]:
    """The header that answers a registry's challenge, from Docker's own log-ins."""
    import docker.auth
    from docker.errors import DockerException

    # The error says it, with the remedy.
    warnings.filterwarnings("ignore", "docker-credential-.* not installed", UserWarning)
    try:
        login = docker.auth.load_config().resolve_authconfig(None if host == HUB else host) or {}
    except DockerException as error:
        raise PermissionError(
            f"The registry {host} wants a log-in, and Docker's helper for log-ins fails ({error}). Mend credsStore or "
            "credHelpers in Docker's config.json, or take them out and log in again."
        ) from None
    user, password = login.get("Username") or login.get("username"), login.get("Password") or login.get("password")
    basic = {}
    if user and password:
        basic = {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    if not challenge.lower().startswith("bearer"):
        return basic
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = urlencode({name: asked[name] for name in ("service", "scope") if name in asked})
    answer = _get(f"{asked.get('realm', '')}?{query}", basic)
    if answer.status >= 300:
        return {}
    try:
        granted = answer.json()
        return {"Authorization": f"Bearer {granted.get('token') or granted['access_token']}"}
    except (ValueError, KeyError, AttributeError):
        return {}  # no token service: then the registry refuses, and that is told


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).split(": ", 1)[-1]


def pin(images: Mapping[str, str]) -> dict[str, str]:
    """The same images by digest, as their registries name them now; what is pinned already stays."""
    names = sorted(set(images.values()))
    with ThreadPoolExecutor(8) as pool:
        pinned = dict(zip(names, pool.map(digest, names), strict=True))
    return {stage: pinned[name] for stage, name in images.items()}
