"""Shortcut tests: copies that lack what they should, models that cheat found out, and honest ones left in peace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from components.evaluate.metrics_record import Settings
from components.evaluate.shortcuts import LIMIT, figures, image_boxes, make_copies, sample, shortcuts, summarise
from components.shared.imaging.views import view
from components.shared.inference import Model
from components.shared.statistics.bootstrapped_metrics import Predictions
from tests import made
from tests.components.evaluate import scenes

SETTINGS = Settings(300, 0.95, 7)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("crop", [0.0, 0.07, 0.2])
@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (300, 211), (33, 33)])
def test_where_an_image_lies_in_its_view(shape: tuple[int, int], crop: float, fit: str) -> None:
    """A white image leaves nothing but the padding black."""
    seen = view(np.full(shape, 255, np.uint8), 48, fit, crop)
    (top, left, height, width), *_ = image_boxes(np.array([shape]), 48, fit, crop).tolist()
    expected = np.zeros_like(seen)
    expected[top : top + height, left : left + width] = 255
    np.testing.assert_array_equal(seen, expected)


def test_copies_lack_their_inside_their_borders_or_what_is_fine() -> None:
    rng = np.random.default_rng(0)
    views = np.zeros((1, 50, 50), np.uint8)
    views[0, 5:45] = rng.integers(60, 200, (40, 50))
    boxes = image_boxes(np.array([[80, 100]]), 50, "pad", 0.0)
    assert boxes.tolist() == [[5, 0, 40, 50]]
    gray = np.uint8(99)
    borders, inside, blurred = (
        make_copies(views, boxes, name, np.asarray(gray))[0] for name in ("borders", "inside", "blurred")
    )
    core = np.zeros((50, 50), bool)
    core[5 + 6 : 45 - 6, 8:42] = True
    image = np.zeros((50, 50), bool)
    image[5:45] = True
    assert (borders[core] == gray).all()
    np.testing.assert_array_equal(borders[~core], views[0][~core])
    assert (inside[image & ~core] == gray).all()
    np.testing.assert_array_equal(inside[core], views[0][core])
    assert blurred[image].std() < 0.35 * views[0][image].std()
    for copy in (borders, inside, blurred):
        assert (copy[~image] == 0).all(), "padding stays what it is"
    assert views[0].std() > 0


def test_colours_stay_colours() -> None:
    views = np.zeros((2, 20, 20, 3), np.uint8)
    views[..., 0] = np.arange(20, dtype=np.uint8)[:, None] * 10
    boxes = image_boxes(np.full((2, 2), 20), 20, "stretch", 0.0)
    gray = np.array([95, 1, 2], np.uint8)
    assert make_copies(views, boxes, "borders", gray)[0, 10, 10].tolist() == [95, 1, 2]
    assert make_copies(views, boxes, "blurred", gray).shape == views.shape


def test_a_large_test_is_sampled_by_whole_patients_and_a_small_one_is_not() -> None:
    assert sample(np.repeat(np.arange(100), 5), LIMIT, 7).tolist() == list(range(500))
    patients = np.repeat(np.arange(400), 3)
    chosen = sample(patients, LIMIT, 7)
    assert LIMIT - 3 < len(chosen) <= LIMIT
    assert set(np.bincount(patients[chosen])) == {0, 3}
    assert chosen.tolist() == sample(patients, LIMIT, 7).tolist() != sample(patients, LIMIT, 8).tolist()
    assert len(sample(np.zeros(900, int), LIMIT, 7)) == 900, "a single patient is not divided"


SIDE = 40
MARK, MIDDLE = (slice(0, 4), slice(0, 4)), (slice(14, 26), slice(14, 26))
Part = tuple[slice, slice]


def reader(folder: Path, part: Part) -> Model:
    """A model whose answer is the brightness of that part of an image, and nothing else."""
    made.make_bundle(folder, size=SIDE)
    mask = np.zeros((1, 1, SIDE, SIDE), np.float32)
    mask[0, 0][part] = SIDE**2 / mask[0, 0][part].size
    arrays = {"mask": mask, "weights": np.array([[-5], [5]], np.float32), "bias": np.array([2, -2], np.float32)}
    nodes = [
        helper.make_node("Mul", ["image", "mask"], ["feature_map"]),
        helper.make_node("ReduceMean", ["feature_map"], ["features"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"], transB=1),
    ]
    shapes = {"logits": ["n", 2], "features": ["n", 1], "feature_map": ["n", 1, SIDE, SIDE]}
    graph = helper.make_graph(
        nodes,
        "reader",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "models" / "model.onnx"))
    return Model(folder)


def judged(folder: Path, part: Part, images: int = 240) -> dict[str, Any]:
    """What the tests say of a reader of that part, on images whose class shows in a mark and, too, in the middle."""
    rng = np.random.default_rng(3)
    labels = np.arange(images) // 2 % 2
    views = np.asarray(rng.normal(120, 12, (images, SIDE, SIDE)).clip(0, 255), np.uint8)
    views[:, *MARK] = np.where(labels, 170, 70)[:, None, None]
    views[:, *MIDDLE] = np.clip(views[:, *MIDDLE] + (40 * labels - 20)[:, None, None], 0, 255)
    model = reader(folder, part)
    rows = np.arange(images)
    probabilities = model.probabilities(model(views).logits)
    scored = Predictions(labels, model.decide(probabilities), probabilities, rows // 2)
    sizes = np.full((images, 2), SIDE)
    return shortcuts(model, views, rows, scored, sizes, ["unknown"] * images, [], SETTINGS)


def test_a_model_that_reads_a_mark_is_found_out(tmp_path: Path) -> None:
    found = judged(tmp_path, MARK)
    assert found["whole"]["auc"]["value"] == found["borders"]["auc"]["value"] == 1
    assert found["inside"]["auc"]["value"] == 0.5, "nothing of the mark is left, not even in the gray"
    assert "separates the classes well from the borders alone" in found["sentence"]
    assert "non-anatomical cues" in found["sentence"]


def test_a_model_that_reads_the_middle_is_left_in_peace(tmp_path: Path) -> None:
    found = judged(tmp_path, MIDDLE)
    assert found["whole"]["auc"]["value"] == found["inside"]["auc"]["value"] == 1
    assert found["borders"]["auc"]["value"] == 0.5, "nothing of the middle is left, not even in the gray"
    assert "no evidence that the model uses the borders alone" in found["sentence"]
    assert (found["images"], found["of_images"], found["patients"]) == (240, 240, 120)


def test_a_large_test_is_judged_on_a_sample_and_says_so(tmp_path: Path) -> None:
    found = judged(tmp_path, MIDDLE, 700)
    assert (found["images"], found["of_images"], found["patients"], found["of_patients"]) == (500, 700, 250, 350)


def site(name: str, negative: int, positive: int, auc: float | None) -> dict[str, Any]:
    images = negative + positive
    return {
        "site": name, "images": images, "patients": images, "too_small": auc is None,
        "by_class": {"NORMAL": negative, "PNEUMONIA": positive},
        "auc": None if auc is None else {"value": auc, "low": auc - 0.1, "high": auc},
    }  # fmt: skip


def told(borders: float, blurred: float, sites: list[dict[str, Any]]) -> str:
    def figure(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.05}

    return summarise(
        {"borders": {"auc": figure(borders)}, "blurred": {"auc": figure(blurred)}, "whole": {"auc": figure(0.9)},
         "sites": sites}, 0.91,
    )  # fmt: skip


def test_the_sentence_grows_with_what_the_borders_tell() -> None:
    assert "well from the borders alone (AUC 0.85, lower limit 0.75)" in told(0.85, 0.7, [])
    assert "better than chance from the borders alone (AUC 0.70, lower limit 0.60)" in told(0.7, 0.7, [])
    assert "no evidence that the model uses the borders alone (AUC 0.55; chance gives 0.50)" in told(0.55, 0.7, [])
    unknown = {"value": None, "low": None, "high": None}
    nothing = {"borders": {"auc": unknown}, "blurred": {"auc": unknown}, "whole": {"auc": unknown}, "sites": []}
    assert summarise(nothing, float("nan")) == "The AUC on the borders alone cannot be computed from these images."


def test_the_sentence_says_what_blur_and_sites_show() -> None:
    assert "On blurred copies the model performs equally well (AUC 0.89, unblurred 0.90)" in told(0.5, 0.89, [])
    assert "On blurred copies the AUC is 0.70, on the same images unblurred 0.90." in told(0.5, 0.7, [])
    even = told(0.5, 0.7, [site("north", 50, 50, 0.9), site("south", 45, 55, 0.8)])
    assert even.endswith(
        "differs by up to 5 percentage points between sites. "
        "Within a site the AUC is 0.80 to 0.90, over all sites 0.91."
    )
    uneven = told(0.5, 0.7, [site("north", 90, 10, 0.52), site("south", 10, 90, None)])
    assert "differs by up to 80 percentage points between sites, so the site is a cue for the class." in uneven
    assert "Within a site the AUC is 0.52, over all sites 0.91." in uneven
    assert told(0.5, 0.7, [site("a", 5, 0, None), site("b", 0, 5, None)]).endswith(
        "too small to evaluate each on its own."
    )


def test_figures_of_one_class_alone_are_unknown_not_wrong() -> None:
    p = np.array([[0.2, 0.8], [0.4, 0.6], [0.9, 0.1]])
    found = figures(Predictions(np.ones(3, np.int64), p.argmax(1), p, np.arange(3)), 0.95)
    assert found["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found["auc"] == {"value": None, "low": None, "high": None}


@pytest.mark.slow
def test_the_report_has_the_figures_of_the_copies_and_sites(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    scene.run()
    found = scene.metrics["shortcuts"]
    assert found["whole"]["accuracy"]["value"] == scene.metrics["all"]["figures"]["accuracy"]["value"]
    assert found["inside"]["auc"]["value"] > 0.6
    assert [row["site"] for row in found["sites"]] == ["north", "south"]
    for row in found["sites"]:
        same = next(each for each in scene.metrics["subgroups"] if each["value"] == row["site"])
        assert (row["accuracy"], row["auc"], sum(row["by_class"].values())) == (
            same["figures"]["accuracy"], same["figures"]["auc"], same["images"],
        )  # fmt: skip
    assert found["sentence"] in scene.page
    assert "all 48 images of 24 patients" in scene.page
    scenes.change(tmp_path / "dataset", "site", lambda *_: "")
    scene.run("again")
    assert "By acquisition site" not in (tmp_path / "again" / "report.html").read_text()
