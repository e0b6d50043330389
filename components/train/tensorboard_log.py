"""Log of a training for TensorBoard, in the store: scalars, images and precision-recall curves.

TensorBoard reads the files of a directory in the order of their names and never returns to an earlier one. The log is
therefore written in parts that never change, which also works in a bucket, where objects cannot be appended to. A part
that starts at a step replaces all earlier points from that step on, so an interrupted training leaves no duplicates.
"""

from __future__ import annotations

import io
import struct
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.shared.runtime.events import log, sentence

if TYPE_CHECKING:
    from components.shared.storage.store import Store

FOLDER = "tensorboard"
"""Directory of the logs in the store, for `tensorboard --logdir`."""


class TensorBoardLog:
    """The log of one training from `first_step` on, which is the number of steps that earlier attempts completed."""

    def __init__(self, store: Store, key: str, first_step: int = 0) -> None:
        self._store, self._first_step = store, first_step
        self._folder = f"{FOLDER}/{key[:12]}"
        self._events: list[bytes] = []
        self._number = 0  # of the next part; 0 until the parts of earlier attempts are counted
        self._start = b""
        self._warned = False

    def __enter__(self) -> TensorBoardLog:
        from tensorboardX.proto.event_pb2 import SessionLog

        # Replace all earlier points, or those after the completed steps.
        first = self._first_step + 1 if self._first_step else 0
        self._start = _event(first, session_log=SessionLog(status=SessionLog.START))
        return self

    def add_scalars(self, step: int, figures: dict[str, float]) -> None:
        """Add figures at a step; the part of a name before the slash groups the charts."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._events.append(_event(step, summary=Summary(value=values)))

    def add_image(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Add a picture, [height, width] or [height, width, 3]."""
        from PIL import Image
        from tensorboardX.proto.summary_pb2 import Summary

        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        (height, width), colours = picture.shape[:2], 1 if picture.ndim == 2 else 3
        shown = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=file.getvalue())
        self._events.append(_event(step, summary=Summary(value=[Summary.Value(tag=name, image=shown)])))

    def add_pr_curve(self, step: int, name: str, labels: NDArray[Any], scores: NDArray[Any]) -> None:
        """Add the precision-recall curve of these labels and probabilities."""
        from tensorboardX.summary import pr_curve

        self._events.append(
            _event(step, summary=pr_curve(name, np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)))
        )

    def write(self) -> None:
        """Write the events since the last call to the store, where TensorBoard finds them.

        Call it before a checkpoint is saved: a training that resumes from the checkpoint does not repeat the events.
        """
        if not self._events:
            return
        opening = [_event(0, file_version="brain.Event:2"), self._start]
        try:
            self._store.write(self._name(), b"".join([*opening, *self._events]))
        except OSError as error:  # a failed log must not stop the training
            if not self._warned:
                why = f"{sentence(error)} The training continues; the missing part is written as soon as possible."
                log.warning("board not written", extra={"fields": {"stage": "train", "why": why}})
            self._warned = True
            return
        self._events.clear()
        self._start = b""
        self._number += 1

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.write()

    def _name(self) -> str:
        """Return the name of the next part; unlike TensorBoard's usual names, it does not contain the host name."""
        if not self._number:
            numbers = [name.split(".")[-2] for name in self._store.names(self._folder) if name.endswith(".medloop")]
            self._number = 1 + max((int(number) for number in numbers if number.isdigit()), default=0)
        return f"{self._folder}/events.out.tfevents.{self._number:010}.medloop"


def _event(step: int, **content: Any) -> bytes:
    """Return an event in TensorBoard's file format: length and content, each followed by its checksum."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data: bytes = Event(wall_time=time.time(), step=step, **content).SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
