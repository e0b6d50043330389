"""How the weights move: which of them when, at what rate, and the slow average that follows them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn


def optimizer(
    network: nn.Module, stages: Sequence[nn.Module], rate: float, backbone_rate: float, decay: float
) -> torch.optim.AdamW:
    """AdamW with the body at `backbone_rate` times the rate.

    Weights in a row (norms, biases, scales) and positions do not decay: nothing is simpler about them near zero.
    """
    spare = {id(weight) for name, weight in network.named_parameters() if _in_a_row(weight) or "position" in name}
    body = {id(weight) for stage in stages for weight in stage.parameters()}
    groups = []
    for factor, chosen in ((backbone_rate, True), (1.0, False)):
        of_it = [weight for weight in network.parameters() if (id(weight) in body) is chosen]
        for pull, spared in ((decay, False), (0.0, True)):
            some = [weight for weight in of_it if (id(weight) in spare) is spared]
            if some:
                groups.append({"params": some, "lr": rate * factor, "rate": rate * factor, "weight_decay": pull})
    return torch.optim.AdamW(groups, lr=rate)


def _in_a_row(weight: nn.Parameter) -> bool:
    return weight.numel() == max(weight.shape, default=1)


def share_of_rate(step: int, steps: int, warmup: float) -> float:
    """The share of the highest rate at a step of a course: up in a line, down in half a cosine wave, not to nothing."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def set_rate(moving: torch.optim.Optimizer, share: float) -> None:
    """Let the groups move at this share of their highest rates."""
    for group in moving.param_groups:
        group["lr"] = group["rate"] * share


def release(stages: Sequence[nn.Module], epoch: int, frozen: int, gradual: bool) -> int:
    """Freeze and free the body's stages as they are to be in this epoch, the last first; gives how many are free."""
    free = 0 if epoch <= frozen else min(len(stages), epoch - frozen) if gradual and frozen else len(stages)
    for place, stage in enumerate(stages):
        at_work = place >= len(stages) - free
        for weight in stage.parameters():
            weight.requires_grad_(at_work)
        if not at_work:
            stage.eval()  # the norms' averages of a frozen body stay as they are
    return free


class Average:
    """A slow average of a network's weights, which is judged and kept in its place."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval() if decay else network
        if decay:
            self.network.requires_grad_(False)

    @torch.no_grad()
    def follow(self, network: nn.Module, updates: int) -> None:
        """Move a little towards the network after one more update of it; faster at first."""
        if not self.decay:
            return
        share = 1 - min(self.decay, (1 + updates) / (10 + updates))
        ours, theirs = self.network.state_dict(), network.state_dict()
        real = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in real], [theirs[name] for name in real], share)
        for name in ours.keys() - set(real):
            ours[name].copy_(theirs[name])
