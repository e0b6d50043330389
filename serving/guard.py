"""What surrounds every request: its limits, its line in the log, and an answer when something breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from components.shared.runtime import events
from serving.connections import Tally

log = logging.getLogger("medloop.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
DRAIN_BYTES, DRAIN_SECONDS = 256 * 2**20, 10
BODY_SECONDS, SLOWEST = 20.0, 4096
"""Time in which a body must arrive, and the bytes a second by which it may take longer."""
GONE = 499
"""Status of a request whose client left before it was sent whole; nobody receives it."""
UNFINISHED = {408: "slow_bodies", GONE: "left_early"}
"""Under what requests are counted that did not arrive."""
HEALTH = "/health"


class Guard:
    """Wraps an application; `limits` holds the paths that it has, and how many bytes a request to each may bring.

    At most `most` requests that have arrived are answered at once, and health checks besides. A line of the log holds
    the path only where it is one of these, and never a query, a name or a header: a client may put anything there.
    Health checks that succeed leave no line, since there is one every few seconds; requests that never arrived or came
    too many at once are counted in `tally` instead.
    """

    def __init__(self, app: App, limits: Mapping[str, int], most: int, tally: Tally) -> None:
        self._app, self._limits, self._most, self._tally = app, limits, most, tally
        self._answering = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, path = time.perf_counter(), scope["path"]
        exchange = Exchange(receive, send, self._limits.get(path), self._admit)
        try:
            if exchange.announced_too_much(scope):
                await JSONResponse({"detail": exchange.refusal}, 413)(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            await _apologise(error, scope, exchange)
        finally:
            self._answering -= exchange.admitted
            unfinished = "" if exchange.admitted else UNFINISHED.get(exchange.status, "")
            if uncounted := "busy" if exchange.refused else unfinished:
                self._tally.add(uncounted)
            elif path != HEALTH or exchange.status != 200:
                events.event(
                    "request",
                    "serve",
                    method=scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other",
                    path=path if path in self._limits else "other",
                    status=exchange.status,
                    ms=round((time.perf_counter() - begun) * 1000, 1),
                )

    def _admit(self) -> None:
        if self._answering >= self._most:
            detail = f"{self._most} requests are being answered, which is the limit. Try again in a second."
            raise HTTPException(503, detail, {"retry-after": "1"})
        self._answering += 1


class Exchange:
    """One request and its answer, as they pass by: counts what comes in, notes the status that goes out.

    `drained`: what is left of the request is read before the answer ends. `admit` raises where a request that has
    arrived comes on top of too many others.
    """

    def __init__(self, receive: Receive, send: Send, limit: int | None, admit: Callable[[], None]) -> None:
        self.status, self.drained, self.admitted, self.refused = 0, False, False, False
        self._receive, self._send, self._limit, self._admit = receive, send, limit, admit
        self._read, self._whole = 0, False
        self._begun = asyncio.get_running_loop().time()

    @property
    def refusal(self) -> str:
        """The sentence for a request that brings too much."""
        return f"The request is larger than the {in_words(self._limit or 0)} allowed. Send fewer or smaller files."

    def announced_too_much(self, scope: Message) -> bool:
        """Whether the request's own header says that it is over the limit, so that it need not be read."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        self.drained = self._limit is not None and int(length) > self._limit
        return self.drained

    async def receive(self) -> Message:
        """The next piece of the request, unless that makes it too large or comes too late."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._begun + BODY_SECONDS + self._read / SLOWEST):
                message = await self._receive()
        except TimeoutError:
            sentence = (
                f"The request arrived too slowly: {self._read:,} bytes in {self._seconds()} seconds. Send it again."
            )
            raise HTTPException(408, sentence, {"connection": "close"}) from None
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

    def _seconds(self) -> int:
        return round(asyncio.get_running_loop().time() - self._begun)

    async def send(self, message: Message) -> None:
        """Hand on a piece of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *HEADERS]
        elif self.drained and not message.get("more_body"):
            # Closing while the client still writes would reset the connection, and the answer would be lost on the way.
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


async def _apologise(error: Exception, scope: Message, exchange: Exchange) -> None:
    """Tell the log what broke and where, and the client under which id it stands there.

    The exception's own words stay out of both: they may quote what was sent.
    """
    number = secrets.token_hex(8)
    where = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-5:]]
    fields = {"stage": "serve", "id": number, "error": type(error).__name__, "where": where}
    log.error("failed", extra={"fields": fields})
    if exchange.status:
        raise error  # the answer has begun and cannot be taken back; the server cuts the connection
    detail = (
        f"Something broke here; it was not your request. Tell the operator the id {number}, which stands in the log."
    )
    await JSONResponse({"detail": detail}, 500)(scope, exchange.receive, exchange.send)


def in_words(count: int) -> str:
    """A size in words, rounded down."""
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count // 2**10} KiB"
