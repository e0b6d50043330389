"""Weights from files of others: what fits gives the same answers, what does not is told with its layers."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from components.train.models import build
from components.train.pretrained import load_weights

SIZE = 64


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def saved(held: Any, folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(held, path)
    return path


def used(whole: nn.Module) -> nn.Module:
    """A torchvision network with statistics in its norms and scales in its layers, as training leaves them."""
    for layer in whole.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)  # type: ignore[arg-type]  # it has one
            nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]  # it has one
            nn.init.uniform_(layer.weight, 0.7, 1.3)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
        for name, value in layer.named_parameters(recurse=False):
            if name == "layer_scale":
                nn.init.uniform_(value, 0.5, 1.0)
    return whole.eval()


def of_torchvision(name: str) -> Any:
    from torchvision import models

    options = {"image_size": SIZE} if name.startswith("vit") else {}
    return used(getattr(models, name)(weights=None, **options))


def answer(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(images)
    return found


def without_pooling(whole: nn.Module, *names: str) -> nn.Module:
    return nn.Sequential(*(part for name, part in whole.named_children() if name not in names))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_of_torchvision_gives_the_same_map(name: str, tmp_path: Path) -> None:
    whole, images = of_torchvision(name), torch.rand(2, 3, SIZE, SIZE)
    network = build(name, 3, 2, SIZE)
    report = load_weights(network, saved(whole.state_dict(), tmp_path))
    expected = answer(without_pooling(whole, "avgpool", "fc"), images)
    torch.testing.assert_close(answer(network.get_submodule("body"), images), expected, atol=1e-4, rtol=1e-4)
    assert report.left_out == ("fc.weight", "fc.bias")
    assert report.adapted == ()
    assert "head.4.weight" in report.new
    assert report.loaded == len([key for key in whole.state_dict() if "num_batches" not in key]) - 2


@pytest.mark.slow
@pytest.mark.parametrize("old_names", [False, True])
def test_a_densenet_of_torchvision_gives_the_same_map(old_names: bool, tmp_path: Path) -> None:
    whole, images = of_torchvision("densenet121"), torch.rand(2, 3, SIZE, SIZE)
    state = whole.state_dict()
    if old_names:  # the published file has norm.1 for norm1, and no counts of batches
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
            for key, value in state.items()
            if "num_batches" not in key
        }
    network = build("densenet121", 3, 2, SIZE)
    report = load_weights(network, saved(state, tmp_path))
    expected = torch.relu(answer(whole.features, images))
    torch.testing.assert_close(answer(network.get_submodule("body"), images), expected, atol=1e-4, rtol=1e-4)
    assert report.left_out == ("classifier.weight", "classifier.bias")


@pytest.mark.slow
def test_a_convnext_of_torchvision_gives_the_same_map_before_the_last_norm(tmp_path: Path) -> None:
    whole, images = of_torchvision("convnext_tiny"), torch.rand(2, 3, SIZE, SIZE)
    nn.init.uniform_(whole.classifier[0].weight)
    network = build("convnext_tiny", 3, 2, SIZE)
    report = load_weights(network, saved(whole.state_dict(), tmp_path))
    features = answer(whole.features, images)
    expected = answer(whole.classifier[0], features)
    torch.testing.assert_close(answer(network.get_submodule("body.features"), images), features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answer(network.get_submodule("body"), images), expected, atol=1e-4, rtol=1e-4)
    assert report.left_out == ("classifier.2.weight", "classifier.2.bias")


@pytest.mark.slow
def test_a_transformer_of_torchvision_gives_the_same_tokens_but_for_its_class_token(tmp_path: Path) -> None:
    whole, images = of_torchvision("vit_b_16"), torch.rand(2, 3, SIZE, SIZE)
    nn.init.normal_(whole.class_token)
    network = build("vit", 3, 2, SIZE)
    report = load_weights(network, saved(whole.state_dict(), tmp_path))
    with torch.no_grad():
        tokens = whole.conv_proj(images).flatten(2).transpose(1, 2) + whole.encoder.pos_embedding[:, 1:]
        for layer in whole.encoder.layers:
            tokens = layer(tokens)
        expected = whole.encoder.ln(tokens).transpose(1, 2).reshape(2, 768, 4, 4)
    torch.testing.assert_close(answer(network.get_submodule("body"), images), expected, atol=1e-4, rtol=1e-4)
    assert {"class_token", "heads.head.weight"} <= set(report.left_out)
    assert report.adapted == ("body.patch_embedding.position_embeddings from 1×17×768 to 1×16×768",)


@pytest.mark.slow
def test_position_embeddings_are_stretched_to_the_image_size(tmp_path: Path) -> None:
    donor = build("vit", 1, 2, 64)
    positions = donor.get_parameter("body.patch_embedding.position_embeddings")
    slope = torch.linspace(-1, 1, 4)
    with torch.no_grad():
        positions.copy_(slope[None, :].expand(4, 4).reshape(1, 16, 1).expand_as(positions))  # rises from left to right
    network = build("vit", 1, 2, 128)
    load_weights(network, saved(donor.state_dict(), tmp_path))
    found = network.get_parameter("body.patch_embedding.position_embeddings").reshape(8, 8, 768)
    torch.testing.assert_close(found[0], found[7])
    assert (found[0, 1:, 0] > found[0, :-1, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b4"])
def test_an_efficientnet_of_torchvision_gives_the_same_once_it_pads_and_guards_alike(name: str, tmp_path: Path) -> None:
    whole, images = of_torchvision(name), torch.rand(2, 3, SIZE, SIZE)
    network = build(name, 3, 2, SIZE)
    report = load_weights(network, saved(whole.state_dict(), tmp_path))
    body = network.get_submodule("body")
    ours = [(key, part) for key, part in body.named_modules() if isinstance(part, nn.Conv2d)]
    theirs = [(key, part) for key, part in whole.features.named_modules() if isinstance(part, nn.Conv2d)]
    for (key, _), (other, layer) in zip(ours, theirs, strict=True):
        layer.padding = (0, 0)
        parent, _, last = other.rpartition(".")
        padded = nn.Sequential(body.get_submodule(f"{key}_padding"), layer)
        whole.features.get_submodule(parent).register_module(last, padded)
    for layer in whole.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-3
    torch.testing.assert_close(answer(body, images), answer(whole.features, images), atol=1e-4, rtol=1e-4)
    assert report.left_out == ("classifier.1.weight", "classifier.1.bias")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet", "DenseNet121", "EfficientNetBN", "ViT"])
def test_weights_of_monai_fit(name: str, tmp_path: Path) -> None:
    from monai.networks import nets

    made: dict[str, tuple[str, Any]] = {
        "ResNet": ("resnet18", lambda: nets.resnet18(
            spatial_dims=2, n_input_channels=1, num_classes=5, conv1_t_stride=2, shortcut_type="B",
            bias_downsample=False,
        )),
        "DenseNet121": ("densenet121", lambda: nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=5)),
        "EfficientNetBN": ("efficientnet_b0", lambda: nets.EfficientNetBN(
            "efficientnet-b0", pretrained=False, in_channels=1, num_classes=5
        )),
        "ViT": ("vit", lambda: nets.ViT(
            1, 64, 16, spatial_dims=2, classification=True, num_classes=5, qkv_bias=True
        )),
    }  # fmt: skip
    architecture, make = made[name]
    whole = used(make())
    network = build(architecture, 1, 2, SIZE)
    report = load_weights(network, saved({"state_dict": whole.state_dict()}, tmp_path))
    assert report.adapted == ()
    state, theirs = network.state_dict(), whole.state_dict()
    same = [key for key, value in theirs.items() if f"body.{key}" in state and torch.equal(state[f"body.{key}"], value)]
    assert len([key for key in same if "num_batches" not in key]) == report.loaded
    if name == "ViT":
        return  # it has a class token among the others, so its tokens are not ours
    images = torch.rand(2, 1, SIZE, SIZE)
    if name == "EfficientNetBN":
        return  # its padding is made for 224 pixels
    head = answer(whole, images)
    features = network.eval()(images)[1]
    last = [layer for layer in whole.modules() if isinstance(layer, nn.Linear)][-1]
    torch.testing.assert_close(last(features), head, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnet_b0", "convnext_tiny", "vit"])
def test_a_first_layer_of_three_channels_says_the_same_of_a_gray_image(name: str, tmp_path: Path) -> None:
    gray = torch.rand(2, 1, SIZE, SIZE)
    for there, here in ((3, 1), (1, 3)):
        donor, network = build(name, there, 2, SIZE).eval(), build(name, here, 2, SIZE).eval()
        report = load_weights(network, saved(donor.state_dict(), tmp_path))
        expected = answer(donor.get_submodule("body"), gray.expand(-1, there, -1, -1))
        found = answer(network.get_submodule("body"), gray.expand(-1, here, -1, -1))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert len(report.adapted) == 1
        assert report.adapted[0].startswith("body.")


@pytest.mark.parametrize("count", [2, 3])
def test_the_head_of_an_own_bundle_is_left_out(count: int, tmp_path: Path) -> None:
    donor, network = build("small", 1, 2, SIZE), build("small", 1, count, SIZE)
    before = {key: value.clone() for key, value in network.get_submodule("head").state_dict().items()}
    report = load_weights(network, saved(donor.state_dict(), tmp_path))
    assert all(torch.equal(value, before[key]) for key, value in network.get_submodule("head").state_dict().items())
    assert torch.equal(network.get_parameter("body.0.0.weight"), donor.get_parameter("body.0.0.weight"))
    assert "head.4.weight" in report.left_out
    assert "head.4.weight" in report.new
    assert "new: head.1.weight" in str(report)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.model."])
def test_what_wraps_the_weights_is_taken_off(wrapper: str, prefix: str, tmp_path: Path) -> None:
    donor, network = build("small", 1, 2, SIZE), build("small", 1, 2, SIZE)
    held = {wrapper: {prefix + key: value.half() for key, value in donor.state_dict().items()}, "epoch": 3}
    load_weights(network, saved(held, tmp_path))
    wanted = donor.get_parameter("body.0.0.weight").half().float()
    assert torch.equal(network.get_parameter("body.0.0.weight"), wanted)


def test_weights_of_another_shape_name_the_layers_and_change_nothing(tmp_path: Path) -> None:
    network = build("resnet18", 1, 2, SIZE)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit") as refused:
        load_weights(network, saved(build("resnet50", 1, 2, SIZE).state_dict(), tmp_path))
    told = str(refused.value)
    assert "layer1.0.conv1.weight is 64×64×1×1 in the file and 64×64×3×3 in the network" in told
    count = re.search(r"in (\d+) layers: .*, and (\d+) more", told)
    assert count is not None
    assert int(count[1]) == int(count[2]) + 3
    assert int(count[1]) > 100
    assert "Set architecture to the network of the weights" in told
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        ("convnext_tiny", "small", r"the file has \d+ weights of a body, with names like features.0.0.weight"),
        ("small", "resnet18", r"the file has 35 weights of a body"),
    ],
)
def test_weights_of_another_network_are_told(theirs: str, ours: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        load_weights(build(ours, 1, 2, SIZE), saved(build(theirs, 1, 2, SIZE).state_dict(), tmp_path))


def test_another_efficientnet_of_torchvision_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the file has \d+ weights of a body.*Set architecture"):
        load_weights(
            build("efficientnet_b0", 3, 2, SIZE), saved(of_torchvision("efficientnet_b4").state_dict(), tmp_path)
        )


def test_layers_that_are_missing_or_too_many_are_told(tmp_path: Path) -> None:
    state = build("small", 1, 2, SIZE).state_dict()
    state["body.9.weight"] = state.pop("body.0.0.weight")
    with pytest.raises(ValueError, match=r"in 2 layers: 0.0.weight is missing in the file, 9.weight is not in the net"):
        load_weights(build("small", 1, 2, SIZE), saved(state, tmp_path))


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    state = build("small", 1, 2, SIZE).state_dict()
    state["body.1.0.weight"][0] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinite values, in body\.1\.0\.weight\. Use weights from"):
        load_weights(build("small", 1, 2, SIZE), saved(state, tmp_path))


class Touch:
    """A pickle that would write a file when it is opened without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_could_run_code_is_not_opened(legacy: bool, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1), "more": Touch(trap)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="contains Python objects beside tensors; it is not loaded"):
        load_weights(build("small", 1, 2, SIZE), path)
    assert not trap.exists()


def torch_file(network: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["empty", "text", "noise", "half", "safetensors", "program"])
def test_what_is_no_file_of_weights_is_told_with_the_formats_that_are_read(kind: str, tmp_path: Path) -> None:
    network = build("small", 1, 2, SIZE)
    path = tmp_path / "weights.pth"
    whole = torch_file(network)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not weights\n" * 100,
            "noise": np.random.default_rng(0).bytes(5000),
            "half": whole[: len(whole) // 2],
            "safetensors": len(header).to_bytes(8, "little") + header + bytes(4),
            "program": whole,
        }[kind]
    )
    if kind == "program":
        program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
        torch.export.save(program, path)
    with pytest.raises(ValueError, match=r"damaged, or has another format\. Only a state_dict saved with torch\.save"):
        load_weights(network, path)


@pytest.mark.parametrize("held", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"state_dict": {}}])
def test_a_file_without_weights_is_told(held: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no weights"):
        load_weights(build("small", 1, 2, SIZE), saved(held, tmp_path))


def test_a_file_that_is_not_there_is_told_without_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="weights file does not exist") as refused:
        load_weights(build("small", 1, 2, SIZE), tmp_path / "mueller.pth")
    assert "mueller" not in str(refused.value)
