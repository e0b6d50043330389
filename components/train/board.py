"""Writes a training's course into the store as TensorBoard reads it: scalars, images, precision-recall curves.

TensorBoard reads the files of a directory in the order of their names, each to its end, and comes back to none. So the
course is written in parts, each whole and never changed: that holds in a directory as in a bucket, where nothing can
be appended to. A part that begins at a step takes back what earlier parts say of it and of what follows: so a training
that was interrupted leaves no point twice.
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
"""Where in the store the courses lie: what `tensorboard --logdir` is given."""


class Board:
    """The course of one training, from `begun_at_step` on, which is the number of steps done by earlier tries."""

    def __init__(self, store: Store, key: str, begun_at_step: int = 0) -> None:
        self._store, self._begun = store, begun_at_step
        self._folder = f"{FOLDER}/{key[:12]}"
        self._events: list[bytes] = []
        self._number = 0  # of the next part; 0 until the earlier tries' parts are counted
        self._start = b""
        self._warned = False

    def __enter__(self) -> Board:
        from tensorboardX.proto.event_pb2 import SessionLog

        # Where nothing was done before, all that stands there is void; else what comes after the steps done.
        self._start = _event(self._begun + 1 if self._begun else 0, session_log=SessionLog(status=SessionLog.START))
        return self

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Draw figures at a step; what stands before a slash in a name groups the charts."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._events.append(_event(step, summary=Summary(value=values)))

    def images(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Show a picture of bytes, [height, width] or [height, width, 3]."""
        from PIL import Image
        from tensorboardX.proto.summary_pb2 import Summary

        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        (height, width), colours = picture.shape[:2], 1 if picture.ndim == 2 else 3
        shown = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=file.getvalue())
        self._events.append(_event(step, summary=Summary(value=[Summary.Value(tag=name, image=shown)])))

    def curve(self, step: int, name: str, labels: NDArray[Any], scores: NDArray[Any]) -> None:
        """Draw the precision-recall curve of probabilities, given which of the images really are of the class."""
        from tensorboardX.summary import pr_curve

        self._events.append(
            _event(step, summary=pr_curve(name, np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)))
        )

    def epoch(self) -> None:
        """Write what has come since the last time into the store; TensorBoard shows it from then on.

        Call it before a checkpoint is kept: what stands in it is not drawn again by a training that goes on from there.
        """
        if not self._events:
            return
        opening = [_event(0, file_version="brain.Event:2"), self._start]
        try:
            self._store.write(self._name(), b"".join([*opening, *self._events]))
        except OSError as error:  # a training is worth more than its pictures
            if not self._warned:
                why = f"{sentence(error)} The training goes on; what is missing is written as soon as it can be."
                log.warning("board not written", extra={"fields": {"stage": "train", "why": why}})
            self._warned = True
            return
        self._events.clear()
        self._start = b""
        self._number += 1

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.epoch()

    def _name(self) -> str:
        """After all that are there, and known to TensorBoard as its own; the usual names tell the machine's."""
        if not self._number:
            found = [name.split(".")[-2] for name in self._store.names(self._folder) if name.endswith(".medloop")]
            self._number = 1 + max((int(number) for number in found if number.isdigit()), default=0)
        return f"{self._folder}/events.out.tfevents.{self._number:010}.medloop"


def _event(step: int, **what: Any) -> bytes:
    """An event as it stands in a file: its length and itself, each with its check."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data: bytes = Event(wall_time=time.time(), step=step, **what).SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
