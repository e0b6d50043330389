"""A real server for tests: a container registry's side of asking for a manifest (the OCI distribution API)."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

USER, PASSWORD, GRANT = "someone", "a-password", "a-granted-token"
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class Registry:
    """A running registry: images by path and tag, and what it asks of those who read."""

    address: str = ""
    images: dict[str, bytes] = field(default_factory=dict)  # "path:tag" → manifest
    login: Literal["none", "anonymous", "token", "basic"] = "none"
    forbidden: bool = False
    failing: int = 0  # answers to come that are 500
    names_digests: bool = True  # whether answers carry Docker-Content-Digest
    broken_grants: bool = False  # whether the token service answers something else
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, authorization

    def push(self, name: str, content: str) -> str:
        """Put an image there; gives its digest."""
        self.images[name] = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [content]}).encode()
        return digest_of(self.images[name])


def digest_of(manifest: bytes) -> str:
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class _Handler(http.server.BaseHTTPRequestHandler):
    registry: Registry

    def do_GET(self) -> None:
        registry, given = self.registry, self.headers.get("Authorization", "")
        parts = urllib.parse.urlsplit(self.path)
        registry.requests.append((self.command, self.path, given))
        if parts.path == "/token":
            self._grant(dict(urllib.parse.parse_qsl(parts.query)), given)
            return
        if registry.failing:
            registry.failing -= 1
            self._give(500, b"oops")
        elif registry.forbidden:
            self._give(403, b'{"errors": [{"code": "DENIED"}]}')
        elif not self._lets_in(given):
            challenge = f'Bearer realm="http://{registry.address}/token",service="registry",scope="repository:x:pull"'
            challenge = 'Basic realm="registry"' if registry.login == "basic" else challenge
            self._give(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}', **{"WWW-Authenticate": challenge})
        else:
            self._manifest(parts.path)

    do_HEAD = do_GET  # noqa: N815 - the name that the base class calls

    def _lets_in(self, given: str) -> bool:
        wanted = {"none": given, "basic": BASIC}.get(self.registry.login, f"Bearer {GRANT}")
        return given == wanted

    def _grant(self, asked: dict[str, str], given: str) -> None:
        if self.registry.broken_grants:
            self._give(200, b"<html>a portal</html>")
        elif asked != {"service": "registry", "scope": "repository:x:pull"}:
            self._give(400, b"{}")
        elif self.registry.login == "token" and given != BASIC:
            self._give(401, b"{}")
        else:
            self._give(200, json.dumps({"access_token": GRANT}).encode())

    def _manifest(self, path: str) -> None:
        name, _, tag = path.removeprefix("/v2/").partition("/manifests/")
        manifest = self.registry.images.get(f"{name}:{tag}")
        if manifest is None or INDEX not in self.headers.get("Accept", ""):
            self._give(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
            return
        named = {"Docker-Content-Digest": digest_of(manifest)} if self.registry.names_digests else {}
        self._give(200, manifest, **named, **{"Content-Type": INDEX})

    def _give(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def oci_registry() -> Iterator[Registry]:
    """A running registry on 127.0.0.1."""
    registry = Registry()
    handler = type("Handler", (_Handler,), {"registry": registry})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        registry.address = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
