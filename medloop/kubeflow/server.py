"""Client of the API of a Kubeflow Pipelines server, with explained errors."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import urllib3

from components.shared.errors import NotFoundError, RefusedError, UnavailableError
from components.shared.parsing.json_documents import parse_json

T = TypeVar("T")

TIMEOUTS = (10.0, 60.0)
"""Maximum seconds for a connection and for a response."""

HOME = "kubeflow"
"""Default namespace of Kubeflow itself."""

LOGIN = (
    "Log in with MEDLOOP_KFP_TOKEN (a bearer token), MEDLOOP_KFP_COOKIES (as the browser sends them), or "
    "KF_PIPELINES_SA_TOKEN_PATH (a service account's token file)."
)


@dataclass(frozen=True)
class ServerInfo:
    """Version and mode of a server."""

    version: str
    multi_user: bool


class Server:
    """A Kubeflow Pipelines server, accessed through its public API."""

    def __init__(self, client: Any, ui: str, namespace: str) -> None:
        self._client, self.ui, self.namespace = client, ui.rstrip("/"), namespace
        self.host = str(client.configuration.host)

    def check(self, oldest: tuple[int, int] = (2, 0)) -> ServerInfo:
        """Return version and mode; raise UnavailableError if the server is older than `oldest`."""
        required = ".".join(map(str, oldest))
        try:
            health = self._request("GET", "healthz")
        except LookupError:
            raise UnavailableError(
                f"{self.host} has no Kubeflow Pipelines API of version 2; version {required} or newer is required. "
                "Upgrade it, or check the address: some have a path, such as /pipeline."
            ) from None
        version = str(health.get("tag_name") or health.get("apiServerTagName") or "unknown")
        if health.get("apiServerReady") is False:
            raise ConnectionError(f"The web page at {self.host} is up, but its API server is not ready. See its pod.")
        match = re.match(r"v?(\d+)\.(\d+)", version)
        if match and (int(match[1]), int(match[2])) < oldest:
            raise UnavailableError(
                f"{self.host} is Kubeflow Pipelines {version}, but the cluster file requires {required} or newer. "
                "Upgrade the server, or remove keys from the cluster file; docs/cluster.md lists the version that each "
                "key requires."
            )
        multi_user = bool(health.get("multi_user", health.get("apiServerMultiUser", False)))
        if multi_user and not self.namespace:
            raise UnavailableError(
                f"{self.host} is multi-user, and no namespace is set. Set MEDLOOP_KFP_NAMESPACE to your namespace."
            )
        return ServerInfo(version, multi_user)

    def experiment(self, name: str) -> str:
        """Return the id of an experiment; create it if it does not exist."""

        def find_or_create() -> str:
            query = {"filter": _equals("display_name", name), "namespace": self.namespace}
            existing = self._request("GET", "experiments", query).get("experiments") or []
            if existing:
                return str(existing[0]["experiment_id"])
            body = {"display_name": name, **({"namespace": self.namespace} if self.namespace else {})}
            return str(self._request("POST", "experiments", body=body)["experiment_id"])

        return _retry_on_conflict(find_or_create)

    def upload(self, name: str, package: Path, digest: str) -> tuple[str, str]:
        """Return the ids of the pipeline and of the version with this package; upload it if necessary."""
        return _retry_on_conflict(lambda: self._upload(name, package, digest))

    def _upload(self, name: str, package: Path, digest: str) -> tuple[str, str]:
        description = f"medloop package {digest}"
        try:
            pipeline = self._request("GET", f"pipelines/names/{quote(name)}", {"namespace": self.namespace})[
                "pipeline_id"
            ]
        except LookupError:
            query = {"name": name, "description": description, "namespace": self.namespace}
            pipeline = self._request("POST", "pipelines/upload", query, package=package)["pipeline_id"]
        for version in self._pages(f"pipelines/{pipeline}/versions", "pipeline_versions", {}):
            if description in (version.get("description"), version.get("display_name")):
                return str(pipeline), str(version["pipeline_version_id"])
        query = {"name": f"{name}-{digest[:12]}", "description": description, "pipelineid": pipeline}
        version = self._request("POST", "pipelines/upload_version", query, package=package)
        return str(pipeline), str(version["pipeline_version_id"])

    def start(self, run: Mapping[str, Any]) -> str:
        """Start a run and return its id."""
        return str(self._request("POST", "runs", body=dict(run))["run_id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run with the states of its tasks."""
        try:
            return self._request("GET", f"runs/{quote(run_id)}")
        except LookupError:
            raise RefusedError(f"{self.host} has no run {run_id}. `medloop runs` lists its runs.") from None

    def terminate(self, run_id: str) -> None:
        """Stop an active run."""
        self._request("POST", f"runs/{quote(run_id)}:terminate")

    def runs(self, experiment: str = "") -> Iterator[dict[str, Any]]:
        """Yield the runs, newest first."""
        query = {"sort_by": "created_at desc", "namespace": self.namespace, "experiment_id": experiment}
        return self._pages("runs", "runs", query)

    def schedule(self, recurring: Mapping[str, Any]) -> str:
        """Create a recurring run and return its id."""
        return str(self._request("POST", "recurringruns", body=dict(recurring))["recurring_run_id"])

    def schedules(self) -> Iterator[dict[str, Any]]:
        """Yield the recurring runs."""
        return self._pages("recurringruns", "recurringRuns", {"namespace": self.namespace})

    def unschedule(self, schedule_id: str) -> None:
        """Remove a recurring run; active runs continue."""
        self._request("DELETE", f"recurringruns/{quote(schedule_id)}")

    def log(self, run_id: str, pod: str) -> str:
        """Return the log of a pod so far, or "" if it is not available."""
        return self._log(run_id, pod)[0]

    def waiting_reason(self, run_id: str, pod: str) -> str:
        """Return why a pod does not start, or ""; the API reports it only as an error of the log request."""
        match = re.search(r"is waiting to start: ([^\"\\]+)", self._log(run_id, pod)[1])
        return match[1].strip() if match else ""

    def _log(self, run_id: str, pod: str) -> tuple[str, str]:
        """Return the log of a pod, and the error if it is not available."""
        text, error = self._text(f"/apis/v1alpha1/runs/{quote(run_id)}/nodes/{quote(pod)}/log", {})
        if text.lstrip().startswith("<"):  # the UI server does not forward this path; it has its own
            query = {"podname": pod, "runid": run_id, "podnamespace": self.namespace}
            text, error = self._text("/k8s/pod/logs", query)
        return ("", text) if text.lstrip().startswith(("<", '{"error_message"')) else (text, error)

    def _text(self, path: str, query: Mapping[str, str]) -> tuple[str, str]:
        try:
            response = self._send("GET", path, query, raw=True)[0]
            text = bytes(response.data).decode("utf-8", "replace")
            response.release_conn()
        except (LookupError, ValueError, OSError, urllib3.exceptions.HTTPError) as error:
            return "", str(error)  # a missing log must not stop watching
        return text, ""

    def link(self, page: str) -> str:
        """Return the URL of a page of the web UI."""
        return f"{self.ui}/#/{page}" + (f"?ns={self.namespace}" if self.namespace else "")

    def _pages(self, path: str, field: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            page = self._request("GET", path, {**query, "page_size": "100", "page_token": token})
            yield from page.get(field) or []
            token = page.get("next_page_token") or ""
            if not token:
                return

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: dict[str, Any] | None = None,
        package: Path | None = None,
    ) -> dict[str, Any]:
        """Send a request and return the response; raise an explained error if it is refused."""
        data, headers = self._send(method, f"/apis/v2beta1/{path}", query, body, package)
        if "json" not in headers.get("Content-Type", "") or not isinstance(data, dict):
            raise PermissionError(
                f"{self.host} returned a web page instead of an API response, probably a login page. {LOGIN}"
            )
        return data

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: dict[str, Any] | None = None,
        package: Path | None = None,
        raw: bool = False,
    ) -> tuple[Any, Mapping[str, str]]:
        from kfp_server_api import ApiException

        kind = "multipart/form-data" if package else "application/json"
        try:
            response = self._client.call_api(
                path,
                method,
                query_params=[(name, value) for name, value in (query or {}).items() if value],
                header_params={"Accept": "application/json", "Content-Type": kind},
                body=body,
                post_params=[],
                files={"uploadfile": str(package)} if package else {},
                response_type="object",
                auth_settings=["Bearer"],
                _preload_content=not raw,
                _request_timeout=TIMEOUTS,
            )
        except ApiException as error:
            raise self._status_error(error, method, path) from None
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(self._connection_message(error, method)) from None
        return (response, {}) if raw else (response[0], response[2] or {})

    def _status_error(self, error: Any, method: str, path: str) -> Exception:
        """Return an explained error for a status code."""
        details = f"({method} {path.split('?', maxsplit=1)[0]}: {error.status}{_server_message(error.body)})"
        if error.status == 401:
            return PermissionError(f"{self.host} requires a login {details}. {LOGIN}")
        if error.status == 403:
            where = f" in the namespace {self.namespace}" if self.namespace else ""
            return PermissionError(
                f"{self.host} does not permit this user to do that{where} {details}. Ask its administrators for the "
                "role kubeflow-edit, or set MEDLOOP_KFP_NAMESPACE to one of your namespaces."
            )
        if error.status == 404:
            return NotFoundError(
                f"{self.host} does not have this object {details}. It may have been removed; or check the address: "
                "some have a path, such as /pipeline."
            )
        if error.status == 409:
            return FileExistsError(f"{self.host} already has this object {details}.")
        if error.status in (400, 422):
            return RefusedError(f"{self.host} refused the request {details}.")
        return ConnectionError(f"{self.host} reports an internal error {details}. Check its pods, or try again later.")

    def _connection_message(self, error: Exception, method: str) -> str:
        reason = getattr(error, "reason", None) or error
        if "CERTIFICATE_VERIFY_FAILED" in str(reason):
            if "mismatch" in str(reason) or "not valid for" in str(reason):
                return f"The certificate of {self.host} is for another name. Use the address in the certificate."
            return (
                f"The certificate of {self.host} was issued by an authority that this machine does not trust. Set "
                "MEDLOOP_KFP_CA to the file of that authority's certificate."
            )
        inner = reason.args[-1] if isinstance(reason, urllib3.exceptions.ProtocolError) else reason
        words = str(inner).split(": ", 1)[-1]
        if method == "POST" and not isinstance(error, urllib3.exceptions.MaxRetryError):
            return (
                f"The response of {self.host} was lost ({words}). The request may have succeeded: check with `medloop "
                f"runs` or at {self.ui} before you repeat it."
            )
        return (
            f"No Kubeflow Pipelines server responds at {self.host} ({words}). Check the address in "
            "KF_PIPELINES_ENDPOINT. To reach a server without a public address: "
            f"kubectl port-forward -n {HOME} svc/ml-pipeline-ui 8080:80, then http://127.0.0.1:8080"
        )


def _retry_on_conflict(create: Callable[[], T]) -> T:
    """Call `create` again if another client created the object at the same moment."""
    for _ in range(3):
        with contextlib.suppress(FileExistsError):
            return create()
    return create()


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def _server_message(body: Any) -> str:
    """Return the server's message in the body of an error, shortened, with a leading comma."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        error = parse_json(text)
        inner = [part.get("message", "") for part in error.get("details") or [] if isinstance(part, dict)]
        words = next(
            filter(None, inner), error.get("message") or error.get("error_message") or error.get("error") or ""
        )
    except (ValueError, AttributeError):
        words = "" if text.lstrip().startswith("<") else text
    words = " ".join(str(words).split())
    return f", {words[:300]}" if words else ""
