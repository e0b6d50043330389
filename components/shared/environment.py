"""Read and change the environment of this process: no other module uses `os.environ`. docs/environment.md lists it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def get(name: str, default: str = "") -> str:
    """Return the value of a variable, or `default` if it is empty or not set."""
    return os.environ.get(name) or default


def everything() -> dict[str, str]:
    """Return a copy of the environment."""
    return dict(os.environ)


def set_default(name: str, value: str) -> None:
    """Set a variable unless it is set."""
    os.environ.setdefault(name, value)


def update(values: Mapping[str, str]) -> None:
    """Set these variables."""
    os.environ.update(values)


def remove(*names: str) -> None:
    """Unset these variables."""
    for name in names:
        os.environ.pop(name, None)


@contextmanager
def replaced(values: Mapping[str, str]) -> Iterator[None]:
    """Run a block with these variables set; restore the environment afterwards."""
    before = everything()
    update(values)
    try:
        yield
    finally:
        os.environ.clear()
        update(before)
