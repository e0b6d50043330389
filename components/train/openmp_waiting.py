"""Shortens how long OpenMP's waiting threads occupy a core while other processes need it.

PyTorch's threads meet several hundred times a step. GNU's OpenMP, which PyTorch brings, lets a thread that waits for
the others look 300,000 times (milliseconds) before it sleeps. That is fastest on a quiet machine. Beside other
processes the waiting thread often occupies the core that the late thread needs, and training becomes many times slower.
The number of threads cannot follow the load: it changes the last digits of sums, and so the weights.

GNU's OpenMP looks only 100 times where the process has more OpenMP threads than processors. Idle teams of threads
beside the working one bring that about, at any moment and without a change of any result.

Two threads on two processors that are both busy are still late for each other most of the time. They are faster on
one processor; since they then wait for each other, only a try shows whether the other has become free.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from pathlib import Path
from types import TracebackType

import torch

TASKS = Path("/proc/self/task")
INTERVAL = 0.5
"""Seconds between two measurements."""
FULL, BUSY, QUIET = 0.6, 0.2, 0.1
"""Seconds per second for which threads waited for a core. Above the first, every processor is busy, above the second
some are, below the third the machine is quiet."""
SHORTEST, LONGEST = 5.0, 80.0
"""Seconds for which the machine must be quiet before threads wait as usual again. Each relapse doubles them."""
PARALLEL = 2**20
"""PyTorch divides work on so many numbers among its threads."""
MOST = 64
"""Teams at most: on a machine with many more processors than threads, a waiting thread is seldom in the way."""


class ShortSpinning:
    """While this context lasts, waiting threads sleep soon whenever the machine is busy."""

    def __init__(self, tasks: Path = TASKS) -> None:
        self._tasks = tasks
        self._begin: dict[str, float] = {}
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="spinning", daemon=True)

    def __enter__(self) -> ShortSpinning:
        self._begin = seconds_waited(self._tasks)
        if teams() and self._begin:
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def _watch(self) -> None:
        idle: list[IdleTeam] = []
        together, processors = False, os.sched_getaffinity(0)
        patience, quiet_since = SHORTEST, time.monotonic()
        before, begun = self._begin, time.monotonic()
        while not self._ended.wait(INTERVAL):
            after, now = seconds_waited(self._tasks), time.monotonic()
            share = sum(after[task] - before[task] for task in after.keys() & before.keys()) / (now - begun)
            before, begun = after, now
            if share > QUIET and not together:
                quiet_since = now
            if share > BUSY and not idle:
                idle = [IdleTeam() for _ in range(teams())]
            elif share > FULL and len(processors) == torch.get_num_threads() == 2 and not together:
                together = True
                use_processors({min(processors)})
            elif idle and now - quiet_since > patience:
                patience = min(2 * patience, LONGEST)
                if together:
                    together, quiet_since = False, now
                    use_processors(processors)
                else:
                    while idle:
                        idle.pop().end()
        if together:
            use_processors(processors)
        while idle:
            idle.pop().end()


def teams() -> int:
    """Return how many idle teams make more OpenMP threads than processors; 0 where no thread waits for another."""
    threads, processors = torch.get_num_threads(), len(os.sched_getaffinity(0))
    needed = math.ceil((processors + 1 - threads) / (threads - 1)) if threads > 1 else 0
    return max(1, needed) if threads > 1 and needed <= MOST else 0


class IdleTeam:
    """OpenMP threads that do nothing, but count."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="idle team", daemon=True)
        self._thread.start()
        self._ready.wait()

    def _wait(self) -> None:
        torch.zeros(PARALLEL).exp_()  # each thread that has begun parallel work has a team of its own until it ends
        self._ready.set()
        self._ended.wait()

    def end(self) -> None:
        """End the threads."""
        self._ended.set()
        self._thread.join()


def use_processors(processors: set[int]) -> None:
    """Let all threads of this process run on these processors only."""
    for task in TASKS.iterdir():
        with contextlib.suppress(OSError):  # the thread has just ended
            os.sched_setaffinity(int(task.name), processors)


def seconds_waited(tasks: Path) -> dict[str, float]:
    """Return the seconds for which each thread was ready to run and had no core; empty where Linux does not count."""
    waits = {}
    for path in tasks.glob("*/schedstat"):
        try:
            waits[path.parent.name] = int(path.read_text(encoding="ascii").split()[1]) / 1e9
        except (OSError, ValueError, IndexError):  # the thread has just ended
            continue
    return waits
