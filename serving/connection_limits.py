"""Limits of connections: their number, the time for a request to arrive, and the time to read a response."""

from __future__ import annotations

import asyncio
import errno
import heapq
import json
import logging
import os
import resource
import select
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from components.shared.runtime import events

HEADER_SECONDS = 10.0
"""Time for the header of a request to arrive, since the connection or the previous response."""
ANSWER_SECONDS = 60.0
"""Time for a client to read a response."""
MOST_CONNECTIONS, MOST_DESCRIPTORS = 2048, 2**16
AT_ONCE = 16
"""Connections to accept before others are served again."""
MESSAGES = 100
QUIET = 10.0
"""Seconds between two log messages about the same problem."""


def raise_descriptors() -> None:
    """Raise the process's limit on open files as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Return the maximum number of connections: half of the descriptors, the others being needed for files."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(AT_ONCE, min(MOST_CONNECTIONS, soft // 2))


class Tally:
    """Counts of events that clients can cause at will; logged together, not one by one."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._again = 0.0

    def add(self, what: str, count: int = 1) -> None:
        self._counts[what] += count

    def log(self, now: float, open_connections: int) -> None:
        """Log and reset the counts, unless they are empty or were logged a moment ago."""
        if self._counts and now >= self._again:
            events.event("connections", "serve", open=open_connections, **self._counts)
            self._counts.clear()
            self._again = now + QUIET


class Repeats(logging.Filter):
    """A filter that limits how often a message is logged: a client could otherwise fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self._last.get(record.msg, 0.0) < QUIET:
            return False
        if len(self._last) >= MESSAGES:
            self._last.clear()
        self._last[record.msg] = record.created
        return True


class Listener(socket.socket):
    """A listening socket that closes new connections when descriptors run out.

    asyncio would log a traceback and pause instead.
    """

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(fileno=listening.detach())
        self.on_full: Callable[[], None] = lambda: None
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def listen(self, _at_once: int = 0, /) -> None:
        super().listen(MOST_CONNECTIONS)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection; close it at once if there is no descriptor for it."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        os.close(self._spare)
        try:
            super().accept()[0].close()
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY)
        self.on_full()
        raise BlockingIOError(errno.EAGAIN, "no descriptors are left")

    def close(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        super().close()


class Connection(H11Protocol):
    """A connection that records since when it has been waiting for its client."""

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(**options)
        self._server = server
        self.since = self.loop.time()
        self._phase = "waiting"
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection; close slower ones if there are too many."""
        super().connection_made(transport)
        self._server.make_room(self)

    def data_received(self, data: bytes) -> None:
        """Process data; abort the connection on invalid HTTP in the middle of a response."""
        try:
            super().data_received(data)
        except h11.ProtocolError:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(f"{msg} It is not HTTP/1.1, or its header is larger than 64 KiB.")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.since = self.loop.time()

    @property
    def phase(self) -> str:
        """Phase of the request: waiting for its header, receiving its body, or answering."""
        if self.cycle is None or self.cycle.response_complete:
            return "waiting"
        return "receiving" if self.cycle.more_body else "answering"

    @property
    def priority(self) -> tuple[bool, float]:
        """Sort key; the lowest is closed first: connections waiting for a header, then the oldest."""
        return self.phase != "waiting", self.since

    def has_arrived(self) -> bool:
        """Return whether data from the client has not been read yet: then the server causes the delay."""
        watch = select.poll()
        watch.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(watch.poll(0))

    def check(self, now: float) -> str:
        """Close the connection if its client is too slow; return the reason, or ""."""
        phase = self.phase
        if phase != self._phase:
            self._phase, self.since = phase, now
        if not self.transport.get_write_buffer_size():
            self._unread_since = 0.0
        elif not self._unread_since:
            self._unread_since = now
        elif now - self._unread_since > ANSWER_SECONDS:
            self.transport.abort()
            return "unread_answers"
        if phase == "waiting" and now - self.since > HEADER_SECONDS and not self.transport.is_closing():
            if self.conn.trailing_data[0]:
                self.refuse(408, f"The header of the request did not arrive within {HEADER_SECONDS:g} seconds.")
            else:
                self.transport.close()
            return "slow_headers"
        return ""

    def refuse(self, status: int, sentence: str) -> None:
        """Answer without reading a request, and close the connection."""
        body = json.dumps({"detail": sentence}).encode()
        reason = {408: "Request Timeout", 503: "Service Unavailable"}[status]
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """A server that closes connections that are too slow, and the slowest if there are too many."""

    def __init__(self, config: uvicorn.Config, tally: Tally) -> None:
        super().__init__(config)
        self.most = most_connections()
        self._tally = tally
        config.http = cast(Any, self._connection)
        config.backlog = AT_ONCE

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in sockets or []:
            if isinstance(listener, Listener):
                listener.on_full = self._without_descriptor
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in self._connections():
                if reason := connection.check(now):
                    self._tally.add(reason)
            self._tally.log(now, len(self.server_state.connections))
        return await super().on_tick(counter)

    def make_room(self, newest: Connection) -> None:
        """If there are too many connections, close the slowest; the newest if all others are being answered."""
        if len(self.server_state.connections) > self.most and not self._close_slowest(newest):
            self._tally.add("refused")
            newest.refuse(503, f"All {self.most} allowed connections are in use. Try again in a second.")

    def _without_descriptor(self) -> None:
        self._tally.add("without_descriptor")
        self._close_slowest()

    def _close_slowest(self, newest: Connection | None = None) -> int:
        waiting = [c for c in self._connections() if c.phase != "answering" and c is not newest]
        candidates = heapq.nsmallest(4 * AT_ONCE, waiting, key=lambda connection: connection.priority)
        slowest = [connection for connection in candidates if not connection.has_arrived()][:AT_ONCE]
        for connection in slowest:
            self.server_state.connections.discard(connection)  # its transport closes later
            connection.transport.abort()
        if slowest:
            self._tally.add("made_room", len(slowest))
        return len(slowest)

    def _connections(self) -> list[Connection]:
        return [c for c in self.server_state.connections if isinstance(c, Connection)]

    def _connection(self, **options: Any) -> Connection:
        return Connection(self, **options)
