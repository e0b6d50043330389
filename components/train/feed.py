"""Brings the images of a side to the device: gathered ahead of need, as bytes, and made into numbers there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.shared.datasets.dataset import Views

AHEAD = 2
"""How many batches wait while one is learned from."""


@dataclass(frozen=True)
class Side:
    """The images of one side of the split, with their targets [N, classes]."""

    views: Views
    rows: NDArray[np.int64]
    targets: NDArray[np.float32]
    preprocess: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, batches: Sequence[NDArray[np.int64]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [N, 1 or 3, H, W] between 0 and 1 on the device, with targets, for these places of the side."""
        waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            try:
                for places in batches:
                    waiting.append(pool.submit(self._gather, places, device))
                    if len(waiting) > AHEAD:
                        yield self._there(waiting.popleft().result(), device)
                while waiting:
                    yield self._there(waiting.popleft().result(), device)
            finally:
                pool.shutdown(cancel_futures=True)

    def _gather(self, places: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        images, targets = torch.from_numpy(self.views[self.rows[places]]), torch.from_numpy(self.targets[places])
        return (images.pin_memory(), targets.pin_memory()) if device.type == "cuda" else (images, targets)

    def _there(self, batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        images, targets = (part.to(device, non_blocking=True) for part in batch)
        images = images.movedim(3, 1) if images.ndim == 4 else images[:, None]
        return images.float().div_(255), targets

    def normalised(self, images: Tensor) -> Tensor:
        """Images between 0 and 1 as the network takes them: scaled, gray ones repeated for each channel."""
        mean, std, channels = (self.preprocess[name] for name in ("mean", "std", "channels"))
        scaled: Tensor = (images - mean) / std
        return scaled.expand(-1, channels, -1, -1)
