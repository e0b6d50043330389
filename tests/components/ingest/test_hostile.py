"""Files that would cost ingest much are set aside with a sentence, and the others kept as if they were not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.shared.storage.store import Store, open_store
from tests.components.ingest.test_ingest import KEY, Scans, everything, ingest, quarantine, rows
from tests.components.shared import hostile
from tests.components.shared.images import dicom, encoded, gray

BAD = {
    "crash": ("lossless JPEG that brings its decoder down", "its decoder crashed"),
    "scans": ("progressive JPEG, 90,000 empty scans", "has 90,006 scans; the maximum is 64"),
    "memory": ("gzip, 1 GB of voxels in 1 MB", "more than 352 MiB of memory"),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def scans_at(root: Path) -> Scans:
    made = Scans(root)
    for number in range(24):
        made.add(f"{'AB'[number % 2]}/p{number // 2}_{number}.png", encoded(gray(number, number % 2)))
    made.add("A/p90_1.dcm", dicom(hostile.SMALL, bits=16))
    return made


@pytest.mark.slow
def test_hostile_files_are_set_aside_and_change_nothing_else(store: Store, tmp_path: Path) -> None:
    made = scans_at(tmp_path / "scans")
    undisturbed = ingest(open_store(str(tmp_path / "other")), made)
    for name, (kind, _) in BAD.items():
        made.add(f"A/{name}_1.dcm", hostile.KINDS[kind]())
    first = ingest(store, made)
    assert rows(store, first) == rows(open_store(str(tmp_path / "other")), undisturbed)
    aside = quarantine(store, first)
    for name, (_, words) in BAD.items():
        assert words in aside[KEY.hash("image", f"A/{name}_1.dcm")][1]
    made.add("B/late_1.png", encoded(gray(77)))
    second = ingest(store, made)
    fresh = open_store(str(tmp_path / "fresh"))
    assert everything(fresh, ingest(fresh, made)) == everything(store, second)


@pytest.mark.slow
def test_what_was_decoded_before_a_hostile_file_came_is_not_decoded_again(store: Store, tmp_path: Path) -> None:
    made = scans_at(tmp_path / "scans")
    made.settle()
    first = ingest(store, made)
    for number in range(3):
        made.add(f"A/crash{number}_1.dcm", hostile.crashing() + b"\0" * 2 * number)
    second = ingest(store, made)
    assert rows(store, second) == rows(store, first)
    assert len(quarantine(store, second)) == 3


@pytest.mark.slow
def test_an_ingest_that_decodes_a_hostile_file_ends_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    for number in range(2):
        made.add(f"{'AB'[number]}/p{number}_1.dcm", hostile.items(5_000_000) + b"\0" * number)
    command = [sys.executable, "-m", "components", "ingest", "--store", str(tmp_path / "store")]
    command += ["--source", str(made.root), "--revision", made.revision, "--key-id", KEY.id]
    command += ["--portion", str(tmp_path / "portion")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not any(seconds > 1.5 for seconds in spent(process.pid)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 3
    while spent(process.pid):
        assert time.monotonic() - begun < 10
        time.sleep(0.02)


def spent(session: int) -> list[float]:
    """The CPU seconds of each process of a session but its first that has not ended."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split() if path.name.isdecimal() else []
        except OSError:
            continue
        if fields and int(fields[3]) == session != int(path.name) and fields[0] != "Z":
            found.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return found
