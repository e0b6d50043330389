"""A message reaches a real server, and a deaf one stops nothing."""

from __future__ import annotations

import pytest

from components.shared.runtime.notify import VARIABLE, notify
from tests.components.shared.servers import free_port, listening


def test_a_message_arrives_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (url, heard):
        monkeypatch.setenv(VARIABLE, url)
        assert notify({"outcome": "released", "sentence": "über"})
    assert heard == [{"outcome": "released", "sentence": "über"}]


def test_without_an_address_nothing_is_sent() -> None:
    assert not notify({"outcome": "released"})


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "no-address", "ftp//x"])
def test_a_deaf_receiver_stops_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, url.format(port=free_port()))
    assert not notify({"outcome": "released"})


def test_a_receiver_that_refuses_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(500) as (url, heard):
        monkeypatch.setenv(VARIABLE, url)
        assert not notify({"outcome": "released"})
    assert len(heard) == 1
