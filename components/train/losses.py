"""What training lessens: cross entropy or focal loss, of one class an image or of any number of findings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

MOST = 20.0
"""No class weighs more than so many times as much as it would alone, however rare."""


@dataclass(frozen=True)
class Loss:
    """A loss over targets [N, K] between 0 and 1, which smoothing and mixing may have made soft."""

    task: str
    """classification, of one class an image, or multilabel."""
    weights: Tensor
    """Of each class; for findings, how much an image with it weighs against one without."""
    gamma: float = 0.0
    """Of the focal loss: how much less counts what is already right; 0 is cross entropy."""
    smoothing: float = 0.0
    """The share of certainty that is taken from the targets."""

    @staticmethod
    def of(task: str, targets: NDArray[np.float32], balance: str, gamma: float, smoothing: float) -> Loss:
        """The loss for these training targets; `balance` is none, or balanced: rare classes weigh more."""
        shares = targets.mean(axis=0)
        if balance == "none":
            weights = np.ones(targets.shape[1])
        elif task == "multilabel":
            weights = np.clip((1 - shares) / np.maximum(shares, 1e-12), 1 / MOST, MOST)
        else:
            weights = np.clip(1 / (targets.shape[1] * np.maximum(shares, 1e-12)), 1 / MOST, MOST)
        return Loss(task, torch.tensor(weights, dtype=torch.float32), gamma, smoothing)

    def to(self, device: torch.device) -> Loss:
        """The same loss on another device."""
        return Loss(self.task, self.weights.to(device), self.gamma, self.smoothing)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch."""
        logits = logits.float()
        if self.task == "multilabel":
            there, gone = F.logsigmoid(logits), F.logsigmoid(-logits)
            wanted = self._smoothed(torch.stack([self.weights * targets, 1 - targets], dim=2))
            logs = torch.stack([there, gone], dim=2)
            return -(wanted * logs * self._left(logs)).sum(dim=2).mean(dim=1).mean()
        logs = F.log_softmax(logits, dim=1)
        return -(self._smoothed(self.weights * targets) * logs * self._left(logs)).sum(dim=1).mean()

    def _smoothed(self, weighed: Tensor) -> Tensor:
        """Targets with some of each image's weight spread over all answers.

        The weight is the image's own: what is spread to a rare class is not made heavier by that class's weight, or a
        certain answer for a common class would be drawn towards the rare one, up to the wrong side.
        """
        return weighed * (1 - self.smoothing) + weighed.sum(-1, keepdim=True) * self.smoothing / weighed.shape[-1]

    def _left(self, logs: Tensor) -> Tensor | float:
        """What is left to learn of each, to the power of gamma."""
        return (1 - logs.exp()).clamp_min(1e-6) ** self.gamma if self.gamma else 1.0


def mixed(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Each image laid over the batch's next one, with its targets; `share` is what stays of its own."""
    return (part * share + part.roll(1, 0) * (1 - share) for part in (images, targets))  # type: ignore[return-value]  # two parts
