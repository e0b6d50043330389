"""Decoding processes for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.components.shared.decoders import Decoders


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    """Decoding processes, closed at the end of the module."""
    made = Decoders()
    yield made
    made.close()
