"""The service as a program: how it starts, what it refuses, how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from components.shared.storage.store import Store
from serving.serve import bind
from tests import made
from tests.serving.conftest import deep, dicom, image, png, until

PROGRAM = [sys.executable, "-m", "serving"]
IMAGE = png(image())


@contextmanager
def program(store: Store, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program on a free port, and the address that it names once it answers."""
    command = [*PROGRAM, "--store", store.uri, "--port", "0", "--poll", "0.1", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            for line in process.stderr:
                if found := re.match(r"serving (\S+|no model yet) at (http://\S+)$", json.loads(line)["event"]):
                    yield process, found[2]
                    break
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0(store: Store, tmp_path: Path, number: signal.Signals) -> None:
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    with program(store) as (process, address):
        reply = httpx.post(f"{address}/predict", files={"file": ("Jane Doe.png", IMAGE)})
        assert reply.json()["model_version"] == "v1"
        process.send_signal(number)
        _, rest = process.communicate(timeout=10)
    assert process.returncode == 0
    lines = [json.loads(line) for line in rest.splitlines()]
    assert [line["event"] for line in lines] == ["request", "ended"]
    assert {"method": "POST", "path": "/predict", "status": 200, "stage": "serve"}.items() <= lines[0].items()
    assert lines[0]["ms"] > 0
    assert "Doe" not in rest


@pytest.mark.slow
def test_a_request_in_flight_is_answered_before_it_ends(store: Store, tmp_path: Path) -> None:
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    with program(store) as (process, address):
        request = httpx.Request("POST", f"{address}/predict", files={"file": ("x.png", IMAGE)})
        body = request.read()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Type: {request.headers['content-type']}\r\n\r\n"
        with socket.create_connection((request.url.host, request.url.port or 0), timeout=10) as line:
            line.sendall(head.encode() + body[:200])
            assert httpx.get(f"{address}/health").status_code == 200
            process.terminate()
            until(lambda: refused(request.url.host, request.url.port or 0))
            assert process.poll() is None
            line.sendall(body[200:])
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"model_version":"v1"' in answer
        assert process.wait(10) == 0


def refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.slow
def test_a_port_in_use_is_refused_before_anything_is_loaded(store: Store, tmp_path: Path) -> None:
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*PROGRAM, "--store", store.uri, "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    reason, remedy = "is in use by another program", "Stop that program, or choose another port (--port, --host)"
    assert json.loads(line)["event"] == f"Port {port} on 127.0.0.1 {reason}. {remedy}."


@pytest.mark.slow
def test_a_public_key_that_is_none_is_refused_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOP_VERIFY_KEYS", "nonsense")
    command = [*PROGRAM, "--store", store.uri, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "MEDLOOP_VERIFY_KEYS contains an entry of 8 characters that is not a public key" in done.stderr


@pytest.mark.slow
def test_what_decoders_say_of_a_header_is_not_in_the_log(store: Store, tmp_path: Path) -> None:
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom finds the age wrong already when it is written
        odd = dicom(deep(image()), age="Doe, not an age")
    with program(store) as (process, address):
        with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=address) as client:
            asked = [pool.submit(client.post, "/predict", files={"file": ("Doe", odd)}) for _ in range(40)]
            assert {future.result().status_code for future in asked} == {200}
        process.terminate()
        _, rest = process.communicate(timeout=10)
    assert "Doe" not in rest
    assert [json.loads(line)["event"] for line in rest.splitlines()] == ["request"] * 40 + ["ended"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--store", "s3:/x://"], "it must be a directory or s3://bucket/prefix."),
        (["--store", ""], "The store's address is empty;"),
        (["--store", "x", "--poll", "0"], "poll is 0 seconds; it must be from 0.05 to 3600."),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(arguments: list[str], words: str) -> None:
    command = [*PROGRAM, "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in json.loads(line)["event"]


def test_addresses_that_cannot_be_bound() -> None:
    with pytest.raises(ValueError, match="The port is 70000; it must be from 0"):
        bind("127.0.0.1", 70000)
    with pytest.raises(OSError, match=r"The address 203\.0\.113\.1, port 80, cannot be used"):
        bind("203.0.113.1", 80)


def test_help_is_a_manual_and_comes_at_once() -> None:
    done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True, timeout=10, check=True)
    for word in ("/health", "/predict/batch", "/model/info", "--store", "--host", "--port", "--poll", "curl"):
        assert word in done.stdout
    imports = [sys.executable, "-X", "importtime", "-m", "serving", "--help"]
    said = subprocess.run(imports, capture_output=True, text=True, timeout=10, check=True).stderr
    assert not re.search(r"\| +(fastapi|numpy|onnxruntime)$", said, re.MULTILINE)
