"""Random changes that a scan survives: small moves, turns and zooms, brightness, contrast, noise, erased patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """The batch, each image changed in its own way; no flips, since the sides of a body differ.

    Images are floats around zero. `strength` 1 is the usual amount and 0 none.
    """
    if strength <= 0:
        return images
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle = uniform(-1, 1) * strength * math.radians(8)
    zoom = 1 + uniform(-0.1, 0.1) * strength
    shift = torch.stack([uniform(-0.1, 0.1), uniform(-0.1, 0.1)]) * strength
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    matrix = torch.stack([torch.stack([cosine, -sine, shift[0]], 1), torch.stack([sine, cosine, shift[1]], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    contrast = (1 + uniform(-0.2, 0.2) * strength)[:, None, None, None]
    brightness = (uniform(-0.4, 0.4) * strength)[:, None, None, None]
    return moved * contrast + brightness
