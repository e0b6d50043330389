"""Where a training stands, kept under its work key: whole or not at all, the one before it too."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from components.shared.runtime.events import log, sentence

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

PREFIX = "checkpoint-"
SHARE = 0.02
"""The share of the time that keeping checkpoints may take, where no interval is asked for."""
DIGEST = hashlib.sha256().digest_size


class Checkpoints:
    """Keeps the state of a training as often as is asked, or as is cheap."""

    def __init__(self, work: Work, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`every` is in seconds; 0 is as often as takes a fiftieth of the time."""
        self._work, self._every, self._clock = work, every, clock
        self._last, self._cost = clock(), 0.0

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None; a damaged one is told, and the one before it serves."""
        for name in reversed(self._work.names(PREFIX)):
            kept = self._work.kept(name)
            if kept is None:
                continue
            if hashlib.sha256(kept[DIGEST:]).digest() == kept[:DIGEST]:
                return dict(torch.load(io.BytesIO(kept[DIGEST:]), weights_only=True, map_location="cpu"))
            self._work.drop(name)
            why = f"{name} does not hold what was written, so the one before it is taken"
            log.warning("checkpoint damaged", extra={"fields": {"stage": "train", "why": why}})
        return None

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self._clock() - self._last >= (self._every or max(1.0, self._cost / SHARE))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state after so many steps; of the earlier ones the last stays."""
        begun = self._clock()
        buffer = io.BytesIO(bytes(DIGEST))
        buffer.seek(DIGEST)
        torch.save(state, buffer)
        with buffer.getbuffer() as content:
            content[:DIGEST] = hashlib.sha256(content[DIGEST:]).digest()
        try:
            self._work.keep(f"{PREFIX}{step:09}", buffer.getvalue())
            for name in self._work.names(PREFIX)[:-2]:
                self._work.drop(name)
            self._cost = self._clock() - begun
        except OSError as error:  # the next one may be kept again; until then the one before it stands
            why = f"{sentence(error)} The training goes on, and would begin again from the checkpoint before."
            log.warning("checkpoint not kept", extra={"fields": {"stage": "train", "why": why}})
        self._last = self._clock()
