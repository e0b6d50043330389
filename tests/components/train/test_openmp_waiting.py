"""Waiting threads sleep soon beside other processes, as usual on a quiet machine, and change no weight either way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from components.train import openmp_waiting
from components.train.openmp_waiting import IdleTeam, ShortSpinning, seconds_waited, teams
from tests.components.train.test_training_loop import Kept, go, same


def tasks_that(root: Path, waits: float) -> None:
    """Have a thread's record say for how long it has waited."""
    (root / "7").mkdir(exist_ok=True)
    part = root / "7" / "part"
    part.write_text(f"1000 {int(waits * 1e9)} 5\n")
    part.rename(root / "7" / "schedstat")


def idle_teams() -> int:
    return sum(thread.name == "idle team" for thread in threading.enumerate())


def until(count: int) -> None:
    deadline = time.monotonic() + 60
    while idle_teams() != count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_idle_teams_come_when_threads_wait_for_a_core_and_go_when_they_no_longer_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openmp_waiting, "INTERVAL", 0.01)
    monkeypatch.setattr(openmp_waiting, "SHORTEST", 1.0)  # long enough for a busy machine to see the teams
    monkeypatch.setattr(openmp_waiting, "teams", lambda: 2)
    tasks_that(tmp_path, 0)
    with ShortSpinning(tmp_path):
        for waits in (1000, 2000):
            tasks_that(tmp_path, waits)
            until(2)
            until(0)
        tasks_that(tmp_path, 3000)
        until(2)
    assert idle_teams() == 0


def test_two_threads_share_a_processor_while_both_are_busy_and_then_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[set[int]] = []
    monkeypatch.setattr(openmp_waiting, "INTERVAL", 0.01)
    monkeypatch.setattr(openmp_waiting, "SHORTEST", 0.2)
    monkeypatch.setattr(openmp_waiting, "teams", lambda: 1)
    monkeypatch.setattr(openmp_waiting, "use_processors", used.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5})
    tasks_that(tmp_path, 0)
    waits, deadline = 0, time.monotonic() + 60
    with ShortSpinning(tmp_path):
        while len(used) < 3:
            assert time.monotonic() < deadline
            waits += 1000
            tasks_that(tmp_path, waits)
            time.sleep(0.01)
    assert used[:3] == [{3}, {3, 5}, {3}]
    assert used[-1] == {3, 5}, "in the end every processor is free to use again"


@pytest.mark.parametrize(
    ("threads", "processors", "count"), [(1, 2, 0), (2, 2, 1), (2, 4, 3), (4, 4, 1), (4, 8, 2), (3, 2, 1), (2, 256, 0)]
)
def test_teams_make_more_threads_than_processors(
    threads: int, processors: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    assert teams() == count
    assert count == 0 or threads + count * (threads - 1) > processors


def test_nothing_is_watched_where_no_thread_waits_or_linux_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openmp_waiting, "teams", lambda: 1)
    for _ in range(2):
        with ShortSpinning(tmp_path):
            assert "spinning" not in {thread.name for thread in threading.enumerate()}
        tasks_that(tmp_path, 0)
        monkeypatch.setattr(openmp_waiting, "teams", lambda: 0)


def test_the_kernels_record_is_read() -> None:
    found = seconds_waited(Path("/proc/self/task"))
    if not found:
        pytest.skip("this Linux does not count how long a thread waits for a core")
    assert str(threading.get_native_id()) in found
    assert all(seconds >= 0 for seconds in found.values())


def test_the_weights_are_the_same_with_and_without_idle_teams() -> None:
    plain, _ = go(Kept(), epochs=1)
    team = IdleTeam()
    try:
        beside, _ = go(Kept(), epochs=1)
    finally:
        team.end()
    assert same(plain, beside)
