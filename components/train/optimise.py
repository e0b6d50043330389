"""Optimizer, learning-rate schedule, unfreezing, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn


def optimizer(
    network: nn.Module, stages: Sequence[nn.Module], rate: float, backbone_rate: float, decay: float
) -> torch.optim.AdamW:
    """Return AdamW with the body at `backbone_rate` times the rate.

    One-dimensional weights (norms, biases, scales) and position embeddings do not decay.
    """
    undecayed = {
        id(weight)
        for name, weight in network.named_parameters()
        if weight.numel() == max(weight.shape, default=1) or "position" in name
    }
    body = {id(weight) for stage in stages for weight in stage.parameters()}
    groups = []
    for factor, in_body in ((backbone_rate, True), (1.0, False)):
        part = [weight for weight in network.parameters() if (id(weight) in body) is in_body]
        for weight_decay, skipped in ((decay, False), (0.0, True)):
            params = [weight for weight in part if (id(weight) in undecayed) is skipped]
            if params:
                own_rate = rate * factor
                groups.append({"params": params, "lr": own_rate, "rate": own_rate, "weight_decay": weight_decay})
    return torch.optim.AdamW(groups, lr=rate)


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the highest rate at a step: linear warm-up, then half a cosine wave down to 0.01."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rates of all groups to this factor of their highest rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor


def unfreeze(stages: Sequence[nn.Module], epoch: int, frozen: int, gradual: bool) -> int:
    """Freeze and unfreeze the body's stages for this epoch, the last first; return how many are trained."""
    trained = 0 if epoch <= frozen else min(len(stages), epoch - frozen) if gradual and frozen else len(stages)
    for number, stage in enumerate(stages):
        is_trained = number >= len(stages) - trained
        for weight in stage.parameters():
            weight.requires_grad_(is_trained)
        if not is_trained:
            stage.eval()  # keep the running averages of the norms of a frozen body
    return trained


class WeightAverage:
    """A moving average of a network's weights, which is validated and saved instead of them."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval() if decay else network
        if decay:
            self.network.requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Update the average after a step of the optimizer; the first steps count more."""
        if not self.decay:
            return
        share = 1 - min(self.decay, (1 + updates) / (10 + updates))
        ours, theirs = self.network.state_dict(), network.state_dict()
        real = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in real], [theirs[name] for name in real], share)
        for name in ours.keys() - set(real):
            ours[name].copy_(theirs[name])
