"""Every network's graph says what the network says, and MONAI takes the bundle for one of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from components.evaluate.explanations import gradcam, read_head
from components.shared.imaging.views import normalise
from components.shared.inference import OUTPUTS, Model, read_bundle
from components.train.export import OPSET, _round_up, check_parity, export_graph, write_bundle, write_head
from components.train.models import NETWORKS, build
from tests.components.train.networks import by_autograd, warmed

SIZE = 64
LARGER = ("resnet18", "vit")
SCHEMA = Path(__file__).with_name("monai_schema.json")


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(NETWORKS.keys() - {"efficientnet_b4"})
)  # it has the operations of efficientnet_b0
def test_the_graph_says_what_the_network_says_for_any_number_of_images(name: str, tmp_path: Path) -> None:
    network = warmed(build(name, 1, 3, SIZE), 1, SIZE)
    path = tmp_path / "model.onnx"
    export_graph(network, SIZE, 1, path)
    graph = onnx.load(str(path))
    assert [(part.domain, part.version) for part in graph.opset_import if part.domain in {"", "ai.onnx"}] == [
        ("", OPSET)
    ]
    assert not (tmp_path / "model.onnx.data").exists()
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.graph.input, *graph.graph.output)}
    assert kinds == dict.fromkeys(("image", *OUTPUTS), onnx.TensorProto.FLOAT)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.randn(7, 1, SIZE, SIZE)
    with torch.no_grad():
        expected = [part.numpy() for part in network(images)]
    assert all(part.std(0).mean() > 1e-4 for part in expected), "the images make a difference"
    for rows in (1, 2, 7):
        found = session.run(list(OUTPUTS), {"image": images[:rows].numpy()})
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs[:rows], rtol=0, atol=2e-4 * np.abs(theirs).max())
    # Of the graph, and of the head beside it, the class activation maps can be made that autograd gives.
    (tmp_path / "models").mkdir()
    write_head(network, tmp_path / "models" / "head")
    _, features, feature_map = found
    targets = np.arange(7) % 3
    maps = by_autograd(network, torch.from_numpy(expected[2]), targets)
    ours = gradcam(read_head(tmp_path), features, feature_map, targets)
    np.testing.assert_allclose(ours, maps, rtol=0, atol=1e-4 * np.abs(maps).max())


def about(name: str, channels: int = 1) -> dict[str, Any]:
    """What train says of a model."""
    preprocess = {"size": SIZE, "fit": "pad", "channels": channels, "mean": 0.4, "std": 0.2}
    return {
        "task": "classification",
        "architecture": name,
        "classes": ["NORMAL", "PNEUMONIA", "OTHER"],
        "preprocess": {**preprocess, "decoding": {"colour": "gray"}},
        "temperature": 1.0,
        "threshold": None,
        "fingerprints": {"dataset": "d" * 64, "split": "e" * 64, "split_version": 1},
        "parameters": {},
        "best_epoch": 1,
        "history": [{"val_auc": 0.9}],
        "images": {"train": 2, "val": 2},
    }


def views(count: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE), np.uint8)


@pytest.fixture(scope="module", params=["small", *(pytest.param(n, marks=pytest.mark.slow) for n in LARGER)])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp(request.param)
    network = warmed(build(request.param, 1, 3, SIZE, hidden=64, dropout=0.1), 1, SIZE)
    write_bundle(folder, network, about(request.param))
    check_parity(folder, network, views())
    return folder


@pytest.fixture
def monai() -> Any:
    from monai import bundle

    return bundle


def verify(metadata: Path, folder: Path) -> None:
    """MONAI's verification, by a schema that is there already and so not downloaded."""
    from monai.bundle import verify_metadata

    schema = shutil.copy(SCHEMA, folder / "schema.json")
    digest = hashlib.sha256(SCHEMA.read_bytes()).hexdigest()
    verify_metadata(meta_file=str(metadata), filepath=str(schema), hash_val=digest, hash_type="sha256")


@pytest.mark.slow
def test_monai_verifies_the_metadata(bundle: Path, tmp_path: Path) -> None:
    verify(bundle / "configs" / "metadata.json", tmp_path)


@pytest.mark.parametrize("lost", ["schema", "monai_version", "required_packages_version", "network_data_format"])
def test_the_verification_would_find_what_lacks(lost: str, bundle: Path, tmp_path: Path) -> None:
    document = json.loads((bundle / "configs" / "metadata.json").read_bytes())
    del document[lost]
    (tmp_path / "metadata.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"must provide the `schema`|Failed validating"):
        verify(tmp_path / "metadata.json", tmp_path)


@pytest.mark.slow
def test_monai_verifies_what_goes_in_and_comes_out(bundle: Path, monai: Any) -> None:
    files = {f"{kind}_file": str(bundle / "configs" / name) for kind, name in (
        ("meta", "metadata.json"), ("config", "inference.json"),
    )}  # fmt: skip
    for part in ("network_def", "network"):
        monai.verify_net_in_out(part, device="cpu", **files)
    with pytest.raises(ValueError, match="output channel number"):
        monai.verify_net_in_out(
            "network_def", device="cpu", **files, **{"_meta_#network_data_format#outputs#pred#num_channels": 7}
        )


@pytest.mark.slow
def test_monai_runs_the_bundle_with_its_weights_to_the_graphs_logits(bundle: Path, monai: Any) -> None:
    parser = monai.ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(parser.get_parsed_content("checkpoint"), weights_only=True))
    model, images = Model(bundle), views(5)
    with torch.no_grad():
        found = parser.get_parsed_content("inferer")(torch.from_numpy(normalise(images, model.preprocess)), network)
    np.testing.assert_allclose(found.numpy(), model(images).logits, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_the_head_beside_the_graph_is_the_graphs_own_and_has_gradients_by_hand(bundle: Path) -> None:
    answer = Model(bundle)(views(4))
    head = {path.stem: np.load(path) for path in (bundle / "models" / "head").iterdir()}
    assert set(head) == {"weight_0", "bias_0", "weight_1", "bias_1"}
    hidden = np.maximum(answer.features @ head["weight_0"].T + head["bias_0"], 0)
    logits = hidden @ head["weight_1"].T + head["bias_1"]
    np.testing.assert_allclose(logits, answer.logits, atol=1e-4, rtol=1e-3)
    by_hand = ((hidden > 0) * head["weight_1"][2]) @ head["weight_0"]
    parser_recipe = json.loads((bundle / "configs" / "inference.json").read_bytes())["network_def"]
    recipe = {key: value for key, value in parser_recipe.items() if key not in {"_target_", "logits_only"}}
    network = build(**recipe).eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    features = torch.from_numpy(answer.features).requires_grad_()
    torch.autograd.backward(network.get_submodule("head")(features)[:, 2].sum())
    assert features.grad is not None
    np.testing.assert_allclose(by_hand, features.grad.numpy(), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_largest_difference_is_stated_and_not_below_the_true_one(bundle: Path) -> None:
    stated = read_bundle(bundle)["parity"]
    assert stated["images"] == 64
    recipe = json.loads((bundle / "configs" / "inference.json").read_bytes())["network_def"]
    network = build(**{key: value for key, value in recipe.items() if key != "_target_"}).eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    model = Model(bundle)
    with torch.no_grad():
        expected = network(torch.from_numpy(normalise(views(), model.preprocess))).numpy()
    found = float(np.abs(model(views()).logits - expected).max())
    assert 0.5 * found <= stated["largest_difference_of_a_logit"] <= max(20 * found, 1e-6)
    assert f"{stated['largest_difference_of_a_logit']:.0e}" == f"{stated['largest_difference_of_a_logit']:.2e}".replace(
        ".00", ""
    )


@pytest.mark.parametrize(
    ("value", "stated"),
    [(0.0, 0.0), (1e-6, 1e-6), (1.0000001e-6, 2e-6), (9.2e-7, 1e-6), (3e-7, 3e-7), (8.9e-5, 9e-5), (0.00061, 0.0007)],
)
def test_a_difference_is_rounded_up_to_one_digit(value: float, stated: float) -> None:
    assert _round_up(value) == pytest.approx(stated, rel=1e-9, abs=0)
    assert _round_up(value) >= value


@pytest.mark.slow
def test_a_graph_that_says_something_else_is_refused(tmp_path: Path) -> None:
    network = build("small", 1, 3, SIZE)
    write_bundle(tmp_path, network, about("small"))
    with torch.no_grad():
        network.get_parameter("head.4.bias").add_(0.01)
    with pytest.raises(RuntimeError, match=r"differs from the network by 0\.01 in a logit"):
        check_parity(tmp_path, network, views(8))


@pytest.mark.slow
def test_nothing_in_a_bundle_names_this_machine(bundle: Path) -> None:
    words = [sys.prefix, str(Path.home()), "site-packages", str(Path(__file__).parents[3])]
    for path in bundle.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [word for word in words if word.encode() in data], path.name


@pytest.mark.slow
def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    network = build("efficientnet_b0", 1, 3, SIZE)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_bundle(tmp_path / folder, network, about("efficientnet_b0"))
    ones = {path.relative_to(tmp_path / "one"): path for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert len(ones) == 9
    for name, path in ones.items():
        assert path.read_bytes() == (tmp_path / "two" / name).read_bytes(), name
