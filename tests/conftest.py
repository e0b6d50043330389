"""Every test begins with the public hash key and without the settings of whoever runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from components.shared.privacy import hash_keys

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


@pytest.fixture(autouse=True)
def _same_umask() -> Iterator[None]:
    """What a test calls in this process may make new files private; that must not reach the next test."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(hash_keys.VARIABLE, hash_keys.SYNTHETIC)
    for name in (*SETTINGS, *(name for name in os.environ if name.startswith("AWS_"))):
        monkeypatch.delenv(name, raising=False)
