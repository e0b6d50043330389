"""Ingest that is killed at any moment loses nothing, leaves nothing half-written to be read, and goes on.

`MEDLOOP_KILLS=100 pytest tests/components/ingest/test_kills.py` kills it more often than the suite does.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.shared.contracts import Manifest, file_digest
from components.shared.storage.store import open_store
from tests.components.ingest.test_ingest import KEY, Scans, ingest, merged
from tests.components.shared.images import encoded, gray
from tests.components.shared.steps import contents

KILLS = int(os.environ.get("MEDLOOP_KILLS", "8"))


@pytest.fixture
def scans(tmp_path: Path) -> Scans:
    """Enough images for several shards."""
    made = Scans(tmp_path / "scans")
    for number in range(400):
        made.add(f"{'AB'[number % 2]}/p{number // 2}_{number}.png", encoded(gray(number, side=120)))
    return made


def begin(scans: Scans, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "components", "ingest", "--store", str(home / "store"), "--portion"]
    command += [str(home / "portion"), "--source", str(scans.root), "--revision", scans.revision, "--key-id", KEY.id]
    with (home / "said").open("wb") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)


def damaged(store: Path) -> Iterator[str]:
    """Objects that do not hold what their names say."""
    for path in (store / "objects").rglob("*"):
        if path.is_file() and file_digest(path) != path.name:
            yield path.name


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * KILLS)
def test_killed_at_any_moment_it_goes_on(scans: Scans, tmp_path: Path) -> None:
    undisturbed = open_store(str(tmp_path / "undisturbed"))
    begun = time.monotonic()
    wanted = contents(undisturbed.uri, ingest(undisturbed, scans).outputs["dataset"])
    usual = time.monotonic() - begun + 1.0  # and the start of Python
    chance, kills, rounds, ended_by_itself = random.Random(7), 0, 0, 0
    while kills < KILLS:
        rounds += 1
        home = tmp_path / f"home-{rounds}"
        home.mkdir()
        while True:
            process = begin(scans, home)
            try:
                status = process.wait(chance.uniform(0.2, usual) if kills < KILLS else None)
            except subprocess.TimeoutExpired:
                kills += 1
                if kills % 2:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()  # its decoding processes are left alone, and end themselves
                process.wait()
                assert list(damaged(home / "store")) == []
                continue
            assert status == 0, (home / "said").read_text()
            ended_by_itself += 1
            break
        store = open_store(str(home / "store"))
        portion = Manifest.decode((home / "portion").read_bytes(), "portion")
        done = merged(store, [type("Given", (), {"outputs": {"portion": portion}})()])
        assert contents(store.uri, done.outputs["dataset"]) == wanted
        assert list(damaged(home / "store")) == []
    assert ended_by_itself == rounds


@pytest.mark.slow
def test_decoding_processes_end_with_the_one_that_began_them(scans: Scans, tmp_path: Path) -> None:
    process = begin(scans, tmp_path)
    deadline = time.monotonic() + 30
    while not list((tmp_path / "store" / "partial").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid)
