"""A proxy before an S3 server that breaks a stated share of all requests, each in one of many ways."""

from __future__ import annotations

import calendar
import email.utils
import http.client
import http.server
import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.components.shared.servers import S3Server, moto

ANSWERED = ("get", "list", "begin", "complete")
SENT = ("put", "create", "part")
KINDS: dict[str, tuple[str, ...]] = {
    "503": (),  # no operations named: all
    "500": (),
    "429": (),
    "reset before": (),  # the server never hears of it
    "reset after": (),  # the server did it, and nobody learns that
    "slow": ANSWERED,
    "cut": ANSWERED,  # the connection ends before the length that was told
    "cut, no length": ("list", "begin", "complete"),  # nothing tells that it ends early, but what it holds
    "cut record": ("get",),  # likewise; what is fetched has a digest
    "cut upload": SENT,  # the server gets half
    "skewed": (),
    "expired": (),
}


@dataclass(frozen=True)
class Answer:
    """An answer of the proxy's own, in place of the server's."""

    status: int
    code: str
    message: str = "so it is"
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: str = ""


ANSWERS = {
    "503": Answer(503, "SlowDown", "Please reduce your request rate.", {"Retry-After": "0"}),
    "500": Answer(500, "InternalError", "We encountered an internal error. Please try again."),
    "429": Answer(429, "TooManyRequests", "Too many requests."),
    "skewed": Answer(403, "RequestTimeTooSkewed", "The difference between the request time and the time is too large."),
    "expired": Answer(400, "ExpiredToken", "The provided token has expired."),
}


class Faults:
    """What a proxy does to requests, and what it has done: counted by kind and operation."""

    def __init__(self, server: S3Server, rate: float, seed: int) -> None:
        self.upstream = urlsplit(server.endpoint).netloc
        self.rate = rate
        self.requests: Counter[str] = Counter()
        self.injected: Counter[tuple[str, str]] = Counter()
        self.seen: list[tuple[float, str, Mapping[str, str]]] = []
        self.clock = 0.0
        """Seconds by which the server's clock, as this proxy plays it, is ahead."""
        self.checks_first = False
        """Whether If-None-Match is checked when the head of a request arrives, and not when its body is written."""
        self.drip = 0.01
        """Seconds between the quarters of a slow body."""
        self._random = random.Random(seed)
        self._deck: list[bool] = []
        self._kinds: dict[str, list[str]] = {}
        self._forced: deque[tuple[str, str | Answer]] = deque()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """The number of faults injected."""
        return sum(self.injected.values())

    def force(self, operation: str, *faults: str | Answer) -> None:
        """Let the next requests for this operation meet these faults, one each."""
        with self._lock:
            self._forced.extend((operation, fault) for fault in faults)

    def next(self, operation: str, headers: Mapping[str, str]) -> str | Answer:
        """The fault that this request meets; none is ''."""
        with self._lock:
            self.requests[operation] += 1
            self.seen.append((time.monotonic(), operation, headers))
            fault: str | Answer = ""
            for place, (which, forced) in enumerate(self._forced):
                if which in (operation, "any"):
                    del self._forced[place]
                    fault = forced
                    break
            else:
                if self._fails():
                    fault = self._kind(operation)
            if fault:
                self.injected[fault if isinstance(fault, str) else fault.code, operation] += 1
            return fault

    def _kind(self, operation: str) -> str:
        """The next kind of fault for this operation: each has its turn, in no order."""
        kinds = self._kinds.setdefault(operation, [])
        if not kinds:
            kinds += [kind for kind, on in KINDS.items() if not on or operation in on]
            self._random.shuffle(kinds)
        return kinds.pop()

    def _fails(self) -> bool:
        """Whether the next request fails: of each hundred as many as stated, in no order."""
        if not self._deck:
            self._deck = [number < self.rate * 100 for number in range(100)]
            self._random.shuffle(self._deck)
        return self._deck.pop()


@contextmanager
def faulty(server: S3Server, rate: float = 0.0, seed: int = 1) -> Iterator[tuple[S3Server, Faults]]:
    """The server behind a proxy that breaks a share of all requests, and the record of what it broke."""
    faults = Faults(server, rate, seed)

    class Proxy(_Proxy):
        plan = faults

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield replace(server, endpoint=f"http://127.0.0.1:{proxy.server_address[1]}"), faults
        finally:
            proxy.shutdown()
            thread.join()


@contextmanager
def racing(folder: Path) -> Iterator[S3Server]:
    """An S3 server that checks If-None-Match before it reads what is to be written: concurrent writers all succeed."""
    with moto(folder) as server, faulty(server) as (proxy, faults):
        faults.checks_first = True
        yield proxy


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    plan: Faults

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # a client that went away
            self.close_connection = True

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        operation = _operation(self.command, self.path, self.headers)
        taken = operation == "create" and self.plan.checks_first and self._check()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.plan.next(operation, dict(self.headers.items()))
        if not fault and self.plan.clock and self._dated_wrongly():
            fault = "skewed"
        if isinstance(fault, Answer) or fault in ANSWERS:
            self._refuse(fault if isinstance(fault, Answer) else ANSWERS[fault])
        elif fault == "reset before":
            self._reset()
        elif fault == "cut upload":
            self._send_half(body)
            self._reset()
        elif taken:
            self._refuse(Answer(412, "PreconditionFailed"))
        else:
            self._pass_on(body, fault)

    def _check(self) -> bool:
        """Return whether the object exists, and drop the condition: what is written then overwrites."""
        there = self._ask(b"", "HEAD")[0].status == 200
        del self.headers["If-None-Match"]
        return there

    def _pass_on(self, body: bytes, fault: str) -> None:
        answer, data = self._ask(body, self.command)
        if fault == "reset after" or (fault.startswith("cut") and not data):
            self._reset()
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(name, value)
        self.send_header("Date", self._date())
        if fault in ("cut, no length", "cut record"):
            self.send_header("Connection", "close")
        elif answer.status != 204:
            length = answer.headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "slow":
            step = max(1, len(data) // 4)
            for begin in range(0, len(data), step):
                time.sleep(self.plan.drip)
                self.wfile.write(data[begin : begin + step])
        else:
            self.wfile.write(data[: len(data) // 2] if fault.startswith("cut") else data)
        if fault.startswith("cut"):
            self.close_connection = True

    def _ask(self, body: bytes, method: str) -> tuple[http.client.HTTPResponse, bytes]:
        """The server's answer to this request, and its body."""
        upstream = http.client.HTTPConnection(self.plan.upstream, timeout=30)
        try:
            upstream.putrequest(method, self.path, skip_host=True, skip_accept_encoding=True)
            dropped = {"connection", "accept-encoding"} | ({"content-length"} if method == "HEAD" else set())
            for name, value in self.headers.items():
                if name.lower() not in dropped:
                    upstream.putheader(name, value)
            upstream.putheader("Connection", "close")
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            return answer, answer.read()
        finally:
            upstream.close()

    def _send_half(self, body: bytes) -> None:
        host, port = self.plan.upstream.split(":")
        with socket.create_connection((host, int(port))) as upstream:
            head = f"{self.command} {self.path} HTTP/1.1\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            upstream.sendall(head.encode("latin-1") + b"\r\n" + body[: len(body) // 2])

    def _refuse(self, answer: Answer) -> None:
        xml = f"<Error><Code>{answer.code}</Code><Message>{answer.message}</Message>{answer.extra}</Error>"
        data = b"" if self.command == "HEAD" else xml.encode()
        self.send_response_only(answer.status)
        for name, value in {"Date": self._date(), "Content-Type": "application/xml", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _dated_wrongly(self) -> bool:
        dated = time.strptime(self.headers["x-amz-date"], "%Y%m%dT%H%M%SZ")
        return abs(calendar.timegm(dated) - time.time() - self.plan.clock) > 15 * 60

    def _date(self) -> str:
        return email.utils.formatdate(time.time() + self.plan.clock, usegmt=True)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _operation(method: str, path: str, headers: Any) -> str:
    parts = urlsplit(path)
    query = parts.query
    if method == "PUT":
        return "part" if "partNumber" in query else "create" if headers.get("If-None-Match") else "put"
    if method == "POST":
        return "begin" if "uploads" in query else "complete"
    if method == "GET":
        return "list" if "list-type" in query else "get"
    return {"HEAD": "has", "DELETE": "delete"}.get(method, method)
