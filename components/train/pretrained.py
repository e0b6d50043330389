"""Loading of pretrained weights from torchvision, MONAI, or a bundle of medloop.

Weights of torchvision's ResNets and DenseNet-121, and of medloop's bundles, fit exactly. In ConvNeXt, the last norm is
before the pooling here, and after it in torchvision. Our vision transformer has no class token, and its position
embedding is resized to the image size. EfficientNet is padded as in TensorFlow, with an epsilon of 1e-3 in its norms:
MONAI's weights fit exactly, torchvision's approximately.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.shared.errors import RefusedError

WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
"""Keys under which a file can store its weights, beside other data."""

PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""Prefixes that wrappers add to the names of all layers."""

OTHER_NAMES = (
    (r"(denselayer\d+)\.(norm|conv)\.?([12])\.", r"\1.layers.\2\3."),
    (r"^classifier\.0\.", "norm."),
    (r"^conv_proj\.", "patch_embedding.patch_embeddings."),
    (r"^encoder\.pos_embedding$", "patch_embedding.position_embeddings"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^encoder\.ln\.", "norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.linear1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.linear2."),
)
"""torchvision's layer names, including those of older files, and ours."""

NOT_BODY = re.compile(
    r"^(fc|_fc|classifier|class_layers|classification_head|head|heads)\.|^(class_token|cls_token)$|\.(norm_)?cross_attn\."
)
"""Heads and other layers that our networks do not have."""

FORMATS = (
    "Only a state_dict saved with torch.save (.pt, .pth) is supported, not safetensors, TorchScript, ONNX or Keras: "
    "save the state_dict with torch.save."
)


@dataclass(frozen=True)
class Report:
    """How the weights of a file were used."""

    loaded: int
    adapted: tuple[str, ...]
    left_out: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.loaded} weights loaded unchanged"]
        for use, names in (("adapted", self.adapted), ("ignored", self.left_out), ("new", self.new)):
            if names:
                parts.append(f"{use}: {_some(names)}")
        return "; ".join(parts)


def load_weights(network: nn.Module, path: Path) -> Report:
    """Load a file's weights into the body of the network, and report how they were used.

    The first layer is adapted to the number of channels. A head is ignored, because the file does not name its classes;
    the head of the network keeps its random weights.
    """
    weights = _read(path)
    body = _without_counts(network.get_submodule("body").state_dict())
    own = {name.removeprefix("body."): value for name, value in weights.items() if name.startswith("body.")}
    if own:
        left_out = [name for name in weights if name.startswith("head.")]
    else:
        own, left_out = _rename(weights)
    if not set(own) & set(body):
        own = _by_order(own, body)
    fitted, adapted = _fit(own, body)
    network.load_state_dict({f"body.{name}": value for name, value in fitted.items()}, strict=False)
    new = tuple(f"head.{name}" for name in network.get_submodule("head").state_dict())
    return Report(len(fitted) - len(adapted), tuple(adapted), tuple(left_out), new)


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without wrappers and prefixes."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError("The weights file does not exist. Check its path.") from None
    except Exception as error:  # torch raises various errors for files that it cannot read
        if isinstance(error, pickle.UnpicklingError) and re.search(r"Unsupported (global|class)", str(error)):
            raise RefusedError(
                "The weights file contains Python objects beside tensors; it is not loaded, because they could run "
                "code. Save only the network's state_dict with torch.save."
            ) from None
        raise RefusedError(f"The weights file is damaged, or has another format. {FORMATS}") from None
    while isinstance(content, Mapping) and (keys := [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]):
        content = content[keys[0]]
    named = isinstance(content, Mapping) and all(isinstance(name, str) for name in content)
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)} if named else {}
    if not weights:
        raise RefusedError(
            f"The weights file contains no weights: {type(content).__name__} without named tensors. {FORMATS}"
        )
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    weights = _without_counts(weights)
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise RefusedError(
            f"The weights file contains NaN or infinite values, in {_some(bad)}. Use weights from a training that "
            "converged."
        )
    return weights


def _without_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without the batch counts of norms, which older files lack and nothing uses."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def _rename(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of the body under our names, and the names of all other weights."""
    body, rest = {}, []
    for name, value in weights.items():
        own_name = name
        for pattern, replacement in OTHER_NAMES:
            own_name = re.sub(pattern, replacement, own_name)
        if NOT_BODY.search(own_name):
            rest.append(name)
        else:
            body[own_name] = value
    return body, rest


def _by_order(weights: Mapping[str, Tensor], body: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the body's names, assigned in order, for files with other names for the same layers."""
    if len(weights) != len(body):
        raise RefusedError(
            f"The weights do not fit: the file has {len(weights)} weights of a body, with names like "
            f"{next(iter(weights), 'none')}, and the network's body has {len(body)}, like {next(iter(body))}. {_REMEDY}"
        )
    return dict(zip(body, weights.values(), strict=True))


_REMEDY = "Set architecture to the network of the weights, or train without them."


def _fit(weights: Mapping[str, Tensor], body: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights in the body's shapes, and the adapted ones; refuse weights that do not fit."""
    fitted, adapted, wrong = {}, [], []
    first = next((name for name, value in body.items() if value.ndim == 4), "")
    for name, own in body.items():
        value = weights.get(name)
        if value is None:
            wrong.append(f"{name} is missing in the file")
            continue
        changed = value
        if name == first:
            changed = _to_channels(value, own)
        elif name.endswith("position_embeddings"):
            changed = _to_positions(value, own)
        if changed.shape != own.shape:
            wrong.append(f"{name} is {_size(value)} in the file and {_size(own)} in the network")
        elif changed is not value:
            adapted.append(f"body.{name} from {_size(value)} to {_size(own)}")
        fitted[name] = changed.to(own.dtype)
    wrong += [f"{name} is not in the network" for name in weights if name not in body]
    if wrong:
        raise RefusedError(f"The weights do not fit, in {len(wrong)} layers: {_some(wrong)}. {_REMEDY}")
    return fitted, adapted


def _to_channels(value: Tensor, own: Tensor) -> Tensor:
    """Return a first layer for our number of channels, with the same output for gray images."""
    if value.ndim != 4 or value.shape[1] == own.shape[1]:
        return value
    channels = own.shape[1]
    return value.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels


def _to_positions(value: Tensor, own: Tensor) -> Tensor:
    """Return a position embedding without the class token, resized to our number of patches."""
    if value.ndim != 3 or value.shape == own.shape or value.shape[2] != own.shape[2]:
        return value
    old, new = math.isqrt(value.shape[1]), math.isqrt(own.shape[1])
    grid = value[:, value.shape[1] - old * old :]
    if value.shape[1] - old * old > 1 or old < 1:
        return value
    picture = grid.transpose(1, 2).reshape(1, -1, old, old).float()
    if old != new:
        picture = F.interpolate(picture, (new, new), mode="bicubic", align_corners=False, antialias=new < old)
    return picture.flatten(2).transpose(1, 2)


def _size(value: Tensor) -> str:
    return "×".join(str(side) for side in value.shape) or "a single number"


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (f", and {len(shown) - 3} more" if len(shown) > 3 else "")
