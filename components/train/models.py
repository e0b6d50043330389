"""The networks, by name. To add one, add a function with the decorator @network.

Every network returns (logits [N, classes], features [N, F], map [N, F, h, w]). The features must be the mean of the map
over height and width, and the logits must be `head` applied to the features, so that class activation maps and drift
embeddings can be computed from the exported graph without torch.

Each function returns the body (images to map) and F. Layers keep their names in MONAI or torchvision, in the order from
input to output, so that pretrained weights fit (pretrained.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from itertools import chain, pairwise

import torch
from torch import Tensor, nn

from components.shared.errors import RefusedError
from components.train.parameters import TrainParameters

Make = Callable[[int, int], tuple[nn.Module, int]]
"""Function from channels and image size to a body and its number of features."""

NETWORKS: dict[str, Make] = {}

PATCH = 16
"""Side of the patches into which the vision transformer cuts an image."""


def network(make: Make) -> Make:
    """Register the function under its name."""
    NETWORKS[make.__name__] = make
    return make


def build(
    name: str,
    channels: int,
    classes: int,
    size: int,
    hidden: int = TrainParameters.hidden,
    dropout: float = TrainParameters.dropout,
    logits_only: bool = False,
) -> nn.Module:
    """Return a new network for images of this size, with weights from torch's random state.

    With `logits_only` it returns only the logits, as MONAI requires; its weights are the same.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1, cutoff=0.0)[0]
        known = ", ".join(sorted(NETWORKS))
        raise RefusedError(f"Unknown network {name!r}; did you mean {near!r}? Allowed are {known}.")
    if channels < 1 or classes < 2:
        raise RefusedError(
            f"A network for {channels} channels and {classes} classes cannot be built; at least 1 channel and 2 classes"
            " are needed."
        )
    body, features = NETWORKS[name](channels, size)
    classifier = Classifier(body, features, classes, hidden, dropout, logits_only)
    classifier.recipe = {
        "name": name,
        "channels": channels,
        "classes": classes,
        "size": size,
        "hidden": hidden,
        "dropout": dropout,
    }
    return classifier


class Classifier(nn.Module):
    """A body that returns a feature map, its mean over the image, and a head on that mean."""

    recipe: dict[str, str | int | float]
    """Arguments of `build` that build the same network again."""

    def __init__(
        self, body: nn.Module, features: int, classes: int, hidden: int, dropout: float, logits_only: bool = False
    ) -> None:
        super().__init__()
        self.body = body
        self.pool = nn.AdaptiveAvgPool2d(1)
        # Only linear layers and ReLU: class activation maps compute its gradient without torch.
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(features, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        self.logits_only = logits_only

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        """Return logits, pooled features and the last feature map of a batch [N, channels, height, width]."""
        feature_map = self.body(images)
        features = torch.flatten(self.pool(feature_map), 1)
        logits = self.head(features)
        return logits if self.logits_only else (logits, features, feature_map)


def stages(network: nn.Module) -> list[nn.Module]:
    """Return the body in up to six parts from input to output, with all its weights, for gradual unfreezing."""
    parts = _with_weights(network.get_submodule("body").children())
    units = _units(parts)
    while len(units) < 4 and any(isinstance(part, nn.Sequential | nn.ModuleList) for part in parts):
        opened = (part.children() if isinstance(part, nn.Sequential | nn.ModuleList) else [part] for part in parts)
        parts = _with_weights(chain.from_iterable(opened))
        units = _units(parts)
    count = len(units) if len(units) <= 6 else 4
    bounds = [round(number * len(units) / count) for number in range(count + 1)]
    return [nn.ModuleList(part for unit in units[start:end] for part in unit) for start, end in pairwise(bounds)]


def _with_weights(parts: Iterable[nn.Module]) -> list[nn.Module]:
    return [part for part in parts if next(part.parameters(), None) is not None]


def _units(parts: list[nn.Module]) -> list[list[nn.Module]]:
    """Return the parts, each norm grouped with the part before it."""
    units: list[list[nn.Module]] = []
    for part in parts:
        if units and all(weight.ndim < 2 for weight in part.parameters()):
            units[-1].append(part)
        else:
            units.append([part])
    return units


def _in_order(whole: nn.Module, *names: str, **more: nn.Module) -> nn.Sequential:
    """Return these parts of a network and additional ones as a sequence, under their names."""
    sequence = nn.Sequential()
    for name in names:
        sequence.add_module(name, whole.get_submodule(name))
    for name, part in more.items():
        sequence.add_module(name, part)
    return sequence


def _at_least(name: str, size: int, least: int) -> None:
    if size < least:
        raise RefusedError(
            f"{name} does not support images of {size} pixels: its last feature map would be a single point. Set "
            f"image_size to {least} or more, or choose another architecture."
        )


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    # Quantization fuses convolution, batch norm and ReLU in this order.
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


@network
def small(channels: int, _size: int) -> tuple[nn.Module, int]:
    """Return a body of 0.4 million weights that trains in minutes on two cores; images of 48 pixels or more."""
    body = nn.Sequential(
        _block(channels, 16, stride=2),
        _block(16, 32),
        _block(32, 48, stride=2),
        _block(48, 48),
        _block(48, 96, stride=2),
        _block(96, 96),
        _block(96, 160, stride=2),
    )
    return body, 160


def _resnet(channels: int, block: str, layers: list[int]) -> nn.Sequential:
    from monai.networks.nets import ResNet

    whole = ResNet(
        block, layers, [64, 128, 256, 512], spatial_dims=2, n_input_channels=channels,
        conv1_t_size=7, conv1_t_stride=2, bias_downsample=False, feed_forward=False,
    )  # fmt: skip
    return _in_order(whole, "conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")


@network
def resnet18(channels: int, _size: int) -> tuple[nn.Module, int]:
    """MONAI's ResNet-18, with the strides and shortcuts of torchvision's, whose weights fit."""
    return _resnet(channels, "basic", [2, 2, 2, 2]), 512


@network
def resnet50(channels: int, _size: int) -> tuple[nn.Module, int]:
    """MONAI's ResNet-50, with the strides and shortcuts of torchvision's, whose weights fit."""
    return _resnet(channels, "bottleneck", [3, 4, 6, 3]), 2048


def _efficientnet(channels: int, size: int, width: float, depth: float) -> nn.Sequential:
    from monai.networks.nets import EfficientNet

    # MONAI's predefined EfficientNets are padded for a fixed image size; this one is padded for `size`.
    whole = EfficientNet(
        [
            "r1_k3_s11_e1_i32_o16_se0.25",
            "r2_k3_s22_e6_i16_o24_se0.25",
            "r2_k5_s22_e6_i24_o40_se0.25",
            "r3_k3_s22_e6_i40_o80_se0.25",
            "r3_k5_s11_e6_i80_o112_se0.25",
            "r4_k5_s22_e6_i112_o192_se0.25",
            "r1_k3_s11_e6_i192_o320_se0.25",
        ],
        in_channels=channels,
        width_coefficient=width,
        depth_coefficient=depth,
        image_size=size,
        norm=("batch", {"eps": 1e-3, "momentum": 0.1}),  # MONAI's 0.01 is too slow for a few hundred images
    )
    for part in list(whole.modules()):
        if isinstance(part, nn.Conv2d) and part.groups > 1:
            nn.init.kaiming_normal_(
                part.weight, nonlinearity="relu"
            )  # MONAI's initialisation is not for depthwise layers
        if "_swish" in dict(part.named_children()):
            part.add_module("_swish", nn.SiLU())  # MONAI's memory-efficient one cannot be exported
    stem = ("_conv_stem_padding", "_conv_stem", "_bn0", "_swish")
    return _in_order(whole, *stem, "_blocks", "_conv_head_padding", "_conv_head", "_bn1", act=nn.SiLU())


@network
def efficientnet_b0(channels: int, size: int) -> tuple[nn.Module, int]:
    """MONAI's EfficientNet-B0, padded for this image size."""
    return _efficientnet(channels, size, 1.0, 1.0), 1280


@network
def efficientnet_b4(channels: int, size: int) -> tuple[nn.Module, int]:
    """MONAI's EfficientNet-B4, padded for this image size."""
    return _efficientnet(channels, size, 1.4, 1.8), 1792


@network
def densenet121(channels: int, size: int) -> tuple[nn.Module, int]:
    """MONAI's DenseNet-121; images of 64 pixels or more."""
    from monai.networks.nets import DenseNet121

    _at_least("densenet121", size, 64)
    whole = DenseNet121(spatial_dims=2, in_channels=channels, out_channels=2)
    return _in_order(whole, "features", relu=nn.ReLU(inplace=True)), 1024


class Patches(nn.Module):
    """The body of a vision transformer: the tokens after the last norm, arranged as a map of patches."""

    def __init__(self, whole: nn.Module, side: int) -> None:
        super().__init__()
        self.patch_embedding = whole.get_submodule("patch_embedding")
        self.blocks = nn.Sequential(*whole.get_submodule("blocks").children())
        self.norm = whole.get_submodule("norm")
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Return the map [N, F, side, side] of a batch of images."""
        tokens: Tensor = self.norm(self.blocks(self.patch_embedding(images)))
        return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], self.side, self.side)


@network
def vit(channels: int, size: int) -> tuple[nn.Module, int]:
    """MONAI's vision transformer in the size called B/16, without a class token; image sizes are multiples of 16."""
    from monai.networks.nets import ViT

    if size < 2 * PATCH or size % PATCH:
        near = max(2, round(size / PATCH)) * PATCH
        raise RefusedError(
            f"image_size is {size}; for vit it must be a multiple of the patch size {PATCH}, and at least {2 * PATCH}. "
            f"Set it to {near}, or choose another architecture."
        )
    whole = ViT(channels, size, PATCH, spatial_dims=2, qkv_bias=True)
    for layer in list(whole.modules()):
        if "norm_cross_attn" in dict(layer.named_children()):
            layer.add_module("norm_cross_attn", nn.Identity())  # unused here
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-6
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return Patches(whole, size // PATCH), 768


@network
def convnext_tiny(channels: int, size: int) -> tuple[nn.Module, int]:
    """Torchvision's ConvNeXt-Tiny, its last norm before the pooling; images of 64 pixels or more."""
    from torchvision.models import convnext_tiny as make

    _at_least("convnext_tiny", size, 64)
    whole = make(weights=None)
    if channels != 3:
        first = nn.Conv2d(channels, 96, 4, stride=4)
        nn.init.trunc_normal_(first.weight, std=0.02)
        nn.init.zeros_(first.bias)  # type: ignore[arg-type]  # it has one
        whole.features[0][0] = first
    return _in_order(whole, "features", norm=whole.classifier[0]), 768
