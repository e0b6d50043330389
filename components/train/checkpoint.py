"""Checkpoints of a training under its work key: the last two, each with a checksum."""

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
"""Share of the time that saving checkpoints takes if no interval is set."""
DIGEST = hashlib.sha256().digest_size


class Checkpoints:
    """Saves and loads the state of a training, at a set interval or as often as is cheap."""

    def __init__(self, work: Work, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`every` is in seconds; 0 saves as often as takes a fiftieth of the time."""
        self._work, self._every, self._clock = work, every, clock
        self._last, self._cost = clock(), 0.0

    def load(self) -> dict[str, Any] | None:
        """Return the newest intact state, or None; log and delete damaged ones."""
        for name in reversed(self._work.names(PREFIX)):
            kept = self._work.kept(name)
            if kept is None:
                continue
            if hashlib.sha256(kept[DIGEST:]).digest() == kept[:DIGEST]:
                return dict(torch.load(io.BytesIO(kept[DIGEST:]), weights_only=True, map_location="cpu"))
            self._work.drop(name)
            why = f"{name} does not match its checksum; the previous one is used"
            log.warning("checkpoint damaged", extra={"fields": {"stage": "train", "why": why}})
        return None

    def due(self) -> bool:
        """Return whether it is time for the next checkpoint."""
        return self._clock() - self._last >= (self._every or max(1.0, self._cost / SHARE))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save the state after this step; delete all earlier ones but the last."""
        start = self._clock()
        buffer = io.BytesIO(bytes(DIGEST))
        buffer.seek(DIGEST)
        torch.save(state, buffer)
        with buffer.getbuffer() as content:
            content[:DIGEST] = hashlib.sha256(content[DIGEST:]).digest()
        try:
            self._work.keep(f"{PREFIX}{step:09}", buffer.getvalue())
            for name in self._work.names(PREFIX)[:-2]:
                self._work.drop(name)
            self._cost = self._clock() - start
        except OSError as error:  # the next attempt may succeed; until then, the previous checkpoint is valid
            why = f"{sentence(error)} The training continues; if interrupted, it resumes from the previous checkpoint."
            log.warning("checkpoint not kept", extra={"fields": {"stage": "train", "why": why}})
        self._last = self._clock()
