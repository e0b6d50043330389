"""The networks keep their contract: shapes, head on pooled features, export, and a clear answer to an unknown name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from components.train.models import NETWORKS, build


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 2, 48), (3, 3, 75)])
def test_shapes(name: str, channels: int, classes: int, size: int) -> None:
    model = build(name, channels, classes).eval()
    logits, features, found = model(torch.rand(2, channels, size, size))
    assert logits.shape == (2, classes)
    assert features.shape == found.shape[:2]
    assert found.ndim == 4
    assert min(found.shape[2:]) >= 2


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_logits_depend_on_the_map_only_through_mean_and_head(name: str) -> None:
    model = build(name, 1, 2).eval()
    logits, features, found = model(torch.rand(2, 1, 64, 64))
    torch.testing.assert_close(found.mean((2, 3)), features)
    torch.testing.assert_close(model.get_submodule("head")(features), logits)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_exported_graph_gives_the_same(name: str, tmp_path: Path) -> None:
    model = build(name, 1, 2).eval()
    batch = torch.rand(2, 1, 64, 64)
    target = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        # The classic exporter is asked for on purpose and warns that a newer one exists.
        warnings.simplefilter("ignore", DeprecationWarning)
        axes = {"image": {0: "n"}}
        names = ["logits", "features", "map"]
        torch.onnx.export(
            model, (batch,), target, opset_version=17, dynamo=False,
            input_names=["image"], output_names=names, dynamic_axes=axes,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    for rows in (1, 2):
        got = session.run(names, {"image": batch[:rows].numpy()})
        with torch.inference_mode():
            expected = model(batch[:rows])
        for one, two in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, two.numpy(), rtol=1e-3, atol=1e-4)


def test_same_seed_same_weights() -> None:
    first = build("small", 1, 2).state_dict()
    torch.manual_seed(0)
    second = build("small", 1, 2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("asked", "near"), [("smal", "small"), ("resnet-18", "resnet18")])
def test_unknown_name_names_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown network '{asked}': did you mean '{near}'"):
        build(asked, 1, 2)


@pytest.mark.parametrize(("channels", "classes"), [(0, 2), (1, 1)])
def test_impossible_sizes_are_refused(channels: int, classes: int) -> None:
    with pytest.raises(ValueError, match="cannot be built"):
        build("small", channels, classes)
