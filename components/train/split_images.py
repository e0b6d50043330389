"""Batches of the images of a split, prefetched as bytes and converted to floats on the device."""

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
"""Number of prefetched batches."""


@dataclass(frozen=True)
class SplitImages:
    """The images of train or val, with their targets [N, classes]."""

    views: Views
    rows: NDArray[np.int64]
    targets: NDArray[np.float32]
    preprocess: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, batches: Sequence[NDArray[np.int64]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [N, 1 or 3, H, W] between 0 and 1 on the device, with targets, for these positions."""
        waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            try:
                for positions in batches:
                    waiting.append(pool.submit(self._gather, positions, device))
                    if len(waiting) > AHEAD:
                        yield self._move(waiting.popleft().result(), device)
                while waiting:
                    yield self._move(waiting.popleft().result(), device)
            finally:
                pool.shutdown(cancel_futures=True)

    def _gather(self, positions: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        images, targets = torch.from_numpy(self.views[self.rows[positions]]), torch.from_numpy(self.targets[positions])
        return (images.pin_memory(), targets.pin_memory()) if device.type == "cuda" else (images, targets)

    def _move(self, batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        images, targets = (part.to(device, non_blocking=True) for part in batch)
        images = images.movedim(3, 1) if images.ndim == 4 else images[:, None]
        return images.float().div_(255), targets

    def normalise(self, images: Tensor) -> Tensor:
        """Return images between 0 and 1 as the network's input: normalised, gray ones repeated for each channel."""
        mean, std, channels = (self.preprocess[name] for name in ("mean", "std", "channels"))
        scaled: Tensor = (images - mean) / std
        return scaled.expand(-1, channels, -1, -1)
