"""A Kubeflow Pipelines server: how to reach it and log in, what to ask it, and what its refusals mean."""

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

PATIENCE = (10.0, 60.0)
"""Seconds for a connection, and for an answer."""

HOME = "kubeflow"
"""Where Kubeflow itself is installed, by its own default."""

LOGIN = (
    "Log in by MEDLOOP_KFP_TOKEN (a bearer token), MEDLOOP_KFP_COOKIES (as the browser sends them), or "
    "KF_PIPELINES_SA_TOKEN_PATH (a service account's token file)."
)


@dataclass(frozen=True)
class About:
    """What a server says of itself."""

    version: str
    multi_user: bool


class Server:
    """One Kubeflow Pipelines server, asked through its published API."""

    def __init__(self, client: Any, ui: str, namespace: str) -> None:
        self._client, self.ui, self.namespace = client, ui.rstrip("/"), namespace
        self.host = str(client.configuration.host)

    def about(self, oldest: tuple[int, int] = (2, 0)) -> About:
        """Its version, and whether each user has a namespace; refuses a server older than that."""
        needed = ".".join(map(str, oldest))
        try:
            said = self._ask("GET", "healthz")
        except LookupError:
            raise UnavailableError(
                f"{self.host} has no Kubeflow Pipelines API of version 2, and this needs a server from {needed} on. "
                "Upgrade it, or check the address: some have a path, such as /pipeline."
            ) from None
        version = str(said.get("tag_name") or said.get("apiServerTagName") or "unknown")
        if said.get("apiServerReady") is False:
            raise ConnectionError(f"The page at {self.host} is up, but the API server behind it is not. See its pod.")
        found = re.match(r"v?(\d+)\.(\d+)", version)
        if found and (int(found[1]), int(found[2])) < oldest:
            raise UnavailableError(
                f"{self.host} is Kubeflow Pipelines {version}, and what is asked for needs {needed} or newer. Upgrade "
                "it, or ask for less in the cluster file: docs/cluster.md tells which key needs which server."
            )
        many = bool(said.get("multi_user", said.get("apiServerMultiUser", False)))
        if many and not self.namespace:
            raise UnavailableError(
                f"{self.host} gives each user a namespace, and none is named. Set MEDLOOP_KFP_NAMESPACE to yours."
            )
        return About(version, many)

    def experiment(self, name: str) -> str:
        """The id of the experiment of that name, made if it is not there."""

        def find_or_make() -> str:
            query = {"filter": _equals("display_name", name), "namespace": self.namespace}
            found = self._ask("GET", "experiments", query).get("experiments") or []
            if found:
                return str(found[0]["experiment_id"])
            wanted = {"display_name": name, **({"namespace": self.namespace} if self.namespace else {})}
            return str(self._ask("POST", "experiments", body=wanted)["experiment_id"])

        return _again_if_another_was_first(find_or_make)

    def upload(self, name: str, package: Path, digest: str) -> tuple[str, str]:
        """The ids of the pipeline and of the version that holds this package; uploaded only if it is not there."""
        return _again_if_another_was_first(lambda: self._upload(name, package, digest))

    def _upload(self, name: str, package: Path, digest: str) -> tuple[str, str]:
        about = f"medloop package {digest}"
        try:
            pipeline = self._ask("GET", f"pipelines/names/{quote(name)}", {"namespace": self.namespace})["pipeline_id"]
        except LookupError:
            query = {"name": name, "description": about, "namespace": self.namespace}
            pipeline = self._ask("POST", "pipelines/upload", query, package=package)["pipeline_id"]
        for version in self._pages(f"pipelines/{pipeline}/versions", "pipeline_versions", {}):
            if about in (version.get("description"), version.get("display_name")):
                return str(pipeline), str(version["pipeline_version_id"])
        query = {"name": f"{name}-{digest[:12]}", "description": about, "pipelineid": pipeline}
        version = self._ask("POST", "pipelines/upload_version", query, package=package)
        return str(pipeline), str(version["pipeline_version_id"])

    def start(self, run: Mapping[str, Any]) -> str:
        """Start a run; gives its id."""
        return str(self._ask("POST", "runs", body=dict(run))["run_id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """A run with the state of its tasks."""
        try:
            return self._ask("GET", f"runs/{quote(run_id)}")
        except LookupError:
            raise RefusedError(f"{self.host} knows no run {run_id}. `medloop runs` lists those it knows.") from None

    def terminate(self, run_id: str) -> None:
        """End a run that goes on."""
        self._ask("POST", f"runs/{quote(run_id)}:terminate")

    def runs(self, experiment: str = "") -> Iterator[dict[str, Any]]:
        """The runs it knows, the newest first."""
        query = {"sort_by": "created_at desc", "namespace": self.namespace, "experiment_id": experiment}
        return self._pages("runs", "runs", query)

    def schedule(self, wanted: Mapping[str, Any]) -> str:
        """Begin a recurring run; gives its id."""
        return str(self._ask("POST", "recurringruns", body=dict(wanted))["recurring_run_id"])

    def schedules(self) -> Iterator[dict[str, Any]]:
        """The recurring runs it knows."""
        return self._pages("recurringruns", "recurringRuns", {"namespace": self.namespace})

    def unschedule(self, schedule_id: str) -> None:
        """End a recurring run; runs that go on are left alone."""
        self._ask("DELETE", f"recurringruns/{quote(schedule_id)}")

    def log(self, run_id: str, pod: str) -> str:
        """What a pod of a run has said so far, or nothing where it cannot be had."""
        return self._log(run_id, pod)[0]

    def held_up(self, run_id: str, pod: str) -> str:
        """Why a pod does not start, in the words of its node, or nothing: only the way to its log tells it."""
        found = re.search(r"is waiting to start: ([^\"\\]+)", self._log(run_id, pod)[1])
        return found[1].strip() if found else ""

    def _log(self, run_id: str, pod: str) -> tuple[str, str]:
        """What a pod has said, and what the server says instead where it has no log to give."""
        text, instead = self._text(f"/apis/v1alpha1/runs/{quote(run_id)}/nodes/{quote(pod)}/log", {})
        if text.lstrip().startswith("<"):  # the page's server does not hand that path on, and has one of its own
            query = {"podname": pod, "runid": run_id, "podnamespace": self.namespace}
            text, instead = self._text("/k8s/pod/logs", query)
        return ("", text) if text.lstrip().startswith(("<", '{"error_message"')) else (text, instead)

    def _text(self, path: str, query: Mapping[str, str]) -> tuple[str, str]:
        try:
            answer = self._send("GET", path, query, raw=True)[0]
            text = bytes(answer.data).decode("utf-8", "replace")
            answer.release_conn()
        except (LookupError, ValueError, OSError, urllib3.exceptions.HTTPError) as error:
            return "", str(error)  # a log that cannot be had must not end the watching
        return text, ""

    def link(self, page: str) -> str:
        """The address of a page about something, for people."""
        return f"{self.ui}/#/{page}" + (f"?ns={self.namespace}" if self.namespace else "")

    def _pages(self, path: str, field: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            answer = self._ask("GET", path, {**query, "page_size": "100", "page_token": token})
            yield from answer.get(field) or []
            token = answer.get("next_page_token") or ""
            if not token:
                return

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: dict[str, Any] | None = None,
        package: Path | None = None,
    ) -> dict[str, Any]:
        """The answer to one request, or the error that says what its refusal means."""
        data, headers = self._send(method, f"/apis/v2beta1/{path}", query, body, package)
        if "json" not in headers.get("Content-Type", "") or not isinstance(data, dict):
            raise PermissionError(
                f"{self.host} answers with a web page where the API should be: most likely a log-in page. {LOGIN}"
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
            answer = self._client.call_api(
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
                _request_timeout=PATIENCE,
            )
        except ApiException as error:
            raise self._refusal(error, method, path) from None
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(self._silence(error, method)) from None
        return (answer, {}) if raw else (answer[0], answer[2] or {})

    def _refusal(self, error: Any, method: str, path: str) -> Exception:
        """What a status that is no success means."""
        said = _short(error.body)
        what = f"{method} {path.split('?', maxsplit=1)[0]}"
        if error.status == 401:
            return PermissionError(f"{self.host} wants a log-in ({what}: 401{said}). {LOGIN}")
        if error.status == 403:
            where = f" in the namespace {self.namespace}" if self.namespace else ""
            return PermissionError(
                f"{self.host} does not let this log-in do that{where} ({what}: 403{said}). Ask its administrators for "
                "the role kubeflow-edit, or set MEDLOOP_KFP_NAMESPACE to a namespace of yours."
            )
        if error.status == 404:
            return NotFoundError(
                f"{self.host} knows no such thing ({what}: 404{said}). It may have been removed; or check the address: "
                "some have a path, such as /pipeline."
            )
        if error.status == 409:
            return FileExistsError(f"{self.host} has it already ({what}: 409{said}).")
        if error.status in (400, 422):
            return RefusedError(f"{self.host} refuses it ({what}: {error.status}{said}).")
        return ConnectionError(
            f"{self.host} is in trouble ({what}: {error.status}{said}). Look at its pods, or try later."
        )

    def _silence(self, error: Exception, method: str) -> str:
        reason = getattr(error, "reason", None) or error
        if "CERTIFICATE_VERIFY_FAILED" in str(reason):
            if "mismatch" in str(reason) or "not valid for" in str(reason):
                return f"The certificate of {self.host} is for another name. Use the address that it was made for."
            return (
                f"The certificate of {self.host} is of an authority that this machine does not know. Set "
                "MEDLOOP_KFP_CA to the file of that authority's certificate."
            )
        inner = reason.args[-1] if isinstance(reason, urllib3.exceptions.ProtocolError) else reason
        words = str(inner).split(": ", 1)[-1]
        if method == "POST" and not isinstance(error, urllib3.exceptions.MaxRetryError):
            return (
                f"The answer of {self.host} was lost on its way ({words}). What was asked for may be done all the "
                f"same: look with `medloop runs`, or at {self.ui}, before you ask again."
            )
        return (
            f"No Kubeflow Pipelines server answers at {self.host} ({words}). Check the "
            "address in KF_PIPELINES_ENDPOINT; to reach one that has none: "
            f"kubectl port-forward -n {HOME} svc/ml-pipeline-ui 8080:80, then http://127.0.0.1:8080"
        )


def _again_if_another_was_first(make: Callable[[], T]) -> T:
    """What is made, or found made by another client at the same moment."""
    for _ in range(3):
        with contextlib.suppress(FileExistsError):
            return make()
    return make()


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def _short(body: Any) -> str:
    """The server's own short words in an error's body."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        told = parse_json(text)
        inner = [part.get("message", "") for part in told.get("details") or [] if isinstance(part, dict)]
        words = next(filter(None, inner), told.get("message") or told.get("error_message") or told.get("error") or "")
    except (ValueError, AttributeError):
        words = "" if text.lstrip().startswith("<") else text
    words = " ".join(str(words).split())
    return f", {words[:300]}" if words else ""
