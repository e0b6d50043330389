"""Weights from a file into a network: of torchvision, of MONAI, or of a bundle that medloop made.

What fits exactly: torchvision's ResNets and DenseNet-121, and whatever this network's own bundles hold. ConvNeXt's last
norm stands before the pooling here and after it in torchvision. Our vision transformer has no class token, and its
position embedding is stretched to the image size. EfficientNet is padded as in TensorFlow, and its norms are guarded by
1e-3: weights made so (MONAI's) fit exactly, torchvision's nearly.
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
"""Names under which a file may hold its weights, beside other things."""

PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
"""What wrappers of a network put before all its layers' names."""

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
"""torchvision's names of layers (also those of its older files), and the ones they have here."""

NOT_BODY = re.compile(
    r"^(fc|_fc|classifier|class_layers|classification_head|head|heads)\.|^(class_token|cls_token)$|\.(norm_)?cross_attn\."
)
"""Heads of other networks, and what they have that ours have not."""

FORMATS = (
    "Files that torch.save wrote of a network's state_dict are read (.pt, .pth); safetensors, TorchScript, ONNX and "
    "Keras files are not: save the state_dict with torch.save."
)


@dataclass(frozen=True)
class Report:
    """What became of the weights in a file."""

    loaded: int
    adapted: tuple[str, ...]
    left_out: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.loaded} weights taken as they are"]
        for what, names in (("adapted", self.adapted), ("left out", self.left_out), ("new", self.new)):
            if names:
                parts.append(f"{what}: {_some(names)}")
        return "; ".join(parts)


def load(network: nn.Module, path: Path) -> Report:
    """Put a file's weights into the network's body; gives what became of them.

    The first layer is adapted to the number of channels. A head is left out: it stands for classes that a file of
    weights does not name, and the network's own stays new.
    """
    found = _read(path)
    body = _without_counts(network.get_submodule("body").state_dict())
    own = {name.removeprefix("body."): value for name, value in found.items() if name.startswith("body.")}
    if own:
        left_out = [name for name in found if name.startswith("head.")]
    else:
        own, left_out = _renamed(found)
    if not set(own) & set(body):
        own = _by_order(own, body)
    fitted, adapted = _fitted(own, body)
    network.load_state_dict({f"body.{name}": value for name, value in fitted.items()}, strict=False)
    new = tuple(f"head.{name}" for name in network.get_submodule("head").state_dict())
    return Report(len(fitted) - len(adapted), tuple(adapted), tuple(left_out), new)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file by their names, without what wrappers put around and before them."""
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError("There is no weights file at the path that was given. Check the path.") from None
    except Exception as error:  # whatever a file makes the reader do, it cannot be read
        if isinstance(error, pickle.UnpicklingError) and re.search(r"Unsupported (global|class)", str(error)):
            raise RefusedError(
                "The weights file holds Python objects beside tensors, and is not opened: they could run code. Save "
                "the network's state_dict alone, with torch.save."
            ) from None
        raise RefusedError(f"The weights file is damaged, or of another format. {FORMATS}") from None
    while isinstance(held, Mapping) and (inner := [name for name in WRAPPERS if isinstance(held.get(name), Mapping)]):
        held = held[inner[0]]
    found = {name: value for name, value in held.items() if isinstance(value, Tensor)} if _is_named(held) else {}
    if not found:
        raise RefusedError(f"The weights file holds no weights: {type(held).__name__} without named tensors. {FORMATS}")
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    found = _without_counts(found)
    if bad := [name for name, value in found.items() if not value.isfinite().all()]:
        raise RefusedError(
            f"The weights file holds values that are not numbers, in {_some(bad)}. Take the file of a training that "
            "went well."
        )
    return found


def _is_named(held: Any) -> bool:
    return isinstance(held, Mapping) and all(isinstance(name, str) for name in held)


def _without_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights less the norms' counts of batches, which older files lack and nothing uses."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def _renamed(found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The body's weights under the names that they have here, and the names of what is no part of a body."""
    body, rest = {}, []
    for name, value in found.items():
        here = name
        for pattern, replacement in OTHER_NAMES:
            here = re.sub(pattern, replacement, here)
        if NOT_BODY.search(here):
            rest.append(name)
        else:
            body[here] = value
    return body, rest


def _by_order(found: Mapping[str, Tensor], body: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the body's names, given in order, where the file has other names for the same layers."""
    if len(found) != len(body):
        raise RefusedError(
            f"The weights do not fit: the file holds {len(found)} weights of a body, under names like "
            f"{next(iter(found), 'none')}, and the network's body has {len(body)}, like {next(iter(body))}. {_REMEDY}"
        )
    return dict(zip(body, found.values(), strict=True))


_REMEDY = "Set architecture to the network that they were made for, or train without them."


def _fitted(found: Mapping[str, Tensor], body: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in the body's shapes, and the names of those that had to be adapted; refuses what does not fit."""
    fitted, adapted, wrong = {}, [], []
    first = next((name for name, value in body.items() if value.ndim == 4), "")
    for name, here in body.items():
        value = found.get(name)
        if value is None:
            wrong.append(f"{name} is missing in the file")
            continue
        changed = value
        if name == first:
            changed = _to_channels(value, here)
        elif name.endswith("position_embeddings"):
            changed = _to_positions(value, here)
        if changed.shape != here.shape:
            wrong.append(f"{name} is {_size(value)} in the file and {_size(here)} in the network")
        elif changed is not value:
            adapted.append(f"body.{name} from {_size(value)} to {_size(here)}")
        fitted[name] = changed.to(here.dtype)
    wrong += [f"{name} is not in the network" for name in found if name not in body]
    if wrong:
        raise RefusedError(f"The weights do not fit, in {len(wrong)} layers: {_some(wrong)}. {_REMEDY}")
    return fitted, adapted


def _to_channels(value: Tensor, here: Tensor) -> Tensor:
    """A first layer for another number of channels, which says of a gray image the same as before."""
    if value.ndim != 4 or value.shape[1] == here.shape[1]:
        return value
    channels = here.shape[1]
    return value.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels


def _to_positions(value: Tensor, here: Tensor) -> Tensor:
    """A position embedding without the class token's, stretched to another number of patches."""
    if value.ndim != 3 or value.shape == here.shape or value.shape[2] != here.shape[2]:
        return value
    old, new = math.isqrt(value.shape[1]), math.isqrt(here.shape[1])
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
