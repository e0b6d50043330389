"""The doctor's looks at a cluster: the server, rights, images, clocks; each with what it means and what to do."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.components.shared.servers import free_port
from tests.medloop.kubeflow.kfp_server import TOKEN, kfp_server
from tests.medloop.test_cli import medloop

NOWHERE = {"KUBECONFIG": "/nowhere/config"}


def look(home: Path, status: int = 0, **environment: str) -> dict[str, dict[str, str]]:
    """What the doctor says, by part."""
    told = medloop(home, "doctor", "--json", status=status, **{**NOWHERE, **environment}).stdout
    return {finding["part"]: finding for finding in json.loads(told)}


@contextmanager
def kubernetes(
    folder: Path, denied: tuple[str, ...] = (), secrets: tuple[str, ...] = (), status: int = 201
) -> Iterator[str]:
    """A server that answers what a person may do, and a KUBECONFIG that leads to it."""

    class Api(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = body["spec"]["resourceAttributes"]
            assert self.path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
            kind = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            self.tell(status, {**body, "status": {"allowed": f"{asked['verb']} {kind}" not in denied}})

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            there = name in secrets
            told = {"kind": "Secret", "metadata": {"name": name}} if there else {"kind": "Status", "code": 404}
            self.tell(200 if there else 404, told)

        def tell(self, status: int, told: dict[str, Any]) -> None:
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield kubeconfig(folder, f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()


def kubeconfig(folder: Path, address: str) -> str:
    """A file that leads to the cluster at that address."""
    file = folder / "kubeconfig"
    file.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "clusters": [{"name": "it", "cluster": {"server": address}}],
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
                "users": [{"name": "me", "user": {"token": "t"}}],
            }
        )
    )
    return str(file)


def test_a_server_that_lets_us_in_is_named_with_its_version(tmp_path: Path) -> None:
    with kfp_server(login="token") as server:
        found = look(tmp_path, KF_PIPELINES_ENDPOINT=server.host, MEDLOOP_KFP_TOKEN=TOKEN)
    assert (found["Kubeflow"]["state"], found["Kubeflow"]["means"]) == ("ok", f"2.17.0 at {server.host}, single-user")


def test_a_server_with_many_users_wants_a_namespace(tmp_path: Path) -> None:
    with kfp_server(login="token", multi_user=True) as server:
        environment = {"KF_PIPELINES_ENDPOINT": server.host, "MEDLOOP_KFP_TOKEN": TOKEN}
        assert look(tmp_path, 0, MEDLOOP_KFP_NAMESPACE="team", **environment)["Kubeflow"]["state"] == "ok"
        assert "MEDLOOP_KFP_NAMESPACE" in json.dumps(look(tmp_path, 1, **environment)["Kubeflow"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"login": "token"}, "requires a login"), ({"tag": "2.5.0"}, "2.5.0"), ({"version_1_only": True}, "version 2")],
)
def test_a_server_that_will_not_do_is_a_problem(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with kfp_server(**settings) as server:
        found = look(tmp_path, status=1, KF_PIPELINES_ENDPOINT=server.host)
    assert found["Kubeflow"]["state"] == "problem"
    assert words in found["Kubeflow"]["means"]


def test_rights_in_the_cluster(tmp_path: Path) -> None:
    with kubernetes(tmp_path, secrets=("medloop",)) as file:
        found = look(tmp_path, KUBECONFIG=file, MEDLOOP_KFP_NAMESPACE="team")
        assert "all useful permissions in team" in found["Kubernetes"]["means"]
        assert found["secret"]["means"] == "medloop exists in team"
    with kubernetes(tmp_path, denied=("get pods/log",)) as file:
        found = look(tmp_path, KUBECONFIG=file)
        assert (
            "no permission to get pods/log in kubeflow, needed to read the logs of a step"
            in found["Kubernetes"]["means"]
        )
        assert (found["secret"]["state"], "docs/cluster.md" in found["secret"]["remedy"]) == ("note", True)


def test_a_cluster_that_does_not_answer_is_a_note(tmp_path: Path) -> None:
    found = look(tmp_path, KUBECONFIG=kubeconfig(tmp_path, f"http://127.0.0.1:{free_port()}"))
    assert (found["Kubernetes"]["state"], "does not respond" in found["Kubernetes"]["means"]) == ("note", True)
    with kubernetes(tmp_path, status=401) as file:
        assert "401" in look(tmp_path, KUBECONFIG=file)["Kubernetes"]["means"]


def test_images_that_no_registry_gives_are_a_problem(tmp_path: Path) -> None:
    found = look(tmp_path, status=1, MEDLOOP_IMAGES=f"127.0.0.1:{free_port()}/medloop:1")
    assert found["images"]["state"] == "problem"
    assert "does not respond" in found["images"]["means"]


def test_clocks(tmp_path: Path) -> None:
    found = look(tmp_path, TZ="Europe/Berlin", MEDLOOP_KFP_TIMEZONE="America/New_York")["time zone"]
    assert found["state"] == "ok"
    assert "CE" in found["means"]
    assert "America/New_York" in found["means"]
    assert "Europe/Berln" in look(tmp_path, status=1, MEDLOOP_KFP_TIMEZONE="Europe/Berln")["time zone"]["means"]


def test_with_nothing_named_there_are_notes_that_say_what_for(tmp_path: Path) -> None:
    found = look(tmp_path)
    for part in ("Kubeflow", "Kubernetes", "images"):
        assert found[part]["state"] == "note"
        assert found[part]["remedy"]
