"""The number of threads of this process.

Python starts the thread pools of several libraries: OpenMP in PyTorch and scikit-learn, OpenBLAS in NumPy and SciPy,
Arrow, ONNX Runtime. By default each counts the processors of the whole machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from components.shared import environment

LIMIT = "OMP_NUM_THREADS"
"""OpenMP, OpenBLAS and Arrow read this variable when they are loaded."""


def count_threads(root: Path = Path("/")) -> int:
    """Return the number of threads that this process may use at once; at least 1.

    This is the smallest of: the processors that the process may run on, the CPU quotas of its cgroup and of the cgroups
    above it (rounded up), and OMP_NUM_THREADS. `root` is the folder of /proc and /sys.
    """
    processors = len(os.sched_getaffinity(0))
    quotas = [max(1, math.ceil(quota)) for quota in _quotas(root)]
    return min([processors, *quotas, *_read_limit(environment.get(LIMIT))])


def thread_variables() -> dict[str, str]:
    """Return the environment variables that limit libraries to `count_threads` threads.

    Set them before a library is loaded. Child processes inherit them.
    """
    return {LIMIT: str(count_threads())}


def _read_limit(text: str) -> list[int]:
    """Return the first number in OMP_NUM_THREADS, which may contain one for each level of nesting."""
    first = text.split(",", maxsplit=1)[0].strip()
    return [int(first)] if first.isdecimal() and int(first) > 0 else []


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas of this process, in processors."""
    paths = _cgroup_paths(root)
    for kind, options, mount_root, mount_point in _cgroup_mounts(root):
        controller = "" if kind == "cgroup2" else "cpu"
        if controller not in paths or (controller and controller not in options):
            continue
        folder = root / mount_point.lstrip("/")
        below = _relative(paths[controller], mount_root)
        for depth in range(len(below.parts) + 1):
            yield from _quota(folder.joinpath(*below.parts[:depth]), kind)


def _quota(folder: Path, kind: str) -> Iterator[float]:
    names = ("cpu.max",) if kind == "cgroup2" else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    try:
        quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
        if quota != "max" and int(quota) > 0:  # -1 means no quota in cgroup v1
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return  # no quota: the root of the tree has no such file


def _cgroup_paths(root: Path) -> dict[str, str]:
    """Return the path of this process's cgroup for each controller; the controller of cgroup v2 is ""."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _cgroup_mounts(root: Path) -> Iterator[tuple[str, list[str], str, str]]:
    """Yield type, options, root and mount point of each cgroup file system."""
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            mount_root, mount_point = mount.split()[3:5]
            yield kind, options.split(","), mount_root, mount_point


def _relative(path: str, mount_root: str) -> PurePosixPath:
    """Return the path of a cgroup below a mount point; containers often see their own cgroup as the root."""
    inside = PurePosixPath(path)
    if ".." in inside.parts or not inside.is_relative_to(mount_root):
        return PurePosixPath()
    return inside.relative_to(mount_root)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or a container without /proc
        return []
