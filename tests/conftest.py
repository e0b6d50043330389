"""Every test begins with the public hash key and without the settings of whoever runs it.

Where tests run side by side (`-n`), each process has its share of the threads, and so have the processes it starts.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.shared.privacy import keyed_hash
from components.shared.runtime import threads

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ[threads.LIMIT] = str(max(1, threads.count_threads() // WORKERS))  # before a library reads it

SLOW_FOLDERS = ("tests/e2e/", "tests/images/", "tests/packaging/", "tests/upgrade/", "tests/medloop/kubeflow/")
SLOW = (*SLOW_FOLDERS, "tests/medloop/releases/test_approve.py", "tests/medloop/test_check_image.py")
"""Where every test runs whole commands, containers or servers, or needs what such a run left."""
LONGEST = (
    "tests/e2e/",
    "tests/packaging/",
    "tests/upgrade/",
    "tests/images/",
    "tests/medloop/",
    "tests/components/train/",
)
"""Where the files lie that take minutes. A process takes whole files, since their tests share what they began with."""
SLOW_FIXTURES = {"place", "finished"}
"""Fixtures that run whole commands, or a whole run."""
MOST_WORKERS = 8
"""Each process of tests takes up to 2.5 GB of memory."""

SETTINGS = (
    "MEDLOOP_HOME",
    "MEDLOOP_STORE",
    "MLFLOW_TRACKING_URI",
    "MEDLOOP_NOTIFY_URL",
    "MEDLOOP_DEVICE_PRICE",
    "MEDLOOP_CURRENCY",
    "MEDLOOP_SIGNING_KEY",
    "MEDLOOP_STAGE_KEY",
    "MEDLOOP_VERIFY_KEYS",
)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """How many processes `-n auto` is."""
    return min(threads.count_threads(), MOST_WORKERS)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what holds slow tests only, where these are not wanted."""
    name = collection_path.relative_to(config.rootpath).as_posix()
    return True if config.option.markexpr == "not slow" and f"{name}/".startswith(SLOW_FOLDERS) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is slow wherever it stands, and begin with the files that take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    for item in items:
        if item.nodeid.startswith(SLOW) or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _no_commands_in_quick_tests() -> Iterator[None]:
    """Let only tests that are marked slow start the command, so that `make check` stays quick."""
    start = subprocess.Popen.__init__

    def checked(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        if _quick and "medloop.cli.main" in args:
            raise RuntimeError(f"{_quick[0]} starts the command: mark it slow, or call the command in this process")
        start(self, args, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", checked)
        yield


_quick: list[str] = []
"""The test that runs, unless it is marked slow."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep which test runs, for those that may not start the command."""
    _quick[:] = [] if item.get_closest_marker("slow") else [item.nodeid]


@pytest.fixture(autouse=True)
def _same_umask() -> Iterator[None]:
    """What a test calls in this process may make new files private; that must not reach the next test."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """Undo what a command that ran in this process did to the log of events."""
    log = logging.getLogger("medloop")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keyed_hash.VARIABLE, keyed_hash.SYNTHETIC)
    for name in (*SETTINGS, *(name for name in os.environ if name.startswith("AWS_"))):
        monkeypatch.delenv(name, raising=False)
