"""Look up the digests of images in their container registries, with Docker's logins."""

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

from workflows.image_names import parse

HUB = "registry-1.docker.io"
KINDS = ", ".join((
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
))  # fmt: skip


def digest(name: str) -> str:
    """Return the image's name with the current digest instead of the tag."""
    reference = parse(name)
    if reference["digest"]:
        return name
    host, path = reference["host"] or HUB, reference["path"]
    if not reference["host"] and "/" not in path:
        path = f"library/{path}"
    response = _manifest(host, path, reference["tag"] or "latest", name)
    current = response.headers.get("Docker-Content-Digest") or f"sha256:{hashlib.sha256(response.data).hexdigest()}"
    return f"{reference['host'] + '/' if reference['host'] else ''}{reference['path']}@{current}"


def _manifest(host: str, path: str, tag: str, name: str) -> Any:
    """Return the registry's response to the request for a manifest; log in if required."""
    secure = urlsplit(f"//{host}").hostname not in ("localhost", "127.0.0.1")
    url = f"{'https' if secure else 'http'}://{host}/v2/{path}/manifests/{tag}"
    headers = {"Accept": KINDS}
    try:
        response = _get(url, headers)
        if response.status == 401:
            login = _authorization(response.headers.get("WWW-Authenticate", ""), host)
            response = _get(url, {**headers, **login})
    except urllib3.exceptions.HTTPError as error:
        reason = str(getattr(error, "reason", None) or error).split(": ", 1)[-1]
        raise ConnectionError(
            f"The registry {host} does not respond, so {name} cannot be pinned: {reason}. Check the address, or use "
            "--no-pin to keep the tag."
        ) from None
    if response.status == 404:
        raise FileNotFoundError(f"The image {name} is not in its registry. Push it with `make push` or `docker push`.")
    if response.status in (401, 403):
        raise PermissionError(f"The registry {host} does not let you read {name}. Log in with: docker login {host}")
    if response.status >= 300:
        raise OSError(f"The registry {host} returned {response.status} for {name}. See its log, or try again later.")
    return response


def _get(url: str, headers: dict[str, str]) -> Any:
    return urllib3.request("GET", url, headers=headers, timeout=20, retries=urllib3.Retry(2, backoff_factor=0.2))


def _authorization(challenge: str, host: str) -> dict[str, str]:
    """Return the header for a registry's challenge, with Docker's login."""
    import docker.auth
    from docker.errors import DockerException

    # The error below repeats the warning, with a remedy.
    warnings.filterwarnings("ignore", "docker-credential-.* not installed", UserWarning)
    try:
        login = docker.auth.load_config().resolve_authconfig(None if host == HUB else host) or {}
    except DockerException as error:
        raise PermissionError(
            f"The registry {host} requires a login, and Docker's credential helper failed ({error}). Correct "
            "credsStore or credHelpers in Docker's config.json, or remove them and log in again."
        ) from None
    user, password = login.get("Username") or login.get("username"), login.get("Password") or login.get("password")
    basic = {}
    if user and password:
        basic = {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    if not challenge.lower().startswith("bearer"):
        return basic
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = urlencode({name: fields[name] for name in ("service", "scope") if name in fields})
    response = _get(f"{fields.get('realm', '')}?{query}", basic)
    if response.status >= 300:
        return {}
    try:
        token = response.json()
        return {"Authorization": f"Bearer {token.get('token') or token['access_token']}"}
    except (ValueError, KeyError, AttributeError):
        return {}  # not a token service; the registry will refuse the request


def pin(images: Mapping[str, str]) -> dict[str, str]:
    """Return the images with their current digests; pinned images do not change."""
    names = sorted(set(images.values()))
    with ThreadPoolExecutor(8) as pool:
        pinned = dict(zip(names, pool.map(digest, names), strict=True))
    return {stage: pinned[name] for stage, name in images.items()}
