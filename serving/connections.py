"""Limits what connections cost: their number, the time that a request may take to arrive, and unread answers."""

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
"""Time in which the header of a request must arrive, from the connection or the answer before it."""
ANSWER_SECONDS = 60.0
"""Time in which a client must read what was sent to it."""
MOST_CONNECTIONS, MOST_DESCRIPTORS = 2048, 2**16
AT_ONCE = 16
"""Connections taken up before others are served again."""
MESSAGES = 100
QUIET = 10.0
"""Seconds between two lines of the log about the same trouble."""


def raise_descriptors() -> None:
    """Raise the process's limit on open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Return the number of connections that may be open: the other half of the descriptors is for everything else."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(AT_ONCE, min(MOST_CONNECTIONS, soft // 2))


class Tally:
    """Counts what a client can cause at will, and logs the counts instead of a line for each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._again = 0.0

    def add(self, what: str, count: int = 1) -> None:
        """Count something."""
        self._counts[what] += count

    def tell(self, now: float, open_connections: int) -> None:
        """Log the counts, if there are any and the last line is old enough."""
        if self._counts and now >= self._again:
            events.event("connections", "serve", open=open_connections, **self._counts)
            self._counts.clear()
            self._again = now + QUIET


class Repeats(logging.Filter):
    """Lets the same message pass once in a while: a client could otherwise fill the disk with it."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be logged."""
        if record.created - self._last.get(record.msg, 0.0) < QUIET:
            return False
        if len(self._last) >= MESSAGES:
            self._last.clear()
        self._last[record.msg] = record.created
        return True


class Listener(socket.socket):
    """A listening socket that does without asyncio's traceback and pause when descriptors run out."""

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(fileno=listening.detach())
        self.on_full: Callable[[], None] = lambda: None
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def listen(self, _at_once: int = 0, /) -> None:
        """Listen with a long queue, though asyncio takes up few connections at once."""
        super().listen(MOST_CONNECTIONS)

    def accept(self) -> tuple[socket.socket, Any]:
        """Take up a connection; close it again at once where there is no descriptor for it."""
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
        raise BlockingIOError(errno.EAGAIN, "no descriptor is left")

    def close(self) -> None:
        """Close the socket and its spare descriptor."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        super().close()


class Connection(H11Protocol):
    """A connection that knows since when it has been waiting for its client."""

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(**options)
        self._server = server
        self.since = self.loop.time()
        self._phase = "waiting"
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it up, in place of slower ones where there are too many."""
        super().connection_made(transport)
        self._server.make_room(self)

    def data_received(self, data: bytes) -> None:
        """Hand on what arrived; what is no HTTP in the middle of an answer ends the connection."""
        try:
            super().data_received(data)
        except h11.ProtocolError:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request."""
        super().send_400_response(f"{msg} It is not HTTP/1.1, or its header is larger than 64 KiB.")

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self.since = self.loop.time()

    @property
    def phase(self) -> str:
        """What it is at: waiting for a header, receiving a body, or answering."""
        if self.cycle is None or self.cycle.response_complete:
            return "waiting"
        return "receiving" if self.cycle.more_body else "answering"

    @property
    def patience(self) -> tuple[bool, float]:
        """How early it is closed where there are too many: those that wait for a header first, then the oldest."""
        return self.phase != "waiting", self.since

    def has_arrived(self) -> bool:
        """Return whether its client has sent something that was not read yet: then the delay is this server's."""
        watch = select.poll()
        watch.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(watch.poll(0))

    def check(self, now: float) -> str:
        """Close the connection if its client takes too long; gives what for, or nothing."""
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
        """Answer without having read a request, and close."""
        body = json.dumps({"detail": sentence}).encode()
        reason = {408: "Request Timeout", 503: "Service Unavailable"}[status]
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """A server that closes slow connections in time, and the slowest ones where there are too many."""

    def __init__(self, config: uvicorn.Config, tally: Tally) -> None:
        super().__init__(config)
        self.most = most_connections()
        self._tally = tally
        config.http = cast(Any, self._connection)
        config.backlog = AT_ONCE

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        for listener in sockets or []:
            if isinstance(listener, Listener):
                listener.on_full = self._without_descriptor
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Look once a second at every connection."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in self._connections():
                if why := connection.check(now):
                    self._tally.add(why)
            self._tally.tell(now, len(self.server_state.connections))
        return await super().on_tick(counter)

    def make_room(self, newest: Connection) -> None:
        """Close the slowest connections where there are too many; the newest, where all others are being answered."""
        if len(self.server_state.connections) > self.most and not self._close_slowest(newest):
            self._tally.add("refused")
            newest.refuse(503, f"{self.most} connections are open, and all are being answered. Try again in a second.")

    def _without_descriptor(self) -> None:
        self._tally.add("without_descriptor")
        self._close_slowest()

    def _close_slowest(self, newest: Connection | None = None) -> int:
        waiting = [each for each in self._connections() if each.phase != "answering" and each is not newest]
        early = heapq.nsmallest(4 * AT_ONCE, waiting, key=lambda each: each.patience)
        slowest = [each for each in early if not each.has_arrived()][:AT_ONCE]
        for connection in slowest:
            self.server_state.connections.discard(connection)  # its transport closes at the next turn of the loop
            connection.transport.abort()
        if slowest:
            self._tally.add("made_room", len(slowest))
        return len(slowest)

    def _connections(self) -> list[Connection]:
        return [each for each in self.server_state.connections if isinstance(each, Connection)]

    def _connection(self, **options: Any) -> Connection:
        return Connection(self, **options)
