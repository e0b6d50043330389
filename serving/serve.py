"""The service as a program: bind the port, follow the store, and answer requests until a signal arrives."""

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
from serving.app import create_app
from serving.connection_limits import Listener, Repeats, Server, Tally, raise_descriptors
from serving.decoder_pool import Decoders
from serving.deployment import Deployment
from serving.request_limits import Limits

log = logging.getLogger("medloop.serve")

GRACE = 20
"""Seconds for requests in progress to finish; Kubernetes kills after 30."""


def serve(store_uri: str, host: str = "127.0.0.1", port: int = 8080, poll: float = 2.0) -> int:
    """Serve the model that is in service in a store until SIGTERM or Ctrl-C; return the exit status.

    Call this from the main thread, after logging is configured. Port 0 uses a free port; the log contains its number.
    """
    try:
        if not 0.05 <= poll <= 3600:
            raise UsageError(f"poll is {poll:g} seconds; it must be from 0.05 to 3600. Set it within that range.")
        raise_descriptors()
        signing.verifier()  # reports an invalid key before the log is read
        listener = bind(host, port)  # reports a port in use before a model is loaded
        with listener:
            _run(listener, Deployment(open_store(store_uri), poll))
    except (MedloopError, OSError) as error:
        log.error(getattr(error, "strerror", None) or str(error), extra={"fields": {"stage": "serve"}})
        return exit_code(error)
    return 0


def bind(host: str, port: int) -> Listener:
    """Return a listening socket; raise UsageError or OSError with the reason if that is not possible."""
    if not 0 <= port <= 65535:
        raise UsageError(f"The port is {port}; it must be from 0 (any free port) to 65535. Choose another.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"Port {port} on {host} is in use by another program. Stop that program, or choose another port"
        elif error.errno == errno.EACCES:
            reason = f"Port {port} on {host} needs privileges that this user lacks. Choose one from 1024 up"
        else:
            reason = (
                f"The address {host}, port {port}, cannot be used ({error.strerror}). Use an address of this machine"
            )
        raise OSError(error.errno, f"{reason} (--port, --host).") from None
    # Connections inherit this. asyncio sets it only on sockets created with an explicit protocol; without it every
    # response waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Listener(listener)


def create_server(deployment: Deployment, limits: Limits | None = None) -> Server:
    """Return a server for a deployment; it is not running yet."""
    tally = Tally()
    app = create_app(deployment, limits, tally)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,  # Guard logs requests, without addresses that clients control
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=GRACE,
    )
    return _Server(config, tally, app.state.decoders)


class _Server(Server):
    """A server that abandons slow files when it stops, and finishes other requests."""

    def __init__(self, config: uvicorn.Config, tally: Tally, decoders: Decoders) -> None:
        super().__init__(config, tally)
        self._decoders = decoders

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop after the requests in progress are answered."""
        self._decoders.hurry()
        await super().shutdown(sockets)


def _run(listener: Listener, deployment: Deployment) -> None:
    server = create_server(deployment)
    _configure_logs()
    with _signal_handlers(server, deployment), deployment:
        serving = deployment.state.serving
        version = serving.version if serving else "no model yet"
        events.event(f"serving {version} at {_url(listener)}", "serve")
        server.run(sockets=[listener])
    events.event("ended", "serve")


def _configure_logs() -> None:
    """Send the server's messages to medloop's log, and drop those of image decoders."""
    logging.getLogger("uvicorn").handlers[:] = logging.getLogger("medloop").handlers
    logging.getLogger("uvicorn").propagate = False
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(Repeats())
    # Decoders quote headers in their warnings; suppressing these only during decoding is not thread-safe.
    warnings.simplefilter("ignore")
    for name in ("pydicom", "PIL"):
        logging.getLogger(name).handlers[:] = [logging.NullHandler()]
        logging.getLogger(name).propagate = False


@contextmanager
def _signal_handlers(server: uvicorn.Server, deployment: Deployment) -> Iterator[None]:
    """Stop the service on SIGTERM and Ctrl-C, even while it loads; uvicorn raises them again after it has stopped."""

    def stop(_: int, __: FrameType | None) -> None:
        server.should_exit = True
        deployment.hurry()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
