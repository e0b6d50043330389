"""What connections cost: their number, slow requests, unread answers, uploads that cannot be kept."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.connections import DESCRIPTORS, measure
from components.shared.storage.store import Store
from serving import connection_limits, request_limits
from serving.request_limits import Limits
from tests import made
from tests.serving.conftest import image, png, running, until

IMAGE = png(image())
BODY = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
BODY += b"content-length: 9999\r\n\r\n"


@contextmanager
def line(client: httpx.Client, sent: bytes = b"") -> Iterator[socket.socket]:
    """A connection over which this was sent."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as open_line:
        open_line.sendall(sent)
        yield open_line


def rest(open_line: socket.socket) -> bytes:
    """All that still comes, up to the end of the connection."""
    received = b""
    try:
        while data := open_line.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


@pytest.fixture
def released(store: Store, tmp_path: Path) -> Store:
    """A store with a model in service."""
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    return store


@pytest.mark.slow
def test_a_header_that_does_not_come_in_time_is_answered_and_the_connection_closed(
    released: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "HEADER_SECONDS", 0.5)
    with running(released) as client, line(client, b"GET /health HTTP/1.1\r\nx: ") as slow, line(client) as silent:
        answer = rest(slow)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"The header of the request did not arrive within 0.5 seconds." in answer
        assert rest(silent) == b""
        assert client.get("/health").status_code == 200


@pytest.mark.slow
def test_a_body_that_does_not_come_in_time_is_answered_and_counted_not_logged(
    released: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(request_limits, "BODY_SECONDS", 0.5)
    with running(released) as client, caplog.at_level(logging.INFO, "medloop"):
        with line(client, BODY) as slow:
            answer = rest(slow)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"The request arrived too slowly: 0 bytes in" in answer
        with line(client, BODY):
            pass  # it leaves before its body was sent
        until(lambda: counted(caplog).keys() >= {"slow_bodies"})
        assert client.post("/predict", files={"file": ("x", IMAGE)}).status_code == 200
    paths = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "request"]
    assert [each["status"] for each in paths] == [200]


def counted(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """What lines about connections say."""
    lines = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "connections"]
    return {name: count for each in lines for name, count in each.items()}


@pytest.mark.slow
def test_a_body_that_keeps_coming_fast_enough_may_take_long(released: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_limits, "BODY_SECONDS", 0.3)
    request = httpx.Request("POST", "http://x/predict", files={"file": ("x.png", png(image(side=200)))})
    body = request.read()
    kind = {"content-type": request.headers["content-type"]}

    def slowly() -> Iterator[bytes]:
        for start in range(0, len(body), 4096):
            yield body[start : start + 4096]
            time.sleep(0.1)

    with running(released) as client:
        begun = time.monotonic()
        assert client.post("/predict", content=slowly(), headers=kind).status_code == 200
        assert time.monotonic() - begun > 0.5, "it took longer than a body may that stands still"


@pytest.mark.slow
def test_an_answer_that_nobody_reads_is_given_up(
    released: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_limits, "ANSWER_SECONDS", 0.5)
    with running(released) as client, caplog.at_level(logging.INFO, "medloop"):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((client.base_url.host, client.base_url.port or 0))
            deaf.settimeout(10)
            for _ in range(3000):
                try:
                    deaf.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                except OSError:
                    break
            until(lambda: "unread_answers" in counted(caplog), 20)
        assert client.get("/health").status_code == 200


@pytest.mark.slow
def test_where_there_are_too_many_connections_the_slowest_make_room(
    released: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_limits, "MOST_CONNECTIONS", 40)
    with running(released) as client, caplog.at_level(logging.INFO, "medloop"):
        lines = [line(client, BODY if number % 2 else b"GET /h") for number in range(80)]
        for each in lines:
            each.__enter__()
        assert httpx.get(f"{client.base_url}/health", timeout=10).status_code == 200
        reply = httpx.post(f"{client.base_url}/predict", files={"file": ("x", IMAGE)}, timeout=10)
        assert reply.status_code == 200
        until(lambda: counted(caplog).get("made_room", 0) > 0)
        for each in lines:
            each.__exit__(None, None, None)
    assert len(caplog.records) < 30


@pytest.mark.slow
def test_without_descriptors_new_connections_take_the_place_of_slow_ones_and_no_traceback_is_written(
    released: Store, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running(released) as client, caplog.at_level(logging.INFO):
        assert client.get("/health").status_code == 200
        lines = [line(client, b"GET /h") for _ in range(20)]
        for each in lines:
            each.__enter__()
        until(lambda: client.get("/health").status_code == 200)
        with socket.socket() as late:
            highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
            filled = [os.dup(late.fileno())]
            while filled[-1] < highest:
                filled.append(os.dup(late.fileno()))
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (max(filled) + 1, hard))  # not one is left
                late.connect((client.base_url.host, client.base_url.port or 0))
                late.settimeout(5)
                assert late.recv(1) == b"", "it is closed, not left waiting"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for number in filled:
                    os.close(number)
        until(lambda: "without_descriptor" in counted(caplog))
        assert httpx.get(f"{client.base_url}/health", timeout=10).status_code == 200
        for each in lines:
            each.__exit__(None, None, None)
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelno >= logging.ERROR]


@pytest.mark.slow
def test_more_requests_at_once_than_can_be_answered_are_told_and_health_goes_on(
    released: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with running(released, Limits(at_once=0)) as client, caplog.at_level(logging.INFO, "medloop"):
        reply = client.post("/predict", files={"file": ("x", IMAGE)})
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert "0 requests are being answered, the maximum" in reply.json()["detail"]
        assert client.get("/health").status_code == 200
        until(lambda: counted(caplog).get("busy", 0) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["full", "gone"])
def test_a_directory_for_temporary_files_that_cannot_take_an_upload_is_told(
    released: Store, tmp_path: Path, state: str
) -> None:
    """In a process of its own, in which that directory is a disk of 256 KiB."""
    script = tmp_path / "ask.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "small"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=256k none {folder}" if state == "full" else "true"
    command = f"{mount} && exec {sys.executable} {script} {released.uri} {state}"
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this machine lets nobody mount a file system of their own")
    assert done.stdout, done.stderr
    status, detail, log = json.loads(done.stdout.splitlines()[-1])
    assert status == 507, done.stderr
    why = "is full" if state == "full" else "cannot be written"
    assert detail == (f"The service's directory for temporary files {why}, so the upload failed. Contact the operator.")
    told = [each for each in log if each["event"] == "the upload was not kept"]
    assert [(each["directory"], each["level"]) for each in told] == [(str(folder), "ERROR")]


SCRIPT = """
import json, logging, os, shutil, sys
from components.shared.storage.store import open_store
from components.shared.runtime.events import JsonLines
from tests.serving.conftest import running
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(json.loads(JsonLines().format(record)))
logging.getLogger("medloop").addHandler(Keep())
logging.getLogger("medloop").setLevel(logging.INFO)
with running(open_store(sys.argv[1])) as client:
    if sys.argv[2] == "gone":
        shutil.rmtree(os.environ["TMPDIR"])
    reply = client.post("/predict", files={"file": ("x.png", b"x" * 3_000_000)})
    assert client.get("/health").status_code == 200
print(json.dumps([reply.status_code, reply.json()["detail"], lines]))
"""


def form(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


FILE = b'content-disposition: form-data; name="file"; filename="x"\r\n\r\nx'


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (form(*[FILE] * 66), 413, "The request has more than 64 files, the maximum. Split them."),
        (form(*[b'content-disposition: form-data; name="a"\r\n\r\nx'] * 9), 400, "Too many fields"),
        (form(b'content-disposition: form-data; name="a"\r\n\r\n' + b"x" * 2000), 400, "Part exceeded maximum size"),
        (form(b"x-long: " + b"y" * 9000 + b"\r\n" + FILE), 400, "The form cannot be read: Invalid multipart data."),
        (form(b"x-many: y\r\n" * 20 + FILE), 400, "The form cannot be read: Invalid multipart data."),
        (b"no form at all", 400, "The form cannot be read: Invalid multipart data."),
    ],
    ids=["files", "fields", "large field", "long header", "many headers", "no form"],
)
def test_forms_are_read_within_limits(client: httpx.Client, body: bytes, status: int, words: str) -> None:
    reply = client.post("/predict", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert reply.status_code == status
    assert words in reply.json()["detail"]


def test_a_form_that_is_one_long_line_of_fields_is_not_read(client: httpx.Client) -> None:
    begun = time.process_time()
    kind = {"content-type": "application/x-www-form-urlencoded"}
    reply = client.post("/predict", content=b"a&" * 8_000_000, headers=kind)
    assert reply.status_code == 422
    assert "no file in the field 'file'" in reply.json()["detail"]
    assert time.process_time() - begun < 5


def test_a_header_that_is_too_large_is_told(client: httpx.Client) -> None:
    with line(client, b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 100_000) as large:
        answer = rest(large)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"its header is larger than 64 KiB" in answer


def test_the_statuses_that_are_given_are_those_that_are_described(client: httpx.Client) -> None:
    """Each status that a request can have here is described, with the body that it has; none is described in vain."""
    paths = client.get("/openapi.json").json()
    described = {path: set(next(iter(methods.values()))["responses"]) for path, methods in paths["paths"].items()}
    assert described["/predict"] == described["/predict/batch"] == {"200", "400", "408", "413", "422", "503", "507"}
    assert described["/health"] == described["/model/info"] == {"200", "503"}
    assert described["/"] == {"200"}
    problem = paths["paths"]["/predict"]["post"]["responses"]["422"]["content"]["application/json"]["schema"]
    assert problem == {"$ref": "#/components/schemas/Problem"}
    assert paths["components"]["schemas"]["Problem"]["required"] == ["detail"]
    assert "HTTPValidationError" not in paths["components"]["schemas"]


@pytest.mark.slow
def test_a_few_hundred_slow_connections_at_few_descriptors_leave_health_answering() -> None:
    """As bench.connections does with 2,000 at 1,024, in less time."""
    found = measure(connections=400, seconds=6, descriptors=DESCRIPTORS // 2)
    assert found.opened >= 400
    assert not found.failed
    assert len(found.took["health"]) > 5
    assert found.log < 100_000
