"""The networks keep their contract: shapes, head on pooled features, gradients, stages, and clear answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from components.train.models import NETWORKS, build, stages
from tests.components.train.networks import warmed

ALL = sorted(NETWORKS)


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_the_networks_that_are_promised_are_there() -> None:
    promised = {"resnet18", "resnet50", "efficientnet_b0", "efficientnet_b4", "densenet121", "vit", "convnext_tiny"}
    assert promised | {"small"} <= set(NETWORKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 2, 64), (3, 3, 80)])
def test_the_map_gives_the_features_and_the_features_give_the_logits(
    name: str, channels: int, classes: int, size: int
) -> None:
    model = warmed(build(name, channels, classes, size), channels, size)
    logits, features, found = model(torch.rand(2, channels, size, size))
    assert logits.shape == (2, classes)
    assert features.shape == found.shape[:2]
    assert found.ndim == 4
    assert min(found.shape[2:]) >= 2
    torch.testing.assert_close(found.mean((2, 3)), features)
    torch.testing.assert_close(model.get_submodule("head")(features), logits)
    assert features.std(0).mean() > 1e-3, "the features say something of the image"


@pytest.mark.parametrize("name", [name for name in ALL if name != "vit"])
def test_odd_image_sizes_are_taken(name: str) -> None:
    found = build(name, 1, 2, 75).eval()(torch.rand(1, 1, 75, 75))[2]
    assert min(found.shape[2:]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_weight_learns_and_twice_the_same(name: str, deterministic: None) -> None:
    images, labels = torch.rand(3, 1, 64, 64), torch.tensor([0, 1, 1])

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        model = build(name, 1, 2, 64)
        loss = nn.functional.cross_entropy(model(images)[0], labels)
        torch.autograd.backward(loss)
        missing = [weight for weight, value in model.named_parameters() if value.grad is None]
        assert not missing
        return {weight: value.grad for weight, value in model.named_parameters() if value.grad is not None}

    first, second = gradients(), gradients()
    assert all(value.isfinite().all() for value in first.values())
    assert first["head.4.weight"].abs().sum() > 0
    assert all(torch.equal(first[weight], second[weight]) for weight in first)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_stages_hold_all_of_the_body_from_input_to_output(name: str) -> None:
    model = build(name, 1, 2, 64)
    groups = stages(model)
    assert 3 <= len(groups) <= 6
    body = [id(weight) for weight in model.get_submodule("body").parameters()]
    grouped = [id(weight) for group in groups for weight in group.parameters()]
    assert grouped == body, "each weight once, in the order from input to output"
    sizes = [sum(weight.numel() for weight in group.parameters()) for group in groups]
    assert max(sizes) < 0.85 * sum(sizes), "no stage is almost the whole"


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_stages_come_in_the_order_in_which_the_image_passes_them(name: str) -> None:
    model = build(name, 1, 2, 64).eval()
    seen: list[int] = []
    for number, group in enumerate(stages(model)):
        for part in group.modules():
            if next(part.children(), None) is None and next(part.parameters(), None) is not None:
                part.register_forward_hook(lambda *_, number=number: seen.append(number))
    model(torch.rand(1, 1, 64, 64))
    assert seen == sorted(seen)
    assert set(seen) == set(range(len(stages(model))))


def test_a_network_of_another_make_has_stages_too() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = []
            for _ in range(9):
                layers += [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
            self.body = nn.Sequential(*layers)

    groups = stages(Flat())
    assert [sum(isinstance(part, nn.Conv2d) for part in group.modules()) for group in groups] == [2, 2, 3, 2]
    assert all(
        sum(isinstance(part, nn.BatchNorm2d) for part in group.modules())
        == sum(isinstance(part, nn.Conv2d) for part in group.modules())
        for group in groups
    )


def test_the_head_is_as_asked() -> None:
    head = build("small", 1, 3, 64, hidden=32, dropout=0.5).get_submodule("head")
    assert [type(layer) for layer in head.children()] == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [layer.weight.shape for layer in head.children() if isinstance(layer, nn.Linear)] == [(32, 160), (3, 32)]
    assert {layer.p for layer in head.children() if isinstance(layer, nn.Dropout)} == {0.5}


def test_the_logits_alone_are_the_same_logits() -> None:
    whole = build("small", 1, 2, 64).eval()
    alone = build("small", 1, 2, 64, logits_only=True).eval()
    alone.load_state_dict(whole.state_dict())
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(alone(images), whole(images)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "convnext_tiny"])
def test_same_seed_same_weights(name: str) -> None:
    first = build(name, 1, 2, 64).state_dict()
    torch.manual_seed(0)
    second = build(name, 1, 2, 64).state_dict()
    assert all(torch.equal(first[weight], second[weight]) for weight in first)


@pytest.mark.parametrize(
    ("asked", "near"), [("smal", "small"), ("resnet-18", "resnet18"), ("EfficientNet-B0", "efficientnet_b0")]
)
def test_unknown_name_names_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown network '{asked}'; did you mean '{near}'"):
        build(asked, 1, 2, 64)


@pytest.mark.parametrize(("channels", "classes"), [(0, 2), (1, 1)])
def test_impossible_sizes_are_refused(channels: int, classes: int) -> None:
    with pytest.raises(ValueError, match="cannot be built"):
        build("small", channels, classes, 64)


@pytest.mark.parametrize(("size", "near"), [(100, 96), (121, 128), (16, 32), (15, 32)])
def test_the_transformer_says_which_sizes_it_takes(size: int, near: int) -> None:
    with pytest.raises(
        ValueError, match=rf"image_size is {size}; for vit it must be a multiple .* Set it to {near}, or choose another"
    ):
        build("vit", 1, 2, size)


@pytest.mark.parametrize("name", ["densenet121", "convnext_tiny"])
def test_too_small_an_image_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} does not support images of 48 pixels.*Set image_size to 64 or more"):
        build(name, 1, 2, 48)
