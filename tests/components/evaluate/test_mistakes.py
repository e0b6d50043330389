"""The wrong answers: all of them counted, the surest first, with what the model in service says of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.evaluate.mistakes import MAX_LISTED, mistakes
from components.shared.statistics.bootstrapped_metrics import Predictions
from tests.components.evaluate import scenes


def scored(labels: list[int], positive: list[float]) -> Predictions:
    """Two classes, a patient an image, called from 0.5 on."""
    p = np.array(positive)
    truth = np.array(labels)
    return Predictions(truth, (p >= 0.5).astype(np.int64), np.stack([1 - p, p], axis=1), np.arange(len(truth)))


def test_they_are_counted_and_the_surest_comes_first() -> None:
    ours = scored([0, 0, 1, 1, 1, 0], [0.6, 0.95, 0.9, 0.3, 0.1, 0.2])
    theirs = scored([0, 0, 1, 1, 1, 0], [0.6, 0.10, 0.9, 0.7, 0.2, 0.8])
    found = mistakes(ours, theirs, ["well", "ill"], list("abcdef"), 0.5)
    assert (found["answers"], found["images"]) == (4, 4)
    assert [row["image_id"] for row in found["rows"]] == ["b", "e", "d", "a"]
    assert found["rows"][1] == {
        "image_id": "e", "label": "ill", "called": "well", "probability": pytest.approx(0.9), "service": "well",
    }  # fmt: skip
    assert found["service"] == {"right": 2, "wrong": 1}
    alone = mistakes(ours, None, ["well", "ill"], list("abcdef"), 0.5)
    assert alone["service"] is None
    assert {row["service"] for row in alone["rows"]} == {None}


def test_of_findings_each_answer_counts() -> None:
    truth = np.array([[1, 0], [0, 0], [1, 1]])
    p = np.array([[0.1, 0.9], [0.2, 0.3], [0.8, 0.7]])
    ours = Predictions(truth, (p >= 0.5).astype(np.int64), p, np.arange(3))
    found = mistakes(ours, None, ["mass", "edema"], ["a", "b", "c"], [0.5, 0.5])
    assert (found["answers"], found["images"]) == (2, 1)
    assert {(row["label"], row["called"]) for row in found["rows"]} == {("mass", "no mass"), ("no edema", "edema")}


def test_no_more_are_listed_than_fit() -> None:
    ours = scored([0] * 50 + [1], [0.5 + k / 200 for k in range(50)] + [0.9])
    found = mistakes(ours, None, ["well", "ill"], [f"{k:02}" for k in range(51)], 0.5)
    assert found["answers"] == 50
    assert [row["image_id"] for row in found["rows"]] == [f"{k:02}" for k in range(49, 49 - MAX_LISTED, -1)]


@pytest.mark.slow
def test_the_page_lists_what_the_predictions_hold(tmp_path_factory: pytest.TempPathFactory) -> None:
    scene = scenes.make(tmp_path_factory.mktemp("mistakes"), patients=400, champion=True)
    scene.run(explained=3)
    rows = pq.read_table(scene.report / "predictions.parquet").to_pylist()
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    assert len(wrong) > MAX_LISTED
    assert f"{len(wrong)} of {len(rows)} images are misclassified" in scene.page
    helped = sum(row["champion_predicted"] == row["label"] for row in wrong)
    assert f"The model in service is right on {helped} of these {len(wrong)}" in scene.page
    table = scene.page.partition('<table class="stack missed">')[2].partition("</table>")[0]
    listed = [row["image_id"] for row in wrong if row["image_id"][:12] in table]
    assert len(listed) == table.count('<th class="mono">') == MAX_LISTED
    assert f"The {MAX_LISTED} most confident errors are listed here" in scene.page
    assert scene.metrics["explanations"][3]["kind"] == "confident wrong"
    assert table.count(">above<") == 3


@pytest.mark.parametrize(("threshold", "told"), [(0.5, 0), (0.8, 1)])
def test_a_threshold_that_is_not_one_half_is_explained(tmp_path: Path, threshold: float, told: int) -> None:
    scene = scenes.make(tmp_path)
    scenes.change_metadata(tmp_path / "model", threshold=threshold)
    scene.run()
    assert scene.page.count("PNEUMONIA is predicted if its probability is at least 80.0 %") == told
    assert scene.page.count("is predicted if its probability is at least") == told


def test_without_pictures_the_list_stands_open(tmp_path_factory: pytest.TempPathFactory) -> None:
    scene = scenes.make(tmp_path_factory.mktemp("bare"))
    scene.run(explained=0)
    section = scene.page.partition("<h2>Errors</h2>")[2].partition("</section>")[0]
    assert "<details open>" in section
    assert "All errors are listed here" in section
    assert "<img" not in section


def test_where_all_is_right_it_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    scene = scenes.make(tmp_path_factory.mktemp("flawless"), wrong=0)
    scene.run()
    assert "The model is right on all 48 test images." in scene.page
    assert "Wrong with the highest confidence" not in scene.page
    assert '<table class="stack missed">' not in scene.page
