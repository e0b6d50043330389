"""Shows a training while it goes on: a word now and then, TensorBoard's board, a run in MLflow."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.shared.runtime.price import read_price
from components.train.board import Board
from components.train.feed import Side
from components.train.judge import probabilities
from components.train.learn import Standing
from components.train.pace import Pace
from components.train.tracking import Tracking, history_files

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

SHOWN = ("configs/metadata.json", "docs/augmentation.png", "docs/README.md")
"""What of a bundle is kept with its run in MLflow."""


CHARTS = {
    "loss": "loss/train",
    "val_loss": "loss/validation",
    "val_accuracy": "validation/accuracy",
    "val_auc": "validation/AUC",
    "images_per_second": "pace/images per second",
}
"""The charts of an epoch's figures, in groups."""


class Watch:
    """Tells those who watch how a training goes."""

    def __init__(
        self,
        work: Work,
        parameters: dict[str, Any],
        tags: dict[str, str],
        classes: list[str],
        held_out: Side,
        task: str,
    ) -> None:
        self._work, self._parameters = work, parameters
        self._classes, self._targets, self._task = classes, held_out.targets, task
        self._price = read_price()  # a wrong one is told at once
        self._tracking = Tracking(work.key, parameters, tags)
        self._stack = ExitStack()
        self._sheet = b""

    def __enter__(self) -> Watch:
        self._stack.enter_context(self._tracking)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def begun(self, standing: Standing, steps: int) -> None:
        """A training of so many steps in all, from here on."""
        epochs = self._parameters["epochs"]
        self._pace = Pace(epochs, steps // epochs, standing.step, standing.seconds)
        self._board = self._stack.enter_context(Board(self._work.store, self._work.key, standing.step))
        if not standing.step and self._sheet:
            self._board.images(0, "what the network sees", np.asarray(Image.open(io.BytesIO(self._sheet))))
        else:
            self._pace.tell()

    def sheet(self, picture: bytes) -> None:
        """Show this PNG of what the network sees."""
        self._sheet = picture

    def epoch_begins(self) -> None:
        """Images are learned from, from now on."""
        self._pace.epoch()

    def step(self, _standing: Standing, images: int) -> bool:
        """So many images more were learned from; whether it is time for a word about it."""
        return self._pace.step(images)

    def word(self, standing: Standing, images: int) -> None:
        """A word about an epoch on its way."""
        self._pace.tell(loss=standing.lost / images)

    def pause(self) -> float:
        """The state is about to be kept; gives the seconds at work."""
        self._board.epoch()
        return self._pace.seconds

    def epoch(self, standing: Standing, figures: dict[str, float], logits: NDArray[np.float64]) -> None:
        """An epoch is over."""
        number = standing.epoch - 1
        self._pace.tell(loss=figures["loss"], val_AUC=figures["val_auc"])
        figures = {**figures, "images_per_second": self._pace.rate}
        self._board.scalars(standing.step, {CHARTS[name]: value for name, value in figures.items()})
        chances = probabilities(logits, self._task)
        for label, name in enumerate(self._classes):
            self._board.curve(standing.step, f"validation/{name}", self._targets[:, label] > 0.5, chances[:, label])
        self._tracking.epoch(number, figures)

    def done(self, model: Path, history: list[dict[str, float]]) -> None:
        """The bundle is made."""
        files = {Path(name).name: (model / name).read_bytes() for name in SHOWN if (model / name).exists()}
        self._tracking.artifacts({**files, **history_files(history)})
        if self._price:
            self._tracking.tag("cost", self._price.of(self._pace.seconds))
        self._work.spent["device_seconds"] = round(self._pace.seconds, 1)
