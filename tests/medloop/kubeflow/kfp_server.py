"""A real server for tests: the API of Kubeflow Pipelines 2, with its state in memory.

It follows the published API (v2beta1) and, in what that leaves open, the behaviour of the API server's source: what it
refuses and in which words, which fields it leaves out, how a run's tasks look. A test says what becomes of a run.
"""

from __future__ import annotations

import base64
import email.parser
import email.policy
import http.server
import ipaddress
import json
import re
import socket
import ssl
import struct
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.medloop.kubeflow.kfp_checks import (
    ABORTED,
    CODES,
    DENIED,
    EXISTS,
    EXPERIMENT_FIELDS,
    INT64,
    INTERNAL,
    INVALID,
    NOBODY,
    NOT_FOUND,
    OBJECT,
    RECURRING_FIELDS,
    RUN_FIELDS,
    UNIMPLEMENTED,
    Json,
    Refusal,
    check_cron,
    check_fields,
    check_parameters,
    read_package,
)
from tests.medloop.kubeflow.kfp_runs import FINAL, NEVER, Run, Script, smooth, stamp, tasks_of

TOKEN = "test-token"
COOKIE = "authservice_session=test-session"
USER = "someone@example.org"
LOGIN_PAGE = b"<!DOCTYPE html><html><head><title>dex</title></head><body>Log in to Your Account</body></html>"
UI_PAGE = b"<!DOCTYPE html><html><head><title>Kubeflow Pipelines</title></head><body></body></html>"

# Who asks for a login, and what they answer without one: the API server itself (token: 401 as JSON, healthz is open),
# a service mesh before it (mesh: 403 and 401 as text), or a login page (cookie: 302 to a page, 200).
Login = Literal["none", "token", "mesh", "cookie"]


class Request(NamedTuple):
    """A request as it arrived; `path` without the server's prefix."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Answer(NamedTuple):
    status: int
    body: bytes
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


# What lists can be sorted by and filtered on.
SORTABLE = {
    "experiments": {"experiment_id", "display_name", "created_at", "last_run_created_at", "description", "namespace"}
    | {"id", "name", "storage_state"},
    "pipelines": {"pipeline_id", "id", "name", "display_name", "created_at", "description", "namespace"},
    "versions": {"pipeline_version_id", "id", "name", "display_name", "created_at", "description"},
    "runs": {"run_id", "id", "name", "display_name", "created_at", "finished_at", "scheduled_at", "description"}
    | {"storage_state", "namespace", "experiment_id", "state", "recurring_run_id"},
    "recurringruns": {"recurring_run_id", "id", "name", "display_name", "created_at", "updated_at", "description"},
}
KEYS = {
    "experiments": "experiment_id",
    "pipelines": "pipeline_id",
    "versions": "pipeline_version_id",
    "runs": "run_id",
    "recurringruns": "recurring_run_id",
}
LISTED = {"versions": "pipeline_versions", "recurringruns": "recurringRuns"}


@dataclass
class KfpServer:
    """A running server. What is assigned to its fields counts from the next request on."""

    host: str = ""
    prefix: str = ""
    tag: str = "2.17.0"
    multi_user: bool = False
    namespaces: tuple[str, ...] = ("team",)  # where the user may work, with several users
    login: Login = "none"
    token: str = TOKEN
    version_1_only: bool = False
    unavailable: int = 0  # how many requests to come get 503
    resets: int = 0  # how many connections to come are reset before anything is done
    losses: int = 0  # how many answers to come are lost: the work is done, the connection reset
    script: Script | None = None  # what becomes of runs to come; by default all goes well
    pace: float = 0.0  # how long a task takes by default
    stops_as: str = "FAILED"  # how a terminated run ends; the API would allow CANCELED
    pods_kept: bool = True
    archive: bool = True  # whether logs outlive their pods
    requests: list[Request] = field(default_factory=list)
    experiments: dict[str, Json] = field(default_factory=dict)
    pipelines: dict[str, Json] = field(default_factory=dict)
    versions: dict[str, Json] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    recurringruns: dict[str, Json] = field(default_factory=dict)
    _count: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        if not self.multi_user:
            self._new_experiment(
                "Default", "All runs created without specifying an experiment will be grouped here.", ""
            )

    # What tests say and ask

    def play(self, run_id: str, script: Script) -> None:
        """From now on this becomes of the run. With no step at all it waits for ever."""
        with self._lock:
            self.runs[run_id].play(script)

    def fire(self, recurring_run_id: str) -> str | None:
        """A schedule's time has come: the id of the run that it starts, or None where it may not."""
        with self._lock:
            schedule = self.recurringruns[recurring_run_id]
            mine = [run for run in self.runs.values() if run.about.get("recurring_run_id") == recurring_run_id]
            active = [run for run in mine if run.state(time.time()) not in FINAL]
            if schedule["mode"] != "ENABLE" or len(active) >= int(schedule["max_concurrency"]):
                return None
            body: Json = {
                name: schedule[name]
                for name in ("experiment_id", "pipeline_spec", "pipeline_version_reference", "runtime_config")
                if name in schedule
            }
            body |= {
                "display_name": f"{schedule['display_name']}-{len(mine) + 1}",
                "recurring_run_id": recurring_run_id,
            }
            return str(self._create_run(body).about["run_id"])

    def pods(self, run_id: str) -> dict[str, str]:
        """The state of each pod of a run, by its name."""
        return {name: node.state for name, node in self.runs[run_id].pods(time.time()).items()}

    def takes(self, what: Literal["resets", "unavailable", "losses"]) -> bool:
        """Whether one more of these mishaps is due; it is then used up."""
        with self._lock:
            left: int = getattr(self, what)
            setattr(self, what, max(0, left - 1))
            return left > 0

    # Requests

    def handle(self, request: Request) -> Answer:
        """The answer to a request that came through the door."""
        with self._lock:
            try:
                if self.prefix and (page := self._ui(request)):
                    return page
                return self._api(request)
            except Refusal as refusal:
                return self._refuse(refusal)

    def door(self, request: Request) -> Answer | None:
        """What stands before the server answers instead of it, where the caller has not logged in."""
        given = request.headers.get("authorization", "")
        if request.path.startswith("/dex/auth"):
            return Answer(200, LOGIN_PAGE, "text/html; charset=utf-8")
        if self.login == "mesh" and not given:
            return Answer(403, b"RBAC: access denied", "text/plain")
        if self.login == "mesh" and given != f"Bearer {self.token}":
            return Answer(401, b"Jwt verification fails", "text/plain")
        if self.login == "cookie" and COOKIE not in request.headers.get("cookie", ""):
            place = "/dex/auth?" + urllib.parse.urlencode({"client_id": "kubeflow-oidc-authservice", "state": "1"})
            return Answer(302, b"", "text/html", (("Location", place),))
        return None

    def _refuse(self, refusal: Refusal) -> Answer:
        status, word = CODES[refusal.code]
        words = f"{word}: {refusal.sentence}" if word and refusal.context else refusal.sentence
        message = f"{refusal.context}: {words}" if refusal.context else words
        body: Json = {"code": refusal.code, "message": message}
        if tuple(int(part) for part in self.tag.split(".")[:2]) < (2, 14):
            body = {"error": message, **body}
        if refusal.context:
            shown = "Internal Server Error" if refusal.code == INTERNAL else refusal.sentence
            body["details"] = [
                {"@type": "type.googleapis.com/google.rpc.Status", "code": refusal.code, "message": shown}
            ]
        return Answer(status, json.dumps(body).encode())

    def _ui(self, request: Request) -> Answer | None:
        """What the server of the web pages answers by itself; it hands the rest on."""
        if re.fullmatch(r"/apis/v[12]beta1/healthz", request.path):
            about = {"apiServerReady": True, "apiServerTagName": self.tag, "apiServerCommitHash": "0" * 40}
            about |= {"apiServerMultiUser": self.multi_user, "multi_user": self.multi_user, "buildDate": ""}
            about |= {"frontendTagName": self.tag, "frontendCommitHash": "0" * 40, "pipelineStore": "database"}
            return Answer(200, json.dumps(about).encode())
        if request.path == "/k8s/pod/logs":
            return self._ui_log(request.query)
        if re.match(r"/apis/v[12]beta1/", request.path):
            return None
        return Answer(200, UI_PAGE, "text/html; charset=utf-8")

    def _ui_log(self, asked: Mapping[str, str]) -> Answer:
        if "podname" not in asked:
            return Answer(400, b"podname argument is required", "text/plain")
        if self.multi_user and "podnamespace" not in asked:
            return Answer(422, b"podnamespace argument is required", "text/plain")
        text, problem = self._log(asked.get("runid", ""), asked["podname"])
        if problem:
            return Answer(500, f"Could not get main container logs: {problem}".encode(), "text/plain")
        return Answer(200, text.encode(), "text/plain")

    def _api(self, request: Request) -> Answer:
        if not request.path.startswith("/apis/"):
            return Answer(404, b"404 page not found\n", "text/plain; charset=utf-8")
        version = "1" if self.version_1_only else "12"
        if match := re.fullmatch(f"/apis/(v[{version}]beta1)/healthz", request.path):
            return Answer(200, json.dumps(self._health(match[1])).encode())
        if match := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", request.path):
            text, problem = self._log(match[1], match[2])
            # The status has gone out before the log is looked for.
            words = json.dumps({"error_message": problem, "error_details": problem}) if problem else ""
            return Answer(200, (text + words).encode(), "text/plain; charset=utf-8")
        path = request.path.removeprefix("/apis/v2beta1")
        if path == request.path or self.version_1_only:
            raise Refusal(NOT_FOUND, "Not Found")
        if path in {"/pipelines/upload", "/pipelines/upload_version"}:
            return self._upload(request, version=path.endswith("version"))
        self._identify(request)
        known = False
        for method, pattern, work in ROUTES:
            if match := re.fullmatch(pattern, path):
                known = True
                if method == request.method:
                    names = [urllib.parse.unquote(part) for part in match.groups()]
                    return Answer(200, json.dumps(work(self, request, *names)).encode())
        raise Refusal(UNIMPLEMENTED, "Method Not Allowed") if known else Refusal(NOT_FOUND, "Not Found")

    def _health(self, version: str) -> Json:
        health = {"commit_sha": "0" * 40, "tag_name": self.tag, "multi_user": self.multi_user}
        return health if version == "v1beta1" else {**health, "pipeline_store": "database"}

    def _identify(self, request: Request) -> None:
        if self.login == "token" and request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal(
                NOBODY,
                "Failed to check authorization. User identity is empty in the request header",
                "Failed to authorize the request: Failed to access the resource",
            )

    def _allow(self, namespace: str, verb: str, kind: str) -> None:
        if not self.multi_user:
            return
        if not namespace:
            raise Refusal(INVALID, f"A {kind.removesuffix('s')} cannot have an empty namespace in multi-user mode")
        if namespace not in self.namespaces:
            asked = f"Namespace:{namespace},Verb:{verb},Group:pipelines.kubeflow.org,Version:v1beta1,Resource:{kind}"
            raise Refusal(
                DENIED, f"User '{USER}' is not authorized with reason:  (request: &ResourceAttributes{{{asked},}})"
            )

    def _new_id(self) -> str:
        # Ids in the order of creation: the API's times are whole seconds, and what falls into one is ordered by id.
        self._count += 1
        return f"{self._count:08x}-{uuid.uuid4().hex[:4]}-4{uuid.uuid4().hex[:3]}-8000-{uuid.uuid4().hex[:12]}"

    def _one(self, kind: str, key: str, context: str) -> Any:
        words = {"experiments": "Experiment", "pipelines": "Pipeline", "versions": "PipelineVersion", "runs": "Run"}
        try:
            return getattr(self, kind)[key]
        except KeyError:
            raise Refusal(NOT_FOUND, f"{words.get(kind, 'Job')} {key} not found", context) from None

    def _list(self, kind: str, request: Request, rows: list[Json]) -> Json:
        """A page of a list, filtered and sorted as asked."""
        query, context = request.query, f"Failed to list {kind}: Failed to create list options"
        try:
            size = int(query.get("page_size") or 0)
        except ValueError:
            words = f'strconv.ParseInt: parsing "{query["page_size"]}": invalid syntax'
            raise Refusal(INVALID, f"type mismatch, parameter: page_size, error: {words}") from None
        if size < 0:
            raise Refusal(INVALID, f"The page size should be greater than 0. Got {size}", context)
        size = min(size or 20, 200)
        asked = [query.get("sort_by", ""), query.get("filter", "")]
        start: list[str] | None = None
        if token := query.get("page_token"):
            try:
                *was, start = json.loads(base64.b64decode(token, validate=True))
            except ValueError:
                raise Refusal(INVALID, "Invalid page token", context) from None
            if any(asked) and asked != was:
                words = "page token does not match the supplied sort by and/or filtering criteria."
                raise Refusal(INVALID, f"{words} Either specify the same criteria or leave the latter empty", context)
            asked = was
        by, descending = _sorting(kind, asked[0], context)
        rows = [row for row in rows if all(test(row) for test in _filters(kind, asked[1], context))]

        def rank(row: Json) -> list[str]:
            return [str(row.get(by, "")), row[KEYS[kind]]]

        rows.sort(key=rank, reverse=descending)
        total = len(rows)
        if start is not None:
            rows = [row for row in rows if (rank(row) <= start if descending else rank(row) >= start)]
        answer: Json = {LISTED.get(kind, kind): rows[:size], "total_size": total}
        if len(rows) > size:
            answer["next_page_token"] = base64.b64encode(json.dumps([*asked, rank(rows[size])]).encode()).decode()
        return {name: value for name, value in answer.items() if value}

    # Experiments

    def _new_experiment(self, name: str, description: str, namespace: str) -> Json:
        if any(
            each["display_name"] == name and each.get("namespace", "") == namespace
            for each in self.experiments.values()
        ):
            raise Refusal(
                EXISTS,
                f"Failed to create a new experiment. The name {name} already exists. Please specify a new name",
                "Failed to create an experiment",
            )
        key = self._new_id()
        made = {"experiment_id": key, "display_name": name, "description": description, "namespace": namespace}
        made |= {"created_at": stamp(time.time()), "last_run_created_at": NEVER, "storage_state": "AVAILABLE"}
        self.experiments[key] = {name: value for name, value in made.items() if value}
        return self.experiments[key]

    def _namespace(self, namespace: str) -> str:
        return namespace if self.multi_user else ""

    def create_experiment(self, request: Request) -> Json:
        body = check_fields(_json(request), EXPERIMENT_FIELDS)
        name = body.get("display_name", "")
        context = "Failed to create an experiment"
        if not name:
            raise Refusal(INTERNAL, "Experiment must have a non-empty name", context)
        if len(name) > 128:
            raise Refusal(INVALID, "Experiment.Name length cannot exceed 128", context)
        namespace = self._namespace(body.get("namespace", ""))
        _within(context, self._allow, namespace, "create", "experiments")
        return self._new_experiment(name, body.get("description", ""), namespace)

    def list_experiments(self, request: Request) -> Json:
        namespace = self._namespace(request.query.get("namespace", ""))
        _within(
            "Failed to list experiments: Failed to authorize with API", self._allow, namespace, "list", "experiments"
        )
        return self._list("experiments", request, self._within_namespace(self.experiments, namespace))

    def _within_namespace(self, rows: Mapping[str, Json], namespace: str) -> list[Json]:
        return [row for row in rows.values() if not self.multi_user or row.get("namespace", "") == namespace]

    def get_experiment(self, _request: Request, key: str) -> Json:
        found: Json = self._one("experiments", key, "Failed to fetch an experiment")
        _within("Failed to fetch an experiment", self._allow, found.get("namespace", ""), "get", "experiments")
        return found

    def delete_experiment(self, request: Request, key: str) -> Json:
        del self.experiments[self.get_experiment(request, key)["experiment_id"]]
        return {}

    def store_experiment(self, request: Request, key: str, verb: str) -> Json:
        self.get_experiment(request, key)["storage_state"] = "ARCHIVED" if verb == "archive" else "AVAILABLE"
        return {}

    # Pipelines

    def _upload(self, request: Request, *, version: bool) -> Answer:
        try:
            made = self._upload_version(request) if version else self._upload_pipeline(request)
        except Refusal as refusal:
            # Uploads have errors of a shape of their own, and do not tell who may not from what is not.
            status = 409 if refusal.code == EXISTS else 400
            thing = "a pipeline version" if version else "a pipeline" + " and a pipeline version" * (status == 409)
            words = refusal.sentence if refusal.code == INVALID else f"Failed to create {thing}"
            return Answer(status, json.dumps({"error_message": words, "error_details": words}).encode())
        return Answer(200, json.dumps(made).encode())

    def _upload_pipeline(self, request: Request) -> Json:
        name, shown, text = _uploaded(request, "Failed to read pipeline from file", 128)
        query = request.query
        namespace = self._namespace(query.get("namespace", ""))
        self._identify(request)
        if namespace:
            self._allow(namespace, "create", "pipelines")
        spec, platform = read_package(text)
        if any(each["name"] == name for each in self._within_namespace(self.pipelines, namespace)):
            raise Refusal(EXISTS, name)
        key = self._new_pipeline(name, shown, query.get("description", ""), namespace)
        self._new_version(key, name, shown, query.get("description", ""), spec, platform)
        return self.pipelines[key]

    def _upload_version(self, request: Request) -> Json:
        name, shown, text = _uploaded(request, "Failed to create a pipeline version", 127)
        key = request.query.get("pipelineid", "")
        self._identify(request)
        if namespace := self._one("pipelines", key, "").get("namespace", ""):
            self._allow(namespace, "create", "pipelines")
        spec, platform = read_package(text)
        if any(each["name"] == name for each in self._versions_of(key)):
            raise Refusal(EXISTS, name)
        return self._new_version(key, name, shown, request.query.get("description", ""), spec, platform)

    def _new_pipeline(self, name: str, shown: str, description: str, namespace: str) -> str:
        key = self._new_id()
        made = {"pipeline_id": key, "name": name, "display_name": shown, "description": description}
        made |= {"created_at": stamp(time.time()), "namespace": namespace}
        self.pipelines[key] = {name: value for name, value in made.items() if value}
        return key

    def _new_version(
        self, pipeline: str, name: str, shown: str, description: str, spec: Json, platform: Json | None
    ) -> Json:
        key = self._new_id()
        whole = spec if platform is None else {"pipeline_spec": spec, "platform_spec": platform}
        made: Json = {"pipeline_id": pipeline, "pipeline_version_id": key, "name": name, "display_name": shown}
        made |= {"description": description, "created_at": stamp(time.time()), "pipeline_spec": whole}
        self.versions[key] = {name: value for name, value in made.items() if value}
        return self.versions[key]

    def _versions_of(self, pipeline: str) -> list[Json]:
        return [version for version in self.versions.values() if version["pipeline_id"] == pipeline]

    def create_pipeline(self, request: Request) -> Json:
        body = check_fields(_json(request), dict.fromkeys(("name", "display_name", "description", "namespace"), (str,)))
        name = body.get("name") or body.get("display_name", "")
        namespace = self._namespace(body.get("namespace", ""))
        if namespace:
            _within("Failed to create a pipeline", self._allow, namespace, "create", "pipelines")
        if not name:
            raise Refusal(INVALID, "pipeline's name cannot be empty", "Failed to create a pipeline")
        if any(each["name"] == name for each in self._within_namespace(self.pipelines, namespace)):
            words = f"Failed to create a new pipeline. The name {name} already exist. Please specify a new name"
            raise Refusal(EXISTS, words, "Failed to create a pipeline")
        shown = body.get("display_name") or name
        return self.pipelines[self._new_pipeline(name, shown, body.get("description", ""), namespace)]

    def list_pipelines(self, request: Request) -> Json:
        namespace = self._namespace(request.query.get("namespace", ""))
        if namespace:
            _within("Failed to list pipelines", self._allow, namespace, "list", "pipelines")
        return self._list("pipelines", request, self._within_namespace(self.pipelines, namespace))

    def get_pipeline(self, _request: Request, key: str) -> Json:
        found: Json = self._one("pipelines", key, f"Failed to get a pipeline {key}. Check error stack")
        if found.get("namespace"):
            _within("Failed to get a pipeline", self._allow, found["namespace"], "get", "pipelines")
        return found

    def get_pipeline_by_name(self, request: Request, name: str) -> Json:
        namespace = self._namespace(request.query.get("namespace", ""))
        if namespace:
            _within("Failed to fetch a pipeline due to authorization error", self._allow, namespace, "get", "pipelines")
        for pipeline in self._within_namespace(self.pipelines, namespace):
            if pipeline["name"] == name:
                return pipeline
        words = f"Namespace/Pipeline {namespace}/{name} not found"
        raise Refusal(NOT_FOUND, words, "Failed to get a pipeline by name and namespace. Check error stack")

    def delete_pipeline(self, request: Request, key: str) -> Json:
        self.get_pipeline(request, key)
        versions = self._versions_of(key)
        if versions and request.query.get("cascade") != "true":
            words = f"Failed to delete pipeline with id {key} as it has existing pipeline versions (e.g. "
            words += f"{versions[-1]['pipeline_version_id']}). Set cascade=true to delete all versions"
            raise Refusal(INVALID, words, f"Failed to delete pipeline {key}. Check error stack")
        for version in versions:
            del self.versions[version["pipeline_version_id"]]
        del self.pipelines[key]
        return {}

    def list_versions(self, request: Request, pipeline: str) -> Json:
        self.get_pipeline(request, pipeline)
        return self._list("versions", request, self._versions_of(pipeline))

    def get_version(self, request: Request, pipeline: str, key: str) -> Json:
        self.get_pipeline(request, pipeline)
        found: Json = self._one("versions", key, "Failed to get a pipeline version. Check error stack")
        return found

    def delete_version(self, request: Request, pipeline: str, key: str) -> Json:
        self.get_version(request, pipeline, key)
        del self.versions[key]
        return {}

    def _source(self, body: Json, context: str) -> tuple[Json, Json]:
        """The fields that tell a run's pipeline, and its spec."""
        reference = body.get("pipeline_version_reference")
        if reference:
            key = reference.get("pipeline_version_id", "")
            ours = [version["pipeline_version_id"] for version in self._versions_of(reference.get("pipeline_id", ""))]
            key = key or (ours[-1] if ours else "")
            if key not in self.versions:
                # The server takes this for a failure of its own.
                raise Refusal(INTERNAL, f"PipelineVersion {key} not found", f"{context} due to error fetching manifest")
            version = self.versions[key]
            spec = version["pipeline_spec"]
            told = {"pipeline_id": version["pipeline_id"], "pipeline_version_id": key}
            return {"pipeline_version_reference": told}, spec.get("pipeline_spec", spec)
        given = body.get("pipeline_spec")
        if not given:
            words = "Failed to fetch a template with an empty pipeline spec manifest"
            raise Refusal(INTERNAL, words, f"{context} due to error fetching manifest")
        documents = [given[name] for name in ("pipeline_spec", "platform_spec") if name in given] or [given]
        try:
            spec, _ = read_package(yaml.safe_dump_all(documents))
        except Refusal as refusal:
            raise Refusal(INTERNAL, refusal.sentence, f"{context} due to error fetching manifest") from None
        return {"pipeline_spec": given}, spec

    # Runs

    def _place(self, body: Json, context: str) -> tuple[str, str]:
        """The experiment of a new run, and its namespace."""
        key = body.get("experiment_id", "")
        if not key:
            if self.multi_user:
                raise Refusal(INVALID, "Experiment id can not be empty in multi-user mode", context)
            key = next(each["experiment_id"] for each in self.experiments.values() if each["display_name"] == "Default")
        found = self._one("experiments", key, f"{context} due to invalid experimentId and namespace combination")
        _within(f"{context} due to authorization error", self._allow, found.get("namespace", ""), "create", "runs")
        return key, found.get("namespace", "")

    def create_run(self, request: Request) -> Json:
        body = check_fields(_json(request), RUN_FIELDS)
        return self._create_run(body).answer(0.0)

    def _create_run(self, body: Json) -> Run:
        context = "Failed to create a new run"
        if not body.get("display_name"):
            raise Refusal(INTERNAL, "Run name cannot be empty", "Failed to create a run due to conversion error")
        experiment, _ = self._place(body, f"{context}: Failed to create a run")
        told, spec = self._source(body, f"{context}: Failed to create a run")
        settings = check_fields(body.get("runtime_config", {}), {"parameters": (dict,), "pipeline_root": (str,)})
        _within(
            f"{context}: Failed to generate the ExecutionSpec: invalid pipeline job inputs",
            check_parameters,
            spec,
            settings.get("parameters", {}),
        )
        now, key = time.time(), self._new_id()
        about = {name: body.get(name, "") for name in ("display_name", "description", "recurring_run_id")}
        about |= {"experiment_id": experiment, "run_id": key, "storage_state": "AVAILABLE", **told}
        about |= {"runtime_config": {name: value for name, value in settings.items() if value}}
        about |= {"service_account": body.get("service_account", "pipeline-runner")}
        about |= {"created_at": stamp(now), "scheduled_at": stamp(now)}
        tasks = tasks_of(spec)
        run = Run(about, spec, tasks, [], now, now, stops_as=self.stops_as)
        run.play(smooth(tasks, self.pace) if self.script is None else self.script)
        self.runs[key] = run
        self.experiments[experiment]["last_run_created_at"] = stamp(now)
        return run

    def _run(self, key: str, verb: str, context: str) -> Run:
        run: Run = self._one("runs", key, context)
        namespace = self.experiments.get(run.about["experiment_id"], {}).get("namespace", "")
        _within(f"{context}: Failed to authorize the request", self._allow, namespace, verb, "runs")
        return run

    def get_run(self, _request: Request, key: str) -> Json:
        return self._run(key, "get", "Failed to get a run").answer(time.time())

    def list_runs(self, request: Request) -> Json:
        experiment = request.query.get("experiment_id", "")
        namespace = self._namespace(request.query.get("namespace", ""))
        if experiment:
            found = self._one("experiments", experiment, "Failed to list runs due to error fetching namespace")
            namespace = found.get("namespace", "")
        _within("Failed to list runs due to authorization error", self._allow, namespace, "list", "runs")
        now = time.time()
        homes = {key for key, each in self.experiments.items() if not self.multi_user or each["namespace"] == namespace}
        rows = [
            run.answer(now)
            for run in self.runs.values()
            if (run.about["experiment_id"] == experiment if experiment else run.about["experiment_id"] in homes)
        ]
        return self._list("runs", request, rows)

    def delete_run(self, _request: Request, key: str) -> Json:
        self._run(key, "delete", "Failed to delete a run")
        del self.runs[key]
        return {}

    def change_run(self, _request: Request, key: str, verb: str) -> Json:
        context = f"Failed to {verb} a run"
        run, now = self._run(key, verb, context), time.time()
        state = run.state(now)
        if verb == "terminate":
            if state not in {"PENDING", "RUNNING", "PAUSED"}:
                raise Refusal(INVALID, f"Failed to terminate a run {key}. Row not found", context)
            run.stopped = now
        elif verb == "retry":
            if state not in {"FAILED", "CANCELED"}:
                raise Refusal(
                    ABORTED, "Workflow must be Failed/Error to retry", f"{context}: Failed to retry run {key}"
                )
            run.history = run.answer(now)["state_history"]
            run.stopped, run.created = 0.0, now
            run.play(smooth(run.tasks, self.pace) if self.script is None else self.script)
        else:
            run.about["storage_state"] = "ARCHIVED" if verb == "archive" else "AVAILABLE"
        return {}

    def _log(self, run_id: str, pod: str) -> tuple[str, str]:
        """The log of a pod's main container, or what the server says instead."""
        context = f"BadRequestError: Failed to read logs for run {run_id}"
        if run_id not in self.runs:
            return "", f"{context} due to run fetching error: ResourceNotFoundError: Run {run_id} not found"
        node = self.runs[run_id].pods(time.time()).get(pod)
        stream = f"InternalServerError: Failed to read logs from pod {pod} due to error opening log stream"
        if node is None or (not self.pods_kept and not self.archive):
            problem = f'{stream}: pods "{pod}" not found'
        elif node.state == "PENDING":
            waits = "is waiting to start: trying and failing to pull image"
            problem = f'{stream}: container "main" in pod "{pod}" {waits}'
        else:
            return node.log, ""
        if self.archive:
            fetching = "due to error fetching the log file: The specified key does not exist."
            problem = f"InternalServerError: Failed to read logs from archive {pod} {fetching}"
        return "", f"{context}: {problem}"

    # Recurring runs

    def create_recurring_run(self, request: Request) -> Json:
        body = check_fields(_json(request), RECURRING_FIELDS)
        context = "Failed to create a recurring run"
        if not body.get("display_name"):
            raise Refusal(INTERNAL, "Recurring run's name cannot be empty", f"{context} due to conversion error")
        trigger = check_fields(body.get("trigger", {}), {"cron_schedule": OBJECT, "periodic_schedule": OBJECT})
        if len(trigger) > 1:
            raise Refusal(INVALID, 'proto: (line 1:2): error parsing "periodic_schedule", oneof is already set')
        try:
            most = int(body.get("max_concurrency", 0))
        except ValueError:
            words = f'invalid value for int64 field max_concurrency: "{body["max_concurrency"]}"'
            raise Refusal(INVALID, f"proto: (line 1:2): {words}") from None
        if not 1 <= most <= 10:
            words = f"Max concurrency of a recurring run must be at least 1 and at most 10. Received {most}"
            raise Refusal(INVALID, words, f"{context} due to conversion error")
        _within(f"{context} due to conversion error", _check_trigger, trigger)
        experiment, namespace = self._place(body, context)
        told, spec = self._source(body, context)
        settings = check_fields(body.get("runtime_config", {}), {"parameters": (dict,), "pipeline_root": (str,)})
        _within(f"{context} during scheduled workflow creation", check_parameters, spec, settings.get("parameters", {}))
        key, now = self._new_id(), stamp(time.time())
        made: Json = {name: body.get(name, "") for name in ("display_name", "description")}
        made |= {"recurring_run_id": key, "experiment_id": experiment, "namespace": namespace or "kubeflow", **told}
        made |= {"trigger": trigger, "max_concurrency": str(most), "no_catchup": body.get("no_catchup", False)}
        made |= {"runtime_config": {name: value for name, value in settings.items() if value}}
        made |= {
            "service_account": body.get("service_account", "pipeline-runner"),
            "created_at": now,
            "updated_at": now,
        }
        self.recurringruns[key] = {name: value for name, value in made.items() if value}
        self._switch(key, on=body.get("mode") == "ENABLE")
        return self.recurringruns[key]

    def _switch(self, key: str, *, on: bool) -> None:
        self.recurringruns[key] |= {"mode": "ENABLE" if on else "DISABLE", "status": "ENABLED" if on else "DISABLED"}

    def _recurring(self, key: str, verb: str, context: str) -> Json:
        found: Json = self._one("recurringruns", key, context)
        _within(context, self._allow, found["namespace"], verb, "jobs")
        return found

    def get_recurring_run(self, _request: Request, key: str) -> Json:
        return self._recurring(key, "get", "Failed to get a recurring run")

    def list_recurring_runs(self, request: Request) -> Json:
        experiment = request.query.get("experiment_id", "")
        namespace = self._namespace(request.query.get("namespace", ""))
        if experiment:
            found = self._one("experiments", experiment, "Failed to list recurring runs")
            namespace = found.get("namespace", "")
        _within("Failed to list recurring runs", self._allow, namespace, "list", "jobs")
        rows = self._within_namespace(self.recurringruns, namespace)
        return self._list("recurringruns", request, [row for row in rows if experiment in {"", row["experiment_id"]}])

    def delete_recurring_run(self, _request: Request, key: str) -> Json:
        self._recurring(key, "delete", "Failed to delete a recurring run")
        del self.recurringruns[key]
        return {}

    def switch_recurring_run(self, _request: Request, key: str, verb: str) -> Json:
        self._recurring(key, verb, f"Failed to {verb} a recurring run")
        self._switch(key, on=verb == "enable")
        return {}


ROUTES: tuple[tuple[str, str, Callable[..., Json]], ...] = (
    ("POST", "/experiments", KfpServer.create_experiment),
    ("GET", "/experiments", KfpServer.list_experiments),
    ("GET", "/experiments/([^/:]+)", KfpServer.get_experiment),
    ("DELETE", "/experiments/([^/:]+)", KfpServer.delete_experiment),
    ("POST", "/experiments/([^/:]+):(archive|unarchive)", KfpServer.store_experiment),
    ("POST", "/pipelines", KfpServer.create_pipeline),
    ("GET", "/pipelines", KfpServer.list_pipelines),
    ("GET", "/pipelines/names/([^/]+)", KfpServer.get_pipeline_by_name),
    ("GET", "/pipelines/([^/:]+)", KfpServer.get_pipeline),
    ("DELETE", "/pipelines/([^/:]+)", KfpServer.delete_pipeline),
    ("GET", "/pipelines/([^/:]+)/versions", KfpServer.list_versions),
    ("GET", "/pipelines/([^/:]+)/versions/([^/:]+)", KfpServer.get_version),
    ("DELETE", "/pipelines/([^/:]+)/versions/([^/:]+)", KfpServer.delete_version),
    ("POST", "/runs", KfpServer.create_run),
    ("GET", "/runs", KfpServer.list_runs),
    ("GET", "/runs/([^/:]+)", KfpServer.get_run),
    ("DELETE", "/runs/([^/:]+)", KfpServer.delete_run),
    ("POST", "/runs/([^/:]+):(terminate|retry|archive|unarchive)", KfpServer.change_run),
    ("POST", "/recurringruns", KfpServer.create_recurring_run),
    ("GET", "/recurringruns", KfpServer.list_recurring_runs),
    ("GET", "/recurringruns/([^/:]+)", KfpServer.get_recurring_run),
    ("DELETE", "/recurringruns/([^/:]+)", KfpServer.delete_recurring_run),
    ("POST", "/recurringruns/([^/:]+):(enable|disable)", KfpServer.switch_recurring_run),
)


def _within(context: str, check: Callable[..., None], *what: Any) -> None:
    """Make a check; a refusal tells where it came up."""
    try:
        check(*what)
    except Refusal as refusal:
        raise refusal.within(context) from None


def _json(request: Request) -> Any:
    try:
        return json.loads(request.body or b"{}")
    except ValueError as problem:
        raise Refusal(INVALID, f"proto: syntax error (line 1:1): {problem}") from None


def _uploaded(request: Request, words: str, longest: int) -> tuple[str, str, str]:
    """Name, name to show and text of an uploaded package."""
    head = f"Content-Type: {request.headers.get('content-type', '')}\r\n\r\n".encode()
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    parts = {part.get_param("name", header="content-disposition"): part for part in form.walk()}
    part = parts.get("uploadfile")
    content = part.get_payload(decode=True) if part else None
    file = part.get_filename() if part else None
    if not isinstance(content, bytes) or not file or not file.endswith((".yaml", ".yml", ".json")):
        raise Refusal(INVALID, words)
    name = request.query.get("name") or request.query.get("display_name") or file
    if len(name) > longest:
        raise Refusal(
            INVALID, f"{'Pipeline' if longest == 128 else 'PipelineVersion'}.Name length cannot exceed {longest}"
        )
    return name, request.query.get("display_name") or name, content.decode()


def _check_trigger(trigger: Json) -> None:
    times = {"start_time": (str,), "end_time": (str,)}
    if "cron_schedule" in trigger:
        schedule = check_fields(trigger["cron_schedule"], {"cron": (str,), **times})
        check_cron(schedule.get("cron", ""))
    if "periodic_schedule" in trigger:
        schedule = check_fields(trigger["periodic_schedule"], {"interval_second": INT64, **times})
        seconds = int(schedule.get("interval_second", 0))
        if seconds < 1:
            raise Refusal(
                INVALID, f"Found invalid period schedule interval {seconds}. Set at interval to least 1 second"
            )


def _sorting(kind: str, sort_by: str, context: str) -> tuple[str, bool]:
    words = sort_by.lower().split()
    if len(words) > 2 or (len(words) == 2 and words[1] not in {"asc", "desc"}):
        supported = 'Supported format: "field_name", "field_name desc", or "field_name asc"'
        raise Refusal(INVALID, f'Received invalid sort by format "{sort_by}". {supported}', context)
    name = words[0] if words else "created_at"
    if name not in SORTABLE[kind]:
        model = {"recurringruns": "Job", "versions": "PipelineVersion"}.get(kind, kind.removesuffix("s").title())
        raise Refusal(INVALID, f'Invalid sorting field: "{name}" on listable type {model}', context)
    return _field(kind, name), words[1:] == ["desc"]


def _field(kind: str, name: str) -> str:
    """The field of version 2 for a name that may be of version 1."""
    return {"id": KEYS[kind], "name": "display_name"}.get(name, name)


OPERATIONS: dict[int, tuple[str, Callable[[str, Any], bool]]] = {
    1: ("EQUALS", lambda own, given: own == given),
    2: ("NOT_EQUALS", lambda own, given: own != given),
    3: ("GREATER_THAN", lambda own, given: own > given),
    5: ("GREATER_THAN_EQUALS", lambda own, given: own >= given),
    6: ("LESS_THAN", lambda own, given: own < given),
    7: ("LESS_THAN_EQUALS", lambda own, given: own <= given),
    8: ("IN", lambda own, given: own in given),
    9: ("IS_SUBSTRING", lambda own, given: str(given).lower() in own.lower()),
}


def _filters(kind: str, text: str, context: str) -> list[Callable[[Json], bool]]:
    """The tests that a filter, sent as percent-encoded JSON, puts rows to."""
    if not text:
        return []

    def refuse(problem: object) -> NoReturn:
        raise Refusal(INVALID, f"failed to parse valid filter from {json.dumps(text)}: {problem}", context)

    try:
        given = json.loads(urllib.parse.unquote_plus(text))
        predicates = given["predicates"]
    except (ValueError, KeyError, TypeError) as problem:
        refuse(problem)
    tests: list[Callable[[Json], bool]] = []
    for predicate in predicates:
        rest = dict(predicate)
        name, asked = rest.pop("key", ""), rest.pop("operation", None)
        operation = next((do for number, (word, do) in OPERATIONS.items() if asked in (number, word)), None)
        if operation is None or len(rest) != 1:
            refuse(f"proto: {predicate}")
        ((sort, value),) = rest.items()
        sort = re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), sort)
        if sort not in {
            f"{which}_value{many}" for which in ("int", "long", "string", "timestamp") for many in ("", "s")
        }:
            refuse(f'proto: unknown field "{sort}"')
        if name not in SORTABLE[kind]:
            raise Refusal(INVALID, f'no support for filtering on unrecognized field "{name}"', context)
        wanted = value["values"] if sort.endswith("s") else value
        tests.append(partial(_passes, _field(kind, name), operation, wanted))
    return tests


def _passes(name: str, operation: Callable[[str, Any], bool], wanted: Any, row: Json) -> bool:
    return operation(str(row.get(name, "")), wanted)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece
    disable_nagle_algorithm = True
    kfp: KfpServer
    connections: set[socket.socket]

    def setup(self) -> None:
        super().setup()
        self.connections.add(self.connection)

    def finish(self) -> None:
        self.connections.discard(self.connection)
        super().finish()

    def answer(self) -> None:
        kfp = self.kfp
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, address.path.removeprefix(kfp.prefix), query, headers, body)
        kfp.requests.append(request)
        if kfp.takes("resets"):
            self.reset()
        elif kfp.takes("unavailable"):
            self.give(Answer(503, b"no healthy upstream", "text/plain"))
        elif not address.path.startswith((kfp.prefix, "/dex/")):
            self.give(Answer(404, b"404 page not found\n", "text/plain; charset=utf-8"))
        else:
            answer = kfp.door(request) or kfp.handle(request)
            if kfp.takes("losses"):
                self.reset()
            else:
                self.give(answer)

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = answer  # noqa: N815 - the names that the base class calls

    def give(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """The files of a certificate for 127.0.0.1 that signs itself, and of its key; the first is a CA to clients."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server for tests")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    authority = x509.BasicConstraints(ca=True, path_length=None)
    made = made.add_extension(address, critical=False).add_extension(authority, critical=True)
    certificate, secret = folder / "server.pem", folder / "server.key"
    certificate.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, plain))
    return certificate, secret


@contextmanager
def kfp_server(*, certificate: tuple[Path, Path] | None = None, **settings: Any) -> Iterator[KfpServer]:
    """A running server: `settings` are fields of KfpServer, `certificate` what own_certificate gives."""
    kfp = KfpServer(**settings)
    connections: set[socket.socket] = set()
    handler = type("Handler", (_Handler,), {"kfp": kfp, "connections": connections})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        kfp.host = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}{kfp.prefix}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield kfp
        finally:
            server.shutdown()
            thread.join()
            # Clients keep their connections: ended here, so that no thread waits on them.
            for connection in list(connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
