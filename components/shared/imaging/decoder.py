"""A process that decodes foreign files: it can be killed at any moment, and each file has limits of time and memory.

The parent makes a `Template`, and decoders from that. A decoder calls one function for each job. That function decodes
each file under `limited(...)`: the kernel ends the process when the file takes too much, whatever the library in C is
doing. Answers are bytes: what they mean is for those to say who wrote the function.
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
"""CPU seconds that decoding a file may take."""
SECONDS_PER_MIB = 0.5
"""CPU seconds for each MiB of a DICOM or NIfTI file, where that is more: it may hold many images."""
MEMORY = 352 * 2**20
"""Bytes of memory that decoding a file may take, the file itself not counted."""
MEMORY_PER_BYTE = 4
"""Bytes of memory for each byte of a DICOM or NIfTI file, where that is more."""
PATIENCE = 30
"""A file may take so many times its CPU seconds by the wall clock: machines may be busy, and a decoder may hang."""
VIEW, REFUSAL = b"v", b"r"
"""With which byte the answer begins where a file gives a view, and where it is refused with a sentence."""

_ONE_IMAGE = (b"\x89PNG", b"\xff\xd8")
_READ_PER_SECOND = 2**24
_NO_MEMORY = 77
_NOTE = 64
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None)
_PAGE, _TICKS = resource.getpagesize(), os.sysconf("SC_CLK_TCK")


class Limits(NamedTuple):
    """What decoding one file may take."""

    seconds: float
    memory: int


def limits(data: bytes) -> Limits:
    """Return the limits for a file with this content."""
    if data.startswith(_ONE_IMAGE):
        return Limits(SECONDS, MEMORY)
    return Limits(max(SECONDS, SECONDS_PER_MIB * (len(data) >> 20)), max(MEMORY, MEMORY_PER_BYTE * len(data)))


class EndedError(Exception):
    """The process ended during a job. `why` is time, memory, crash or killed; `note` names the file, or is empty."""

    def __init__(self, why: str, note: str, most: Limits) -> None:
        super().__init__(why)
        self.why, self.note, self.most = why, note, most

    def sentence(self) -> str:
        """Return what is wrong with the file, what is allowed, and what to do."""
        if self.why == "time":
            return (
                f"decoding it takes more than {self.most.seconds:g} seconds of CPU time, the limit for a file of its "
                "kind and size: save it again as a plain PNG, JPEG or uncompressed DICOM file, or as several files"
            )
        if self.why == "memory":
            return (
                f"decoding it takes more than {self.most.memory >> 20} MiB of memory, the limit for a file of its kind "
                "and size: save it again with fewer pixels, or as several files"
            )
        return "the image cannot be decoded (its decoder crashed): save it again from its source"


class Template:
    """A process with all libraries imported, of which decoders are copies: a new one takes milliseconds.

    Each decoder calls `function` ("module:name") for each job; `function` takes the job's arguments and gives bytes.
    Make the template in a thread that lives as long as it is needed: it is killed when that thread ends.
    """

    def __init__(self, function: str) -> None:
        self._door = threading.Lock()
        self._control, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from components.shared.imaging.decoder import main; main()"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, function, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )

    def copied(self, descriptors: tuple[int, int]) -> int:
        """Have a copy made that holds these descriptors. It is a child of this process; gives its id."""
        with self._door, suppress(OSError):
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)  # so that the copy, an orphan, becomes this process's own child
            try:
                socket.send_fds(self._control, [b"1"], descriptors)
                if found := self._control.recv(8):
                    return int.from_bytes(found, "little")
            finally:
                _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0)
        raise EndedError("crash", "", Limits(0, 0))

    def close(self) -> None:
        """End the template; its decoders go on."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class Decoder:
    """A process that does jobs, one after another."""

    def __init__(self, template: Template) -> None:
        ours, theirs = socket.socketpair()
        shared = os.memfd_create("medloop-note")
        os.ftruncate(shared, mmap.PAGESIZE)
        self._note = mmap.mmap(shared, mmap.PAGESIZE)
        self._connection = Connection(ours.detach())
        self._status: int | None = None
        try:
            self._pid = template.copied((theirs.fileno(), shared))
        finally:
            theirs.close()
            os.close(shared)

    @property
    def seconds(self) -> float:
        """The CPU time that the process has taken."""
        with suppress(OSError):
            fields = Path(f"/proc/{self._pid}/stat").read_bytes().rpartition(b")")[2].split()
            return (int(fields[11]) + int(fields[12])) / _TICKS
        return 0.0

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the answer, or the end, has come."""
        return self._connection.fileno()

    def send(self, *job: Any) -> None:
        """Hand the process a job; the answer is to be received before the next one."""
        with suppress(BrokenPipeError, ConnectionResetError):  # `receive` then tells why
            self._connection.send(job)

    def receive(self) -> bytes:
        """Return the answer to the job; raise EndedError if the process ended."""
        try:
            return self._connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            note, seconds, memory = (self._note[:_NOTE].rstrip(b"\0").decode() or "|0|0").split("|")
            raise EndedError(_why(self._ended()), note, Limits(float(seconds), int(memory))) from None

    def pause(self, paused: bool) -> None:
        """Let the process stand still, or go on."""
        self._signal(signal.SIGSTOP if paused else signal.SIGCONT)

    def kill(self) -> None:
        """End the process, whatever it does; `receive` in another thread then raises EndedError."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """End the process and let go of it."""
        self.kill()
        self._ended()
        self._connection.close()
        self._note.close()

    def _signal(self, number: int) -> None:
        if self._status is None:  # else the id may be another's by now
            os.kill(self._pid, number)

    def _ended(self) -> int:
        """Wait for the end of the process; gives its status, or the signal that ended it, negative."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status


def _why(status: int) -> str:
    if status in (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGALRM):
        return "time"
    if status == _NO_MEMORY:
        return "memory"
    return "killed" if status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP) else "crash"


# What follows runs in the process itself.

_shared_note: mmap.mmap | None = None


@contextmanager
def limited(most: Limits, note: str = "", beside: int = 0) -> Iterator[None]:
    """Decode one file: the process ends where that takes more than these limits. `note` is what the parent is told.

    `beside` is how many bytes other threads of the process may read meanwhile, which count as well. Outside of a
    decoder's process nothing is limited.
    """
    if _shared_note is None:
        yield
        return
    told = f"{note}|{most.seconds}|{most.memory}".encode()
    assert len(told) <= _NOTE
    _shared_note[:_NOTE] = told.ljust(_NOTE, b"\0")
    seconds, memory = most.seconds + beside / _READ_PER_SECOND, most.memory + 2 * beside
    before = resource.getrlimit(resource.RLIMIT_DATA)
    room = _data() + memory
    resource.setrlimit(
        resource.RLIMIT_DATA, (room if before[1] == resource.RLIM_INFINITY else min(room, before[1]), before[1])
    )
    signal.setitimer(signal.ITIMER_PROF, seconds)  # these signals end the process, also within a library
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds)
    try:
        yield
    except MemoryError:
        os._exit(_NO_MEMORY)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, before)
        _shared_note[:_NOTE] = bytes(_NOTE)


def _data() -> int:
    """The bytes of private memory that this process has taken."""
    with Path("/proc/self/statm").open("rb") as file:
        return int(file.read().split()[5]) * _PAGE


def main() -> None:
    """Be a template until the parent is gone."""
    function, connected, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    control = socket.socket(fileno=connected)
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # it would hold pixels
    # Libraries in C may print what a header holds: only Python's own words go where the parent's go.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    gc.freeze()
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not asked:
            return
        between = os.fork()
        if not between:
            _copy(control, parent, work, *descriptors)
        os.waitpid(between, 0)
        for each in descriptors:
            os.close(each)


def _copy(control: socket.socket, parent: int, work: Callable[..., bytes], connected: int, shared: int) -> NoReturn:
    """Become a decoder: a child of a child that ends at once, and therefore soon the parent's own."""
    global _shared_note  # noqa: PLW0603 - a process is a decoder's from its start to its end
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
        connection = Connection(connected)
        with suppress(EOFError, OSError):
            while True:
                job = connection.recv()
                connection.send_bytes(work(*job))
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
