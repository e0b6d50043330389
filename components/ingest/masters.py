"""The masters of a source's files: what was decoded before is taken from the store, the rest decoded side by side."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from components.ingest import records
from components.ingest.decode import decode
from components.ingest.groups import Group, overlapping
from components.ingest.records import Masters
from components.shared.pixels import Decoding
from components.shared.source import Source
from components.shared.store import Store

AT_ONCE = 8
"""How many records are read side by side."""


def masters(store: Store, source: Source, groups: Sequence[Group], how: Decoding) -> Iterator[Masters]:
    """The masters of each group: known ones first, the others as they get done."""
    where = records.place(how)
    known = records.names(store, where)
    waiting = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        looked_up = pool.map(lambda each: records.unchanged(store, where, each), groups)
        for group, found in zip(groups, looked_up, strict=True):
            if found:
                yield found
            else:
                waiting.append(group)
    tasks = [(group, overlapping(known, group), how, store.uri, source.address) for group in waiting]
    workers = min(len(tasks), processors())
    if workers <= 1:
        for task in tasks:
            yield decode(*task)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _end_with, (os.getpid(),)) as processes:
        pending = [processes.submit(decode, *task) for task in tasks]
        try:
            for future in as_completed(pending):
                yield future.result()
        except BrokenProcessPool:
            raise RuntimeError(
                f"One of {workers} decoding processes was killed, likely for want of memory. Give the step more memory "
                "or fewer processors, and run again: what was decoded is kept."
            ) from None
        finally:
            processes.shutdown(wait=False, cancel_futures=True)


def processors(limits: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processors there are for this process: a container may have leave to use few of its machine's."""
    there = len(os.sched_getaffinity(0))
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # of today's and of older systems
        try:
            quota, period = " ".join((limits / name).read_text().strip() for name in names).split()
            if float(quota) > 0:
                return max(1, min(there, round(float(quota) / float(period))))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return there


def _end_with(parent: int) -> None:
    """End this process when the one that began it is gone, however it went."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
