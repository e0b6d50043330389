"""The service as a program: binds the port, follows the store, answers until it is told to end."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from components.shared.errors import MedloopError, UsageError, exit_code
from components.shared.ledger import signing
from components.shared.runtime import events
from components.shared.storage.store import open_store
from serving.app import Limits, create_app
from serving.connections import Listener, Repeats, Server, Tally, raise_descriptors
from serving.decoders import Decoders
from serving.deployment import Deployment

log = logging.getLogger("medloop.serve")

GRACE = 20
"""Seconds that requests in flight are given to finish; Kubernetes kills after 30."""


def serve(store_uri: str, host: str = "127.0.0.1", port: int = 8080, poll: float = 2.0) -> int:
    """Answer requests with what the store's log puts into service, until SIGTERM or Ctrl-C; gives the exit status.

    Call it from the main thread, once logging is configured. Port 0 takes a free one; the log tells which.
    """
    try:
        if not 0.05 <= poll <= 3600:
            raise UsageError(f"poll is {poll:g} seconds, and must be from 0.05 to 3600. Set it within that range.")
        raise_descriptors()
        signing.verifier()  # a key that is none is told now, and not as a log that cannot be read
        listener = bind(host, port)  # before all else: a port in use must not cost the loading of a model
        with listener:
            _answer(listener, Deployment(open_store(store_uri), poll))
    except (MedloopError, OSError) as error:
        log.error(getattr(error, "strerror", None) or str(error), extra={"fields": {"stage": "serve"}})
        return exit_code(error)
    return 0


def bind(host: str, port: int) -> Listener:
    """A socket that listens there, or an exception that says in a sentence why it cannot."""
    if not 0 <= port <= 65535:
        raise UsageError(f"The port is {port}, and must be from 0 (any free one) to 65535. Give another.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"Port {port} on {host} is in use by another program. Stop that one, or choose another port"
        elif error.errno == errno.EACCES:
            reason = f"Port {port} on {host} needs rights that this user lacks. Choose one from 1024 up"
        else:
            reason = f"The address {host}, port {port}, cannot be used ({error.strerror}). Give one of this machine's"
        raise OSError(error.errno, f"{reason} (--port, --host).") from None
    # Connections inherit this. asyncio sets it only on sockets made with an explicit protocol; without it every answer
    # waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Listener(listener)


def server_of(deployment: Deployment, limits: Limits | None = None) -> Server:
    """A server, not yet running, that answers for what is in service."""
    tally = Tally()
    app = create_app(deployment, limits, tally)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,  # the guard logs requests, without what a client may have put into the address
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=GRACE,
    )
    return _Server(config, tally, app.state.decoders)


class _Server(Server):
    """A server that gives up what takes long once it is to end, and lets the rest finish."""

    def __init__(self, config: uvicorn.Config, tally: Tally, decoders: Decoders) -> None:
        super().__init__(config, tally)
        self._decoders = decoders

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, once the requests in flight are answered."""
        self._decoders.hurry()
        await super().shutdown(sockets)


def _answer(listener: Listener, deployment: Deployment) -> None:
    server = server_of(deployment)
    _settle_logs()
    with _ending(server, deployment), deployment:
        serving = deployment.state.serving
        what = serving.version if serving else "no model yet"
        events.event(f"serving {what} at {_url(listener)}", "serve")
        server.run(sockets=[listener])
    events.event("ended", "serve")


def _settle_logs() -> None:
    """Send what the server says where medloop's events go, and nothing of what image decoders say."""
    logging.getLogger("uvicorn").handlers[:] = logging.getLogger("medloop").handlers
    logging.getLogger("uvicorn").propagate = False
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(Repeats())
    # Decoders quote headers in their warnings, and silencing these only while one decodes does not hold across threads.
    warnings.simplefilter("ignore")
    for name in ("pydicom", "PIL"):
        logging.getLogger(name).handlers[:] = [logging.NullHandler()]
        logging.getLogger(name).propagate = False


@contextmanager
def _ending(server: uvicorn.Server, deployment: Deployment) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the service, also while it is loading; uvicorn hands them on here once it has ended."""

    def end(_: int, __: FrameType | None) -> None:
        server.should_exit = True
        deployment.hurry()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
