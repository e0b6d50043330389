"""Speed, remaining time and device time of a training, across interruptions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from components.shared.runtime.events import progress

INTERVAL = 1.0
"""Seconds between progress reports within an epoch."""


class Pace:
    """Counts steps and images of a training of `epochs` epochs with `steps` steps each.

    `done` steps and `seconds` of device time are those of earlier attempts, from a checkpoint.
    """

    def __init__(
        self, epochs: int, steps: int, done: int = 0, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._epochs, self._steps, self._done, self._before, self._clock = epochs, steps, done, seconds, clock
        self._begun = self._reported = self._mark = clock()
        self._images = 0
        self._figures: dict[str, float] = {}
        self._times: deque[float] = deque(maxlen=steps + 1)  # one epoch, so that its validation is included
        self.rate = 0.0
        """Training images per second in this epoch or, before its first step, the previous one."""

    @property
    def seconds(self) -> float:
        """Device seconds so far, including earlier attempts; saved in each checkpoint."""
        return self._before + self._clock() - self._begun

    def epoch(self) -> None:
        """Begin the training part of an epoch; validation before it does not count for the rate."""
        self._images, self._mark = 0, self._clock()

    def step(self, images: int) -> bool:
        """Count a step; return whether to call `report`, which can need figures from the device."""
        now = self._clock()
        self._done += 1
        self._images += images
        self._times.append(now)
        if now > self._mark:
            self.rate = self._images / (now - self._mark)
        return now - self._reported >= INTERVAL

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step, at the speed of the last epoch; None if it is unknown."""
        if self._done >= self._epochs * self._steps:
            return 0.0
        if len(self._times) < 2:
            return None
        step_seconds = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return step_seconds * (self._epochs * self._steps - self._done)

    def report(self, **figures: float) -> None:
        """Report progress with these figures, and with earlier ones that have not changed."""
        self._reported = self._clock()
        self._figures |= figures
        parts = ["epochs restored from the checkpoint" if self._done and not self._times else "epochs"]
        parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in self._figures.items()]
        if self.rate:
            parts.append(f"{self.rate:.0f} images/s" if self.rate >= 10 else f"{self.rate:.1f} images/s")
        if self.seconds_left:
            parts.append(f"{format_duration(self.seconds_left)} left")
        epochs = self._done * 100 // self._steps / 100  # rounded down
        progress("train", int(epochs) if epochs.is_integer() else epochs, self._epochs, ", ".join(parts))


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 45 s, 2 min 10 s, 3 h 5 min, 2 days 4 h."""
    whole = round(seconds)
    units = ((86400, "day" if whole < 172800 else "days"), (3600, "h"), (60, "min"), (1, "s"))
    for (size, name), (smaller, below) in zip(units, (*units[1:], (1, "")), strict=True):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {below}" if below and rest else "")
    return "0 s"
