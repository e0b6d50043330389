"""Images that cost much, sent to the service: refused with a sentence, beside answers to the others, and given up."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from components.shared.storage.store import Store
from serving.decoder_pool import STOPPING
from serving.deployment import Deployment
from serving.serve import bind, create_server
from tests import made
from tests.components.shared import hostile
from tests.serving.conftest import POLL, image, png, running, until

SLOW = hostile.items(5_000_000)
"""A file that takes all the time that a file may take."""


@pytest.fixture
def service(store: Store, tmp_path: Path) -> Iterator[httpx.Client]:
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    with running(store) as client:
        yield client


def ask(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/predict", files={"file": ("x", data)})


def decoding() -> list[float]:
    """The CPU seconds of this process's decoders that have not ended, and of their template."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split() if path.name.isdecimal() else []
        except OSError:
            continue
        if fields and int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("progressive JPEG, 90,000 empty scans", "The JPEG has 90,006 scans; the maximum is 64: save it again"),
        ("PNG of 16 bits, 100 million pixels", "Decoding it takes more than 352 MiB of memory"),
        ("lossless JPEG that brings its decoder down", "The image cannot be decoded (its decoder crashed)"),
        ("deflated DICOM, 3 million elements", "The DICOM header has more than 20,000 elements"),
    ],
)
def test_a_costly_image_is_refused_with_a_sentence(service: httpx.Client, name: str, words: str) -> None:
    reply = ask(service, hostile.KINDS[name]())
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith(words)
    assert reply.json()["detail"].endswith(".")
    assert ask(service, png(image())).status_code == 200


@pytest.mark.slow
def test_others_are_answered_while_images_take_all_their_time(service: httpx.Client) -> None:
    service.timeout = httpx.Timeout(90)
    files = [("files", ("a", SLOW)), ("files", ("b", png(image())))]
    with ThreadPoolExecutor(6) as pool:
        slow = [pool.submit(ask, service, SLOW) for _ in range(3)]
        batch = pool.submit(service.post, "/predict/batch", files=files)
        answered = 0
        while not all(each.done() for each in slow[:1]):
            assert ask(service, png(image())).status_code == 200
            answered += 1
    assert answered > 10
    for each in slow:
        assert each.result().status_code == 400
        assert "takes more than 4 seconds of CPU time" in each.result().json()["detail"]
    one, other = batch.result().json()["predictions"]
    assert "takes more than 4 seconds of CPU time" in one["error"]
    assert "prediction" in other


@pytest.mark.slow
def test_the_work_for_a_client_that_has_gone_is_given_up(
    service: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    ask(service, png(image()))
    usual = len(decoding())
    request = service.build_request("POST", "/predict", files={"file": ("x", SLOW)})
    body = request.read()
    with caplog.at_level(logging.INFO, "medloop"):
        with socket.create_connection((service.base_url.host, service.base_url.port or 80)) as client:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: max(decoding()) > 1.0, 30)
        until(lambda: any(record.__dict__.get("fields", {}).get("status") == 499 for record in caplog.records))
    until(lambda: max(decoding()[1:]) < 1.0)
    assert len(decoding()) <= usual + 1
    assert ask(service, png(image())).status_code == 200


@pytest.mark.slow
def test_the_service_ends_at_once_while_an_image_takes_all_its_time(store: Store, tmp_path: Path) -> None:
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    before = len(decoding())
    listener = bind("127.0.0.1", 0)
    with listener, Deployment(store, POLL) as deployment:
        server = create_server(deployment)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=address, timeout=30) as client:
            ask(client, png(image()))
            slow = pool.submit(ask, client, SLOW)
            until(lambda: max(decoding()[before + 1 :]) > 1.0, 30)
            begun = time.monotonic()
            server.should_exit = True
            thread.join(15)
            taken = time.monotonic() - begun
            reply = slow.result()
    assert taken < 3
    assert (reply.status_code, json.loads(reply.text)) == (503, {"detail": STOPPING})
    assert len(decoding()) == before
