"""The networks that can be trained, by name: a new one is a function here marked with @network, and nothing else.

Every network gives (logits [N, classes], features [N, F], map [N, F, h, w]) and keeps one contract: the features are
the mean of the map over its height and width, and the logits are `head` applied to the features. So class activation
maps and drift embeddings can be had from the exported graph, without torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn

NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {}


def network(make: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Module]:
    """Gives the function back unchanged and makes it known under its own name."""
    NETWORKS[make.__name__] = make
    return make


def build(name: str, channels: int, classes: int) -> nn.Module:
    """Gives a new network of that name for images of so many channels; its weights come from torch's random state."""
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown network {name!r}: did you mean {near!r}? Known are {', '.join(sorted(NETWORKS))}")
    if channels < 1 or classes < 2:
        raise ValueError(f"a network for {channels} channels and {classes} classes cannot be built: at least 1 channel "
                         "and 2 classes are needed")  # fmt: skip
    return NETWORKS[name](channels, classes)


class Classifier(nn.Module):
    """A body that gives a feature map, its mean over the image, and a head on that mean."""

    def __init__(self, body: nn.Module, features: int, classes: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = body
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gives logits, pooled features and the last feature map of a batch [N, channels, height, width]."""
        found = self.body(images)
        features = torch.flatten(self.pool(found), 1)
        return self.head(features), features, found


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    # Convolution, batch norm and ReLU in this order fold into one operation when quantized.
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


@network
def small(channels: int, classes: int) -> nn.Module:
    """Gives a network of 0.3 million weights that trains within minutes on two cores; images of 48 pixels or more."""
    body = nn.Sequential(
        _block(channels, 16, stride=2),
        _block(16, 32),
        _block(32, 48, stride=2),
        _block(48, 48),
        _block(48, 96, stride=2),
        _block(96, 96),
        _block(96, 160, stride=2),
    )
    return Classifier(body, 160, classes)


@network
def resnet18(channels: int, classes: int) -> nn.Module:
    """Gives torchvision's ResNet-18 with random weights, its first convolution made for the number of channels."""
    from torchvision.models import resnet18 as make

    whole = make(weights=None)
    whole.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(whole.conv1.weight, mode="fan_out", nonlinearity="relu")
    return Classifier(nn.Sequential(*list(whole.children())[:-2]), whole.fc.in_features, classes)
