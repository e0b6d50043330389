"""Loss functions: cross entropy or focal loss, for classes or for findings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

MAX_CLASS_WEIGHT = 20.0
"""Maximum weight of a class, however rare it is."""


@dataclass(frozen=True)
class Loss:
    """A loss over targets [N, K] between 0 and 1, which smoothing and mixup can make soft."""

    task: str
    """classification, with one class per image, or multilabel."""
    weights: Tensor
    """Weight of each class; of a finding, the weight of an image with it relative to one without."""
    gamma: float = 0.0
    """Exponent of the focal loss; 0 is cross entropy."""
    smoothing: float = 0.0
    """Label smoothing."""

    @staticmethod
    def of(task: str, targets: NDArray[np.float32], balance: str, gamma: float, smoothing: float) -> Loss:
        """Return the loss for these training targets; with `balance` "balanced", rare classes weigh more."""
        shares = targets.mean(axis=0)
        if balance == "none":
            weights = np.ones(targets.shape[1])
        elif task == "multilabel":
            weights = np.clip((1 - shares) / np.maximum(shares, 1e-12), 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT)
        else:
            weights = np.clip(
                1 / (targets.shape[1] * np.maximum(shares, 1e-12)), 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT
            )
        return Loss(task, torch.tensor(weights, dtype=torch.float32), gamma, smoothing)

    def to(self, device: torch.device) -> Loss:
        """Return the loss on another device."""
        return Loss(self.task, self.weights.to(device), self.gamma, self.smoothing)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the batch."""
        logits = logits.float()
        if self.task == "multilabel":
            smoothed = self._smooth(torch.stack([self.weights * targets, 1 - targets], dim=2))
            logs = torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=2)
            return -(smoothed * logs * self._focus(logs)).sum(dim=2).mean(dim=1).mean()
        logs = F.log_softmax(logits, dim=1)
        return -(self._smooth(self.weights * targets) * logs * self._focus(logs)).sum(dim=1).mean()

    def _smooth(self, weighted: Tensor) -> Tensor:
        """Return targets with a part of each image's weight spread evenly over all classes.

        The weight of the image is spread, not that of the class: otherwise smoothing would pull images of common
        classes towards rare ones, far enough to change the predicted class.
        """
        return weighted * (1 - self.smoothing) + weighted.sum(-1, keepdim=True) * self.smoothing / weighted.shape[-1]

    def _focus(self, logs: Tensor) -> Tensor | float:
        """Return the factor of the focal loss."""
        return (1 - logs.exp()).clamp_min(1e-6) ** self.gamma if self.gamma else 1.0


def mix_up(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend each image and its targets with the next one of the batch (mixup); `share` is the weight of its own."""
    return (part * share + part.roll(1, 0) * (1 - share) for part in (images, targets))  # type: ignore[return-value]  # two parts
