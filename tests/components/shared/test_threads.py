"""How many threads a process may use follows from its processors, its cgroups' quotas and OMP_NUM_THREADS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.shared.runtime.threads import LIMIT, count_threads

V2 = "31 24 0:27 {root} /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n"
    "31 30 0:27 {root} /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
    "32 30 0:28 {root} /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
)


@pytest.fixture(autouse=True)
def _large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.delenv(LIMIT, raising=False)


def tree(root: Path, mounts: str, cgroup: str, files: dict[str, str]) -> Path:
    """A file system with these mounts, this process's cgroup, and these files below /sys/fs/cgroup."""
    whole = {"proc/self/mountinfo": mounts, "proc/self/cgroup": cgroup}
    whole |= {f"sys/fs/cgroup/{name}": text + "\n" for name, text in files.items()}
    for name, text in whole.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000", 64),
        ("200000 100000", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("250000 100000", 3),
        ("9900000 100000", 64),
        ("nonsense", 64),
        ("100000 0", 64),
        ("", 64),
    ],
)
def test_a_quota_is_rounded_up(quota: str, count: int, tmp_path: Path) -> None:
    root = tree(tmp_path, V2.format(root="/"), "0::/\n", {"cpu.max": quota})
    assert count_threads(root) == count


@pytest.mark.parametrize(("quota", "count"), [("-1", 64), ("200000", 2), ("250000", 3), ("50000", 1)])
@pytest.mark.parametrize(
    ("mount_root", "path", "folder"),
    [
        ("/", "/", ""),
        ("/docker/1a2b", "/docker/1a2b", ""),  # the container sees its own cgroup at the top
        ("/docker/1a2b", "/", ""),
        ("/", "/docker/1a2b", "docker/1a2b/"),
    ],
)
def test_older_systems_keep_the_quota_in_two_files(
    quota: str, count: int, mount_root: str, path: str, folder: str, tmp_path: Path
) -> None:
    files = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"}
    files = {f"cpu,cpuacct/{folder}{name}": text for name, text in files.items()}
    root = tree(tmp_path, V1.format(root=mount_root), f"5:memory:/else\n4:cpu,cpuacct:{path}\n0::/\n", files)
    assert count_threads(root) == count


@pytest.mark.parametrize(
    ("quotas", "count"),
    [
        ({"a.slice/b.scope": "300000 100000"}, 3),
        ({"a.slice": "200000 100000", "a.slice/b.scope": "max 100000"}, 2),
        ({"a.slice": "400000 100000", "a.slice/b.scope": "200000 100000"}, 2),
        ({"other.slice": "100000 100000"}, 64),
        ({"a.slice/b.scope/below": "100000 100000"}, 64),
    ],
)
def test_the_smallest_quota_above_a_process_counts(quotas: dict[str, str], count: int, tmp_path: Path) -> None:
    files = {f"{folder}/cpu.max": quota for folder, quota in quotas.items()}
    root = tree(tmp_path, V2.format(root="/"), "0::/a.slice/b.scope\n", files)
    assert count_threads(root) == count


def test_a_cgroup_outside_of_what_is_mounted_is_looked_up_at_the_top(tmp_path: Path) -> None:
    root = tree(tmp_path, V2.format(root="/"), "0::/../../a.slice\n", {"cpu.max": "200000 100000"})
    assert count_threads(root) == 2


def test_affinity_counts_where_there_are_no_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert count_threads(tmp_path) == 3
    root = tree(tmp_path, V2.format(root="/"), "0::/\n", {"cpu.max": "800000 100000"})
    assert count_threads(root) == 3


@pytest.mark.parametrize(("asked", "count"), [("1", 1), ("3", 3), ("100", 64), ("4,2", 4), ("0", 64), ("x", 64)])
def test_fewer_threads_can_be_asked_for(
    asked: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, asked)
    assert count_threads(tmp_path) == count


EVERYWHERE = """
import os, sys
from pathlib import Path
os.sched_getaffinity = lambda _: set(range(64))
from components.shared.runtime import threads
threads.count_threads.__defaults__ = (Path(sys.argv[1]),)
os.environ.update(threads.thread_variables())
import numpy, pyarrow, torch
from components.shared import inference
from serving.decoder_pool import Decoders
from serving.deployment import Deployment
from unittest import mock
import onnxruntime
about = {"classes": [], "preprocess": {}, "precisions": ["float32"]}
with mock.patch.object(inference, "read_bundle", lambda _: about):
    with mock.patch.object(onnxruntime, "InferenceSession") as session:
        inference.Model(Path(), graph=b"-")
print(torch.get_num_threads(), pyarrow.cpu_count(), session.call_args[0][1].intra_op_num_threads,
      Decoders(None)._processors, os.environ["OMP_NUM_THREADS"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("quota", [1, 2])
def test_a_container_with_few_processors_of_a_large_machine_uses_as_many_threads_everywhere(
    quota: int, tmp_path: Path
) -> None:
    root = tree(tmp_path, V2.format(root="/"), "0::/\n", {"cpu.max": f"{quota}00000 100000"})
    environment = {name: value for name, value in os.environ.items() if name != LIMIT}
    done = subprocess.run(
        [sys.executable, "-c", EVERYWHERE, str(root)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [str(quota)] * 5, done.stderr
