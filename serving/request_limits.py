"""The middleware of every request: limits, log messages, and the response to internal errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from components.shared.runtime import events
from serving.connection_limits import Tally, most_connections

log = logging.getLogger("medloop.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
DRAIN_BYTES, DRAIN_SECONDS = 256 * 2**20, 10
BODY_SECONDS, SLOWEST = 20.0, 4096
"""Time for a body to arrive, and the bytes per second that extend it."""
CLIENT_LEFT = 499
"""Status, in the log only, of a request whose client disconnected before the response."""
UNFINISHED = {408: "slow_bodies", CLIENT_LEFT: "left_early"}
"""Names of the counts of requests that did not arrive completely."""
HEALTH = "/health"


@dataclass(frozen=True)
class Limits:
    """Limits of one request (bytes of a file; files and bytes of a batch) and of concurrent requests."""

    file_bytes: int = 64 * 2**20
    files: int = 64
    batch_bytes: int = 512 * 2**20
    at_once: int = field(default_factory=lambda: most_connections() // 2)


class Guard:
    """Wraps an application. `limits` maps its paths to the maximum size of a request in bytes.

    At most `most` requests, besides health checks, are answered at once. The log contains known paths only, and never a
    query, a name or a header: clients control these. Successful health checks, which come every few seconds, are not
    logged; requests that did not arrive completely, or exceed `most`, are only counted in `tally`.
    """

    def __init__(self, app: App, limits: Mapping[str, int], most: int, tally: Tally) -> None:
        self._app, self._limits, self._most, self._tally = app, limits, most, tally
        self._answering = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, path = time.perf_counter(), scope["path"]
        exchange = Exchange(receive, send, self._limits.get(path), self._admit)
        try:
            if exchange.declares_too_much(scope):
                await JSONResponse({"detail": exchange.refusal}, 413)(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            await _answer_failure(error, scope, exchange)
        finally:
            self._answering -= exchange.admitted
            unfinished = "" if exchange.admitted else UNFINISHED.get(exchange.status, "")
            if count := "busy" if exchange.refused else unfinished:
                self._tally.add(count)
            elif path != HEALTH or exchange.status != 200:
                events.event(
                    "request",
                    "serve",
                    method=scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other",
                    path=path if path in self._limits else "other",
                    status=exchange.status,
                    ms=round((time.perf_counter() - start) * 1000, 1),
                )

    def _admit(self) -> None:
        if self._answering >= self._most:
            detail = f"{self._most} requests are being answered, the maximum. Try again in a second."
            raise HTTPException(503, detail, {"retry-after": "1"})
        self._answering += 1


class Exchange:
    """One request and its response: enforces the limits of the request, and records the status of the response.

    If `drained`, the rest of the request is read before the response ends. `admit` raises an HTTPException if too many
    requests are being answered.
    """

    def __init__(self, receive: Receive, send: Send, limit: int | None, admit: Callable[[], None]) -> None:
        self.status, self.drained, self.admitted, self.refused = 0, False, False, False
        self._receive, self._send, self._limit, self._admit = receive, send, limit, admit
        self._read, self._whole = 0, False
        self._begun = asyncio.get_running_loop().time()

    @property
    def refusal(self) -> str:
        return f"The request is larger than {format_size(self._limit or 0)}, the maximum. Send fewer or smaller files."

    def declares_too_much(self, scope: Message) -> bool:
        """Return whether the request's content-length exceeds the limit, so that it need not be read."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        self.drained = self._limit is not None and int(length) > self._limit
        return self.drained

    async def receive(self) -> Message:
        """Return the next part of the request; raise an HTTPException if it is too large or too slow."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._begun + BODY_SECONDS + self._read / SLOWEST):
                message = await self._receive()
        except TimeoutError:
            seconds = round(asyncio.get_running_loop().time() - self._begun)
            detail = f"The request arrived too slowly: {self._read:,} bytes in {seconds} seconds. Send it again."
            raise HTTPException(408, detail, {"connection": "close"}) from None
        self._whole = not message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._limit is not None and self._read > self._limit:
            self.drained = True
            raise HTTPException(413, self.refusal)
        if self._whole and message["type"] == "http.request":
            self.refused = True
            self._admit()
            self.admitted, self.refused = True, False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *HEADERS]
        elif self.drained and not message.get("more_body"):
            # Closing while the client still writes would reset the connection, and the response would be lost.
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        left = DRAIN_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while left > 0:
                    message = await self._receive()
                    if not message.get("more_body"):
                        return
                    left -= len(message["body"])


async def _answer_failure(error: Exception, scope: Message, exchange: Exchange) -> None:
    """Log the kind and place of an internal error, and answer with the id of the log message.

    The error's text appears in neither: it may quote the request.
    """
    number = secrets.token_hex(8)
    where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-5:]]
    fields = {"stage": "serve", "id": number, "error": type(error).__name__, "where": where}
    log.error("failed", extra={"fields": fields})
    if exchange.status:
        raise error  # the response has begun; the server closes the connection
    detail = f"Internal error, not caused by the request. Give the operator the id {number}, which is in the log."
    await JSONResponse({"detail": detail}, 500)(scope, exchange.receive, exchange.send)


def format_size(count: int) -> str:
    """Return a number of bytes in MiB or KiB, rounded down."""
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count // 2**10} KiB"
