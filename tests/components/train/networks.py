"""Networks as training leaves them, without the training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def warmed(model: nn.Module, channels: int, size: int) -> nn.Module:
    """The model in evaluation mode, its norms knowing some images: fresh ones let almost nothing through."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean over all batches seen
    with torch.no_grad():
        model.train()(torch.randn(16, channels, size, size))
    return model.eval()


def by_autograd(network: nn.Module, found: Tensor, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Grad-CAM before its ReLU, as torch gives it: the feature map weighted with the mean gradient of a logit."""
    found = found.detach().requires_grad_()
    pooled = torch.flatten(network.get_submodule("pool")(found), 1)
    logits = network.get_submodule("head")(pooled)[torch.arange(len(targets)), torch.from_numpy(targets)]
    (gradient,) = torch.autograd.grad(logits.sum(), found)
    return np.asarray((gradient.mean((2, 3), keepdim=True) * found).sum(1).detach().numpy(), np.float64)
