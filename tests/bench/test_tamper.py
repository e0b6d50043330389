"""The benchmark of changed artifacts finds none accepted with keys set, and can tell when some are."""

from __future__ import annotations

import os

import pytest

from bench.tamper import measure


@pytest.mark.slow
def test_with_keys_no_change_is_accepted_and_without_some_are() -> None:
    before = dict(os.environ)
    with_keys, without = (measure(signed, flips=2, seed=3) for signed in (True, False))
    assert dict(os.environ) == before
    assert len(with_keys) == 28
    assert set(with_keys.values()) == {0}
    assert without["the manifest of state, in the store"] == 2, "a stored copy that deploy does not read"
    assert without["the release log’s entry 1, in the store"] == 0
