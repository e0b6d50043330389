"""How fast a training goes, how long it still takes, and how long the device has worked for it, over interruptions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from components.shared.runtime.events import progress

INTERVAL = 1.0
"""Seconds between two words about an epoch on its way."""


class Pace:
    """Counts steps and images of a training of so many epochs, each of so many steps.

    `done` steps and `seconds` of the device were spent by earlier tries, as a checkpoint tells.
    """

    def __init__(
        self, epochs: int, steps: int, done: int = 0, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._epochs, self._steps, self._done, self._before, self._clock = epochs, steps, done, seconds, clock
        self._begun = self._told = self._mark = clock()
        self._images = 0
        self._figures: dict[str, float] = {}
        self._moments: deque[float] = deque(maxlen=steps + 1)  # an epoch back: its validation is part of the pace
        self.rate = 0.0
        """Images a second in this epoch's training, or the last one's."""

    @property
    def seconds(self) -> float:
        """Seconds of the device so far, those of earlier tries among them; to be kept in each checkpoint."""
        return self._before + self._clock() - self._begun

    def epoch(self) -> None:
        """Begin the training part of an epoch: what came before it, such as validation, is no part of the rate."""
        self._images, self._mark = 0, self._clock()

    def step(self, images: int) -> bool:
        """Count a step; whether it is time for a word about it (`tell`), which may need figures from the device."""
        now = self._clock()
        self._done += 1
        self._images += images
        self._moments.append(now)
        if now > self._mark:
            self.rate = self._images / (now - self._mark)
        return now - self._told >= INTERVAL

    @property
    def left(self) -> float | None:
        """Seconds until the last step, at the pace of the last epoch's worth of steps; None where none is known."""
        if self._done >= self._epochs * self._steps:
            return 0.0
        if len(self._moments) < 2:
            return None
        each = (self._moments[-1] - self._moments[0]) / (len(self._moments) - 1)
        return each * (self._epochs * self._steps - self._done)

    def tell(self, **figures: float) -> None:
        """Say how far it is, with these figures; those of earlier words are said again until they change."""
        self._told = self._clock()
        self._figures |= figures
        parts = ["epochs found in the checkpoint" if self._done and not self._moments else "epochs"]
        parts += [f"{name.replace('_', ' ')} {value:.3f}" for name, value in self._figures.items()]
        if self.rate:
            parts.append(f"{self.rate:.0f} images/s" if self.rate >= 10 else f"{self.rate:.1f} images/s")
        if self.left:
            parts.append(f"{spell(self.left)} left")
        epochs = self._done * 100 // self._steps / 100  # never more than were done
        progress("train", int(epochs) if epochs.is_integer() else epochs, self._epochs, ", ".join(parts))


def spell(seconds: float) -> str:
    """A duration in its two largest units: 45 s, 2 min 10 s, 3 h 5 min, 2 days 4 h."""
    whole = round(seconds)
    units = ((86400, "day" if whole < 172800 else "days"), (3600, "h"), (60, "min"), (1, "s"))
    for (size, name), (smaller, below) in zip(units, (*units[1:], (1, "")), strict=True):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {below}" if below and rest else "")
    return "0 s"
