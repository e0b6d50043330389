"""Decode untrusted files in a separate process, with time and memory limits for each file.

The parent process creates a `Template`, and from it decoders. A decoder calls one function for each job. That function
decodes each file within `limit_resources(...)`: the kernel ends the process when the file exceeds a limit, even within
a C library. Answers are bytes whose meaning the function defines.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

SECONDS = 4.0
"""Maximum CPU seconds per file."""
SECONDS_PER_MIB = 0.5
"""Maximum CPU seconds per MiB of a DICOM or NIfTI file, if that is more: it may contain many images."""
MEMORY = 352 * 2**20
"""Maximum memory per file in bytes, not counting the file itself."""
MEMORY_PER_BYTE = 4
"""Maximum memory per byte of a DICOM or NIfTI file, if that is more."""
WALL_CLOCK_FACTOR = 30
"""Maximum wall-clock time of a file, as a multiple of its CPU seconds: machines may be busy, and decoders may hang."""
VIEW, REFUSAL = b"v", b"r"
"""First byte of the answer for a file that gives a view, and for a refused file, whose answer is the reason."""

_ONE_IMAGE = (b"\x89PNG", b"\xff\xd8")
_READ_PER_SECOND = 2**24
_NO_MEMORY = 77
_NOTE = 64
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)
_PAGE, _TICKS = resource.getpagesize(), os.sysconf("SC_CLK_TCK")


class Limits(NamedTuple):
    """Limits for decoding one file."""

    seconds: float
    memory: int


def limits(data: bytes) -> Limits:
    """Return the limits for a file with this content."""
    if data.startswith(_ONE_IMAGE):
        return Limits(SECONDS, MEMORY)
    return Limits(max(SECONDS, SECONDS_PER_MIB * (len(data) >> 20)), max(MEMORY, MEMORY_PER_BYTE * len(data)))


class EndedError(Exception):
    """The process ended by time, memory, crash or kill; `note` names the file."""

    def __init__(self, cause: str, note: str, allowed: Limits) -> None:
        super().__init__(cause)
        self.cause, self.note, self.allowed = cause, note, allowed

    def sentence(self) -> str:
        """Return what is wrong with the file, what is allowed, and what to do."""
        if self.cause == "time":
            return (
                f"decoding it takes more than {self.allowed.seconds:g} seconds of CPU time, the limit for a file of "
                "its type and size: save it again as a plain PNG, JPEG or uncompressed DICOM file, or as several files"
            )
        if self.cause == "memory":
            return (
                f"decoding it takes more than {self.allowed.memory >> 20} MiB of memory, the limit for a file of its "
                "type and size: save it again with fewer pixels, or as several files"
            )
        return "the image cannot be decoded (its decoder crashed): save it again from its source"


class Template:
    """A process with all libraries imported, from which decoders are forked fast.

    Each decoder calls `function` ("module:name") for each job; `function` takes the job's arguments and returns bytes.
    Create the template in a thread that lives as long as the template is needed: it is killed when that thread ends.
    """

    def __init__(self, function: str) -> None:
        self._lock = threading.Lock()
        self._control, child_end = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from components.shared.imaging.decode_sandbox import main; main()"
        )
        with child_end:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, function, str(child_end.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(child_end.fileno(),),
            )

    def fork(self, descriptors: tuple[int, int]) -> int:
        """Fork a decoder with these descriptors as a child; return its process id."""
        with self._lock, suppress(OSError):
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)  # makes the orphaned decoder a child of this process
            try:
                socket.send_fds(self._control, [b"1"], descriptors)
                if answer := self._control.recv(8):
                    return int.from_bytes(answer, "little")
            finally:
                _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0)
        raise EndedError("crash", "", Limits(0, 0))

    def close(self) -> None:
        """End the template; its decoders continue."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class Decoder:
    """A process that runs jobs one after another."""

    def __init__(self, template: Template) -> None:
        parent_end, child_end = socket.socketpair()
        shared = os.memfd_create("medloop-note")
        os.ftruncate(shared, mmap.PAGESIZE)
        self._note = mmap.mmap(shared, mmap.PAGESIZE)
        self._connection = Connection(parent_end.detach())
        self._status: int | None = None
        try:
            self._pid = template.fork((child_end.fileno(), shared))
        finally:
            child_end.close()
            os.close(shared)

    @property
    def seconds(self) -> float:
        """CPU time used by the process."""
        with suppress(OSError):
            fields = Path(f"/proc/{self._pid}/stat").read_bytes().rpartition(b")")[2].split()
            return (int(fields[11]) + int(fields[12])) / _TICKS
        return 0.0

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the process answers or ends."""
        return self._connection.fileno()

    def send(self, *job: Any) -> None:
        """Send a job to the process. Receive its answer before sending the next one."""
        with suppress(BrokenPipeError, ConnectionResetError):  # `receive` then raises EndedError
            self._connection.send(job)

    def receive(self) -> bytes:
        """Return the answer to the job; raise EndedError if the process ended."""
        try:
            return self._connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            note, seconds, memory = (self._note[:_NOTE].rstrip(b"\0").decode() or "|0|0").split("|")
            raise EndedError(_cause(self._wait()), note, Limits(float(seconds), int(memory))) from None

    def pause(self, paused: bool) -> None:
        """Suspend the process, or resume it."""
        self._signal(signal.SIGSTOP if paused else signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process; `receive` in another thread then raises EndedError."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill the process and release its resources."""
        self.kill()
        self._wait()
        self._connection.close()
        self._note.close()

    def _signal(self, number: int) -> None:
        if self._status is None:  # otherwise the id may belong to another process
            os.kill(self._pid, number)

    def _wait(self) -> int:
        """Wait for the end; return the status, or the negative number of the signal."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status


def _cause(status: int) -> str:
    if status in (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGALRM):
        return "time"
    if status == _NO_MEMORY:
        return "memory"
    return "killed" if status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP) else "crash"


# The following code runs in the template and in decoders.

_shared_note: mmap.mmap | None = None


@contextmanager
def limit_resources(allowed: Limits, note: str = "", read_ahead: int = 0) -> Iterator[None]:
    """End the process if decoding a file exceeds a limit; the parent gets `note`.

    `read_ahead` is the number of bytes that other threads may read meanwhile; it raises the limits. Outside
    a decoder's process nothing is limited.
    """
    if _shared_note is None:
        yield
        return
    note_bytes = f"{note}|{allowed.seconds}|{allowed.memory}".encode()
    assert len(note_bytes) <= _NOTE
    _shared_note[:_NOTE] = note_bytes.ljust(_NOTE, b"\0")
    seconds, memory = allowed.seconds + read_ahead / _READ_PER_SECOND, allowed.memory + 2 * read_ahead
    previous = resource.getrlimit(resource.RLIMIT_DATA)
    data_limit = _private_memory() + memory
    resource.setrlimit(
        resource.RLIMIT_DATA,
        (data_limit if previous[1] == resource.RLIM_INFINITY else min(data_limit, previous[1]), previous[1]),
    )
    signal.setitimer(signal.ITIMER_PROF, seconds)  # these signals end the process, even within a C library
    signal.setitimer(signal.ITIMER_REAL, WALL_CLOCK_FACTOR * seconds)
    try:
        yield
    except MemoryError:
        os._exit(_NO_MEMORY)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, previous)
        _shared_note[:_NOTE] = bytes(_NOTE)


def _private_memory() -> int:
    with Path("/proc/self/statm").open("rb") as file:
        return int(file.read().split()[5]) * _PAGE


def main() -> None:
    """Run as a template until the parent ends."""
    function, descriptor, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    control = socket.socket(fileno=descriptor)
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # dumps contain pixels
    # C libraries may print a header's content: discard their output, and keep that of Python.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    gc.freeze()
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not request:
            return
        intermediate = os.fork()
        if not intermediate:
            _become_decoder(control, parent, work, *descriptors)
        os.waitpid(intermediate, 0)
        for received in descriptors:
            os.close(received)


def _become_decoder(
    control: socket.socket, parent: int, work: Callable[..., bytes], descriptor: int, shared: int
) -> NoReturn:
    """Become a decoder by forking twice, so that the parent adopts this process."""
    global _shared_note  # noqa: PLW0603 - set once per process
    status = 1
    try:
        if os.fork():
            os._exit(0)
        while os.getppid() not in (parent, 1):
            time.sleep(0.0005)
        _end_with(parent)
        control.send(os.getpid().to_bytes(8, "little"))
        control.close()
        _shared_note = mmap.mmap(shared, mmap.PAGESIZE)
        connection = Connection(descriptor)
        with suppress(EOFError, OSError):
            while True:
                job = connection.recv()
                connection.send_bytes(work(*job))
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _end_with(parent: int) -> None:
    """Make the kernel kill this process when its parent ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
