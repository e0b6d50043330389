"""The maps of what a model looked at: equal to autograd's, of the right images, and honest where they show nothing."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from components.evaluate.explanations import (
    MAX_CORRELATION,
    Answers,
    choose_answers,
    confidences,
    describe_prediction,
    gradcam,
    occlusion,
    positive,
    rank_correlation,
    read_head,
    shuffle_head,
    shuffle_layers,
    verdict,
    weights,
)
from components.evaluate.overlay import GAP, SIDE, overlay
from components.quantize.quantize import _to_int8
from components.shared.inference import Model
from components.shared.statistics.bootstrapped_metrics import Predictions
from components.train.export import export_graph, write_head
from components.train.models import NETWORKS, build
from tests.components.evaluate import scenes
from tests.components.evaluate.scenes import Scene
from tests.components.train.networks import by_autograd, warmed


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_map_of_every_network_is_what_autograd_gives(name: str, tmp_path: Path) -> None:
    """Of the network's own map; that the graph gives the same is tested where it is exported (test_export.py)."""
    torch.manual_seed(0)
    network = warmed(build(name, 1, 3, 64), 1, 64)
    (tmp_path / "models").mkdir()
    write_head(network, tmp_path / "models" / "head")
    with torch.no_grad():
        found = network.get_submodule("body")(torch.randn(4, 1, 64, 64))
    targets = np.array([0, 2, 1, 2])
    theirs = by_autograd(network, found, targets)
    ours = gradcam(read_head(tmp_path), found.mean((2, 3)).numpy(), found.numpy(), targets)
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


# Which images.


def scored(probabilities: list[float], labels: list[int], patients: list[int], threshold: float = 0.5) -> Predictions:
    p = np.array(probabilities)
    return Predictions(
        np.array(labels), (p >= threshold).astype(np.int64), np.stack([1 - p, p], axis=1), np.array(patients)
    )


def chosen(which: Predictions, threshold: Any, each: int, ids: list[str]) -> dict[str, list[int]]:
    """The chosen images by kind, by their names as numbers."""
    candidates = Answers.of(which, threshold)
    picked = choose_answers(candidates, ids, each)
    return {kind: [int(ids[candidates.images[at]]) for at in several] for kind, several in picked.items()}


def test_the_surest_right_the_surest_wrong_and_the_least_sure_are_chosen_of_different_patients() -> None:
    p = scored([0.99, 0.98, 0.03, 0.90, 0.95, 0.20, 0.52, 0.49, 0.60, 0.10],
               [1,    1,    0,    1,    0,    1,    1,    0,    1,    0],
               [0,    0,    1,    2,    3,    1,    4,    5,    6,    7])  # fmt: skip
    ids = [f"{place}" for place in range(10)]
    # 5 is wrong, and its patient has shown 2 no more; right ones come from both classes in turn.
    expected = {"confident right": [0, 9], "confident wrong": [5, 4], "uncertain": [7, 6]}
    assert chosen(p, 0.5, 2, ids) == expected
    order = np.random.default_rng(0).permutation(10)
    again = Predictions(p.labels[order], p.predicted[order], p.probabilities[order], p.patients[order])
    assert chosen(again, 0.5, 2, [ids[place] for place in order]) == expected
    assert chosen(p, 0.5, 0, ids) == {"confident right": [], "confident wrong": [], "uncertain": []}
    none_wrong = chosen(scored([0.9, 0.1], [1, 0], [0, 1]), 0.5, 3, ["0", "1"])
    assert none_wrong == {"confident right": [1, 0], "confident wrong": [], "uncertain": []}


def test_of_findings_those_that_are_there_or_were_said_to_be_are_explained() -> None:
    labels = np.array([[1, 0], [0, 0], [0, 1], [1, 1]])
    probabilities = np.array([[0.9, 0.1], [0.2, 0.7], [0.1, 0.25], [0.4, 0.95]])
    which = Predictions(labels, (probabilities >= [0.5, 0.3]).astype(np.int64), probabilities, np.arange(4))
    candidates = Answers.of(which, [0.5, 0.3])
    pairs = list(zip(candidates.images.tolist(), candidates.targets.tolist(), strict=True))
    assert pairs == [(0, 0), (1, 1), (2, 1), (3, 0), (3, 1)]
    assert candidates.right.tolist() == [True, False, False, False, True]
    np.testing.assert_allclose(candidates.confidence, [0.8, 4 / 7, 1 / 6, 0.2, 0.65 / 0.7])
    picked = choose_answers(candidates, ["a", "b", "c", "d"], 1)
    assert picked == {"confident right": [0], "confident wrong": [3], "uncertain": [2]}
    for (place, target), words, p in (((3, 0), ("Mass", "no Mass"), 0.6), ((1, 1), ("no Nodule", "Nodule"), 0.7)):
        label, called, probability = describe_prediction(which, ["Mass", "Nodule"], place, target)
        assert (label, called) == words
        assert probability == pytest.approx(p)


def test_how_sure_an_answer_is_is_measured_from_the_threshold() -> None:
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(confidences(p, 0.3), [2 / 3, 0, 1, 1])
    np.testing.assert_allclose(confidences(np.array([[0.2, 0.5, 0.3]]), None), [0.2])
    np.testing.assert_allclose(confidences(p, 0.0)[2:], [1, 0])


# Occlusion, and the likeness of maps.


def test_occlusion_finds_the_part_on_which_the_answer_rests() -> None:
    view = np.zeros((40, 40), np.uint8)
    view[5:15, 25:35] = 200

    def logits(views: NDArray[np.uint8]) -> NDArray[np.float64]:
        bright = views[:, 5:15, 25:35].mean((1, 2)) / 200
        return np.stack([-bright, bright], axis=1)

    found = occlusion(logits, view, 1)
    assert found.shape == (8, 8)
    down, across = divmod(int(found.argmax()), 8)
    assert down in (1, 2)
    assert across in (5, 6)
    assert found[6, 1] == 0
    np.testing.assert_allclose(occlusion(logits, view, 0), -found)
    assert positive(-found).max() <= 1
    assert positive(np.zeros((2, 2))).max() == 0


def test_the_rank_correlation_is_spearmans_with_ties() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 5, (6, 6)).astype(float), rng.normal(size=(6, 6))
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic)
    assert rank_correlation(other, np.exp(other)) == pytest.approx(1)
    assert rank_correlation(one, np.full((6, 6), 3.0)) == 0


def test_the_verdict_says_where_the_maps_show_nothing_of_the_model() -> None:
    def entries(head: float) -> list[dict[str, Any]]:
        return [{"sanity": {"head": head, "layers": 0.1}}, {"sanity": {"head": head - 0.1, "layers": 0.3}}]

    good, bad, none = verdict(entries(0.3)), verdict(entries(0.9)), verdict([{"sanity": {}}])
    assert good["passed"] is True
    assert good["likeness"] == pytest.approx({"head": 0.25, "layers": 0.2})
    assert "0.25 with shuffled weights in the head" in good["sentence"]
    assert bad["passed"] is False
    assert bad["sentence"].startswith("Do not rely on these maps")
    assert none["passed"] is None
    assert "could not be checked" in none["sentence"]


# Weights in another order.


@pytest.mark.slow
def test_only_the_weights_before_the_output_are_put_into_another_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = warmed(build("small", 1, 2, 64), 1, 64)
    export_graph(network, 64, 1, tmp_path / "model.onnx")
    graph = (tmp_path / "model.onnx").read_bytes()
    structure = onnx.load_from_string(graph).graph
    assert len(weights(structure, "feature_map")) == 7
    assert len(weights(structure, "logits")) == 9
    changed, layers = shuffle_layers(graph, "feature_map", 1 / 3, 1)
    assert layers == 2
    before, after = (onnx.load_from_string(data).graph.initializer for data in (graph, changed))
    differing = [a.name for a, b in zip(before, after, strict=True) if a != b]
    assert differing == [weight.name for weight in weights(structure, "feature_map")[-2:]]
    for one, other in zip(before, after, strict=True):
        was, now = (np.sort(onnx.numpy_helper.to_array(each).ravel()) for each in (one, other))
        np.testing.assert_array_equal(was, now)
    assert shuffle_layers(graph, "feature_map", 1 / 3, 1)[0] == changed
    assert shuffle_layers(graph, "feature_map", 1 / 3, 2)[0] != changed


@pytest.mark.slow
def test_a_quantized_graph_forgets_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_graph(warmed(build("small", 1, 2, 64), 1, 64), 64, 1, tmp_path / "model.onnx")
    images = np.random.default_rng(0).normal(size=(16, 1, 64, 64)).astype(np.float32)
    _to_int8(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", images)
    graph = (tmp_path / "model.int8.onnx").read_bytes()
    found = weights(onnx.load_from_string(graph).graph, "feature_map")
    assert [weight.data_type for weight in found] == [onnx.TensorProto.INT8] * 7
    changed, layers = shuffle_layers(graph, "feature_map", 1 / 3, 1)
    assert layers == 2
    assert changed != graph
    onnx.checker.check_model(onnx.load_from_string(changed))


# Pictures.


def test_a_picture_is_small_and_can_be_read_in_gray() -> None:
    rng = np.random.default_rng(0)
    view = np.asarray(rng.normal(120, 20, (64, 64)).clip(0, 255), np.uint8)
    heat = np.zeros((7, 7))
    heat[2, 4] = 1
    data = overlay(view, heat)
    assert data == overlay(view, heat)
    assert len(data) < 150_000
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    assert picture.size == (2 * SIDE + GAP, SIDE)
    right = np.asarray(picture.convert("L"), float)[:, SIDE + GAP :]
    there, elsewhere = right[70:90, 134:154], right[140:, :100]
    assert there.mean() > elsewhere.mean() + 60
    colours = np.asarray(picture, float)[:, :SIDE]
    assert np.abs(colours[..., 0] - colours[..., 2]).mean() < 3, "the image itself stays gray"


def test_a_picture_in_colour_keeps_its_colours() -> None:
    view = np.zeros((32, 32, 3), np.uint8)
    view[..., 0] = 200
    shown = np.asarray(Image.open(io.BytesIO(overlay(view, np.zeros((4, 4))))).convert("RGB"))
    assert tuple(shown[SIDE // 2, SIDE // 2]) == (200, 0, 0)


# In the report.


def add_head(bundle: Path) -> None:
    """Give a made bundle the head that its graph has."""
    graph = onnx.load(str(bundle / "models" / "model.onnx")).graph
    named = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (bundle / "models" / "head").mkdir()
    np.save(bundle / "models" / "head" / "weight_0.npy", named["weights"])
    np.save(bundle / "models" / "head" / "bias_0.npy", named["bias"])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    made = scenes.make(tmp_path_factory.mktemp("explained"))
    add_head(made.root / "model")
    made.run(explained=3)
    return made


def test_the_report_names_and_shows_the_explained_images(scene: Scene) -> None:
    table = {row["image_id"]: row for row in pq.read_table(scene.report / "predictions.parquet").to_pylist()}
    entries = scene.metrics["explanations"]
    kinds = [entry["kind"] for entry in entries]
    assert kinds == ["confident right"] * 3 + ["confident wrong"] * 3 + ["uncertain"] * 3
    assert len({table[entry["image_id"]]["patient_id"] for entry in entries}) == 9
    for entry in entries:
        row = table[entry["image_id"]]
        right = row["label"] == row["predicted"]
        assert entry["probability"] == pytest.approx(row[f"p_{entry['called']}"])
        assert (entry["label"] == entry["called"]) == right
        assert entry["kind"] == "uncertain" or (entry["kind"] == "confident right") == right
        assert entry["method"] == "grad-cam"
        assert set(entry["sanity"]) == {"head", "layers"}
    files = sorted(path.relative_to(scene.report).as_posix() for path in (scene.report / "explanations").iterdir())
    assert files == [f"explanations/{number:02}.png" for number in range(1, 10)] == [e["file"] for e in entries]
    assert scene.page.count("data:image/png;base64") == 9
    assert "<h2>Explanations</h2>" in scene.page


def test_a_model_that_reads_the_middle_is_shown_to_look_there(scene: Scene) -> None:
    """The made bundle calls what is bright in the middle: the map of such a call is highest there."""
    from components.shared.datasets.dataset import Data

    data = Data.open(scene.root / "dataset", scene.store)
    model = Model(scene.root / "model")
    ill = np.flatnonzero(data.labels == 1)[:40]
    # Those with another label than the image shows are left out: the model is right about them.
    ill = ill[model(data.views(16, "pad")[ill]).logits.argmax(1) == 1]
    shown = data.views(16, "pad")[ill]
    features, found = (part.astype(np.float64) for part in (model(shown).features, model.feature_maps(shown)))
    heat = gradcam(read_head(scene.root / "model"), features, found, np.ones(len(ill), np.int64))
    assert len(ill) > 5
    assert heat[:, 5:11, 5:11].mean() > heat[:, 2:-2, :3].mean() + 0.1 * heat.std()


@pytest.mark.slow
def test_without_a_head_parts_are_covered_and_without_pictures_none_are_kept(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    scene.run()
    assert {entry["method"] for entry in scene.metrics["explanations"]} == {"occlusion"}
    assert all(set(entry["sanity"]) == {"layers"} for entry in scene.metrics["explanations"])
    assert "Parts of each image were covered in turn" in scene.page
    scene.run("bare", explained=0)
    bare = (tmp_path / "bare" / "report.html").read_text()
    assert "<h2>Explanations</h2>" not in bare
    assert "base64" not in bare
    assert not (tmp_path / "bare" / "explanations").exists()


def test_maps_that_do_not_depend_on_the_model_are_said_to_fail(scene: Scene, tmp_path: Path) -> None:
    """A head of which each order is the same cannot be forgotten: the check must find that out."""
    for folder in ("dataset", "splits", "champion"):
        (tmp_path / folder).symlink_to(scene.root / folder)
    shutil.copytree(scene.root / "model", tmp_path / "model")
    head = tmp_path / "model" / "models" / "head"
    np.save(head / "weight_0.npy", np.ones_like(np.load(head / "weight_0.npy")))
    assert (shuffle_head(read_head(tmp_path / "model"), 5)[0][0] == 1).all()
    other = Scene(tmp_path, scene.store)
    other.run()
    assert all(entry["sanity"]["head"] == 1 > MAX_CORRELATION for entry in other.metrics["explanations"])
    assert "<strong>Do not rely on these maps" in other.page
