"""Progress of a training: progress lines, a TensorBoard log, and a run in MLflow."""

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
from components.train.pace import Pace
from components.train.split_images import SplitImages
from components.train.tensorboard_log import TensorBoardLog
from components.train.tracking import Tracking, history_files
from components.train.training_loop import TrainingState
from components.train.validation import probabilities

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

TRACKED_FILES = ("configs/metadata.json", "docs/augmentation.png", "docs/README.md")
"""Files of a bundle that are logged to MLflow."""
CHARTS = {
    "loss": "loss/train",
    "val_loss": "loss/validation",
    "val_accuracy": "validation/accuracy",
    "val_auc": "validation/AUC",
    "images_per_second": "pace/images per second",
}
"""TensorBoard names of an epoch's figures, with their group."""


class Monitor:
    """Reports the progress of a training."""

    def __init__(
        self,
        work: Work,
        parameters: dict[str, Any],
        tags: dict[str, str],
        classes: list[str],
        held_out: SplitImages,
        task: str,
    ) -> None:
        self._work, self._parameters = work, parameters
        self._classes, self._targets, self._task = classes, held_out.targets, task
        self._price = read_price()  # raises before the training starts if the price is invalid
        self._tracking = Tracking(work.key, parameters, tags)
        self._stack = ExitStack()
        self._sheet = b""

    def __enter__(self) -> Monitor:
        self._stack.enter_context(self._tracking)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def started(self, state: TrainingState, steps: int) -> None:
        """Begin a training with this many steps in total."""
        epochs = self._parameters["epochs"]
        self._pace = Pace(epochs, steps // epochs, state.step, state.seconds)
        self._tensorboard = self._stack.enter_context(TensorBoardLog(self._work.store, self._work.key, state.step))
        if not state.step and self._sheet:
            self._tensorboard.add_image(0, "what the network sees", np.asarray(Image.open(io.BytesIO(self._sheet))))
        else:
            self._pace.report()

    def set_sheet(self, picture: bytes) -> None:
        """Set the PNG of augmented images to log."""
        self._sheet = picture

    def epoch_started(self) -> None:
        """Begin the training part of an epoch."""
        self._pace.epoch()

    def step(self, _state: TrainingState, images: int) -> bool:
        """Count a step with this many images; return whether to report progress."""
        return self._pace.step(images)

    def report(self, state: TrainingState, images: int) -> None:
        """Report progress within an epoch."""
        self._pace.report(loss=state.lost / images)

    def before_checkpoint(self) -> float:
        """Write the log before a checkpoint; return the seconds of training so far."""
        self._tensorboard.write()
        return self._pace.seconds

    def epoch_finished(self, state: TrainingState, figures: dict[str, float], logits: NDArray[np.float64]) -> None:
        """Report the figures of an epoch."""
        number = state.epoch - 1
        self._pace.report(loss=figures["loss"], val_AUC=figures["val_auc"])
        figures = {**figures, "images_per_second": self._pace.rate}
        self._tensorboard.add_scalars(state.step, {CHARTS[name]: value for name, value in figures.items()})
        chances = probabilities(logits, self._task)
        for label, name in enumerate(self._classes):
            self._tensorboard.add_pr_curve(
                state.step, f"validation/{name}", self._targets[:, label] > 0.5, chances[:, label]
            )
        self._tracking.epoch(number, figures)

    def finished(self, model: Path, history: list[dict[str, float]]) -> None:
        """Log the bundle, the history and the cost."""
        files = {Path(name).name: (model / name).read_bytes() for name in TRACKED_FILES if (model / name).exists()}
        self._tracking.artifacts({**files, **history_files(history)})
        if self._price:
            self._tracking.tag("cost", self._price.of(self._pace.seconds))
        self._work.spent["device_seconds"] = round(self._pace.seconds, 1)
