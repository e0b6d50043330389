"""The pace of a training is what a clock would say; device time goes on over interruptions."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from components.shared.runtime.price import Price, read_price
from components.train.pace import Pace, format_duration


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def train(pace: Pace, clock: Clock, epochs: int, steps: int, each: float, validation: float) -> None:
    for _ in range(epochs):
        pace.epoch()
        for _ in range(steps):
            clock.now += each
            pace.step(16)
        clock.now += validation


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["fields"] for record in caplog.records if record.message == "progress"]


def test_the_rate_is_that_of_the_training_part_and_the_time_left_counts_all() -> None:
    clock = Clock()
    pace = Pace(epochs=10, steps=50, clock=clock)
    assert pace.seconds_left is None
    train(pace, clock, epochs=4, steps=50, each=0.1, validation=2.5)
    assert pace.rate == pytest.approx(160)
    assert pace.seconds == pytest.approx(4 * 7.5)
    assert pace.seconds_left == pytest.approx(6 * 7.5, rel=0.02)


def test_time_left_follows_a_change_of_pace_within_an_epoch() -> None:
    clock = Clock()
    pace = Pace(epochs=10, steps=50, clock=clock)
    train(pace, clock, epochs=5, steps=50, each=0.1, validation=0)
    train(pace, clock, epochs=1, steps=50, each=0.4, validation=0)  # the backbone has thawed
    assert pace.rate == pytest.approx(40)
    assert pace.seconds_left == pytest.approx(4 * 50 * 0.4, rel=0.02)


def test_a_training_that_goes_on_counts_what_was_spent_before_and_not_its_steps_as_its_own_speed() -> None:
    clock = Clock()
    pace = Pace(epochs=10, steps=50, done=250, seconds=3600.0, clock=clock)
    assert pace.seconds == 3600
    train(pace, clock, epochs=1, steps=50, each=1.0, validation=0)
    assert pace.seconds == pytest.approx(3650)
    assert pace.seconds_left == pytest.approx(200)
    train(pace, clock, epochs=4, steps=50, each=1.0, validation=0)
    assert pace.seconds_left == 0


def test_it_speaks_about_once_a_second_and_says_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    pace = Pace(epochs=3, steps=100, clock=clock)
    with caplog.at_level(logging.INFO, "medloop"):
        for epoch in range(3):
            pace.epoch()
            for step in range(100):
                clock.now += 0.1
                if pace.step(41):
                    pace.report(loss=0.5 - (epoch * 100 + step) / 1000)
            pace.report(loss=0.123, val_AUC=0.981)
    lines = told(caplog)
    assert 27 <= len(lines) <= 33, "30 seconds have passed"
    assert all(line["total"] == 3 for line in lines)
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)
    first, last = lines[0], lines[-1]
    assert (first["done"], first["note"]) == (0.1, "epochs, loss 0.491, 410 images/s, 29 s left")
    assert (last["done"], last["note"]) == (3, "epochs, loss 0.123, val AUC 0.981, 410 images/s")
    middle = next(line for line in lines if line["done"] > 1)
    assert "val AUC 0.981" in middle["note"], "what validation said last is said on"


def test_before_its_first_step_a_training_tells_what_it_found(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "medloop"):
        Pace(epochs=20, steps=10, done=30, seconds=5.0).report()
        Pace(epochs=20, steps=10).report()
    found, fresh = told(caplog)
    assert (found["done"], found["total"], found["note"]) == (3, 20, "epochs restored from the checkpoint")
    assert (fresh["done"], fresh["total"], fresh["note"]) == (0, 20, "epochs")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"), (45, "45 s"), (59.7, "1 min"), (130, "2 min 10 s"), (3600, "1 h"), (3661, "1 h 1 min"),
        (11100, "3 h 5 min"), (86400, "1 day"), (187200, "2 days 4 h"),
    ],
)  # fmt: skip
def test_durations_are_spelled_for_people(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_a_price_makes_hours_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDLOOP_DEVICE_PRICE", raising=False)
    assert read_price() is None
    monkeypatch.setenv("MEDLOOP_DEVICE_PRICE", "2.5")
    monkeypatch.setenv("MEDLOOP_CURRENCY", "EUR")
    price = read_price()
    assert price == Price(2.5, "EUR")
    assert (price.of(5400), price.of(36), price.of(0), str(price)) == (
        "3.75 EUR", "0.025 EUR", "0.00 EUR", "2.5 EUR an hour",
    )  # fmt: skip
    monkeypatch.delenv("MEDLOOP_CURRENCY")
    assert str(read_price()) == "2.5 an hour"


@pytest.mark.parametrize("value", ["two", "2,50", "-1", "nan", "inf", "2.5 EUR"])
def test_a_price_that_is_none_gets_a_sentence(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOP_DEVICE_PRICE", value)
    with pytest.raises(ValueError, match="MEDLOOP_DEVICE_PRICE is") as refused:
        read_price()
    assert value in str(refused.value)
    assert "Correct it, or unset it" in str(refused.value)
