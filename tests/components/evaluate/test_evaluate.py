"""The evaluate stage on small real models and data: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from components.evaluate.evaluate import describe_images
from components.evaluate.subgroups import age_band
from components.gate.gate import gate
from components.shared import contracts, inference
from components.shared.datasets import dataset
from components.shared.runtime.stage_interface import read
from components.shared.runtime.work import Work
from tests import made
from tests.components.evaluate import scenes
from tests.components.evaluate.scenes import DIGESTS, Scene

THREE = ["NORMAL", "BACTERIAL", "VIRAL"]


def test_the_interface_can_be_read() -> None:
    interface = read("evaluate")
    assert interface.inputs == ("model", "champion", "dataset", "splits")
    assert interface.outputs == ("report",)
    assert interface.complete({})["confidence"] == 0.95
    assert all(parameter.help for parameter in interface.parameters.values())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two classes, no model in service."""
    scene = scenes.make(tmp_path_factory.mktemp("first"))
    scene.run()
    return scene


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two classes, a model in service, half of the test patients new."""
    scene = scenes.make(tmp_path_factory.mktemp("second"), champion=True, core=False)
    scene.run()
    return scene


def test_figures_follow_from_the_predictions(first: Scene) -> None:
    table = pq.read_table(first.report / "predictions.parquet")
    label, called = (table[name].to_numpy() for name in ("label", "predicted"))
    everything = first.metrics["all"]
    assert everything["images"] == len(label) == 48
    assert everything["patients"] == 24
    assert everything["figures"]["accuracy"]["value"] == pytest.approx((label == called).mean())
    assert everything["confusion"] == [[int(((label == i) & (called == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    assert 0.5 < everything["figures"]["accuracy"]["low"] < everything["figures"]["accuracy"]["value"] < 1
    assert np.allclose(table["p_NORMAL"].to_numpy() + table["p_PNEUMONIA"].to_numpy(), 1)
    assert set(table["population"].to_pylist()) == {"all"}


def test_what_was_judged_is_named(first: Scene) -> None:
    metrics = first.metrics
    subject = metrics["subject"]
    assert subject == {
        "model": DIGESTS["model"],
        "champion": "",
        "dataset": DIGESTS["dataset"],
        "split": DIGESTS["splits"],
        "precision": "float32",
        "runtime": subject["runtime"],
        "model_bytes": (first.root / "model" / "models" / "model.onnx").stat().st_size,
    }
    assert subject["runtime"].startswith("onnxruntime ")
    assert metrics["positive"] == "PNEUMONIA"
    assert (metrics["core"], metrics["new"], metrics["comparison"], metrics["as_trained"]) == (None, None, None, None)


def test_values_are_returned(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, wrong=0)
    assert scene.run() == {"accuracy": 1.0, "auc": 1.0}
    assert scene.metrics["all"]["figures"]["accuracy"]["low"] < 0.9


@pytest.mark.slow
def test_images_are_cropped_as_the_model_was_trained(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, wrong=0)
    scene.run("whole")
    scenes.change_metadata(
        tmp_path / "model", preprocess={**inference.read_bundle(tmp_path / "model")["preprocess"], "crop": 0.2}
    )
    scene.run("cropped")
    whole, cropped = (
        pq.read_table(tmp_path / name / "predictions.parquet")["p_PNEUMONIA"].to_numpy()
        for name in ("whole", "cropped")
    )
    assert np.abs(whole - cropped).max() > 0.01


@pytest.mark.slow
def test_same_inputs_same_bytes(second: Scene) -> None:
    second.run("again")
    one, other = second.report, second.root / "again"
    assert (one / "predictions.parquet").read_bytes() == (other / "predictions.parquet").read_bytes()
    pages = [re.sub(r"[\d.e+]+ ms", "", (folder / "report.html").read_text("utf-8")) for folder in (one, other)]
    assert pages[0] == pages[1]  # but for the latency, which is measured
    again = contracts.read_record("metrics", second.root / "again" / "metrics.json")
    assert again.pop("latency")["images"] == 40
    assert again == {name: value for name, value in second.metrics.items() if name != "latency"}  # that is measured
    changed = {"seed": 8}
    second.run("other", **changed)
    assert (second.root / "other" / "metrics.json").read_bytes() != (second.report / "metrics.json").read_bytes()


def test_the_model_in_service_is_scored_on_the_same_rows(second: Scene) -> None:
    metrics = second.metrics
    table = pq.read_table(second.report / "predictions.parquet")
    groups = np.array(table["population"].to_pylist())
    assert metrics["subject"]["champion"] == metrics["comparison"]["champion"] == DIGESTS["champion"]
    assert metrics["comparison"]["precision"] == "float32"
    for name in ("core", "new", "all"):
        chosen = groups == name if name != "all" else np.ones(len(groups), bool)
        pair = metrics["comparison"]["populations"][name]
        assert pair["images"] == metrics[name]["images"] == chosen.sum() > 0
        ours = (table["predicted"].to_numpy() == table["label"].to_numpy())[chosen]
        theirs = (table["champion_predicted"].to_numpy() == table["label"].to_numpy())[chosen]
        assert pair["accuracy"]["ours"] == pytest.approx(ours.mean())
        assert pair["accuracy"]["difference"] == pytest.approx(ours.mean() - theirs.mean())
        assert pair["accuracy"]["low"] <= pair["accuracy"]["difference"] <= pair["accuracy"]["high"]
    assert set(np.unique(np.array(table["since"].to_pylist())[groups == "core"])) == {1}
    assert set(np.unique(np.array(table["since"].to_pylist())[groups == "new"])) == {2}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_figures_in_service_have_the_intervals_that_they_would_have_alone(tmp_path: Path, task: str) -> None:
    scene = scenes.make(tmp_path, classes=THREE, champion=True, wrong=0, task=task)
    scene.run()
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(tmp_path / "champion", tmp_path / "model")
    scene.run("alone")
    alone = contracts.read_record("metrics", tmp_path / "alone" / "metrics.json")["all"]["figures"]
    pairs = scene.metrics["comparison"]["populations"]["all"]
    assert set(alone) <= set(pairs)
    for name, figure in alone.items():
        pair = pairs[name]
        assert {"value": pair["theirs"], "low": pair["theirs_low"], "high": pair["theirs_high"]} == figure, name


@pytest.mark.slow
def test_a_later_model_in_service_knows_all_rows(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, champion=True, core=False)
    fingerprints = {"dataset": "made", "split": "made", "split_version": 2}
    scenes.change_metadata(tmp_path / "champion", fingerprints=fingerprints)
    scene.run()
    assert scene.metrics["new"] is None
    assert scene.metrics["core"] == scene.metrics["all"]


@pytest.mark.slow
def test_the_model_in_service_runs_in_the_precision_it_serves(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, champion=True)
    scenes.add_int8(tmp_path / "champion")
    scene.run()
    assert scene.metrics["comparison"]["precision"] == "int8"


def cut_graph(champion: Path) -> None:
    graph = champion / "models" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-200])


def no_metadata(champion: Path) -> None:
    (champion / "configs" / "metadata.json").unlink()


def later_schema(champion: Path) -> None:
    path = champion / "configs" / "metadata.json"
    document = json.loads(path.read_bytes())
    document["medloop"]["schema"] = 99
    path.write_text(json.dumps(document))


def no_numbers(champion: Path) -> None:
    scenes.change_weights(champion, float("nan"))


def lost(champion: Path) -> None:
    shutil.rmtree(champion)
    champion.mkdir()
    contracts.write_record("lost", champion / "lost.json", {"model": "f" * 64, "why": "The object is not there."})


@pytest.mark.slow
def test_a_model_does_not_say_of_itself_that_it_is_lost(tmp_path: Path) -> None:
    """Else what a training puts into its bundle would keep all later models from being compared with it."""
    scene = scenes.make(tmp_path, champion=True)
    contracts.write_record("lost", tmp_path / "champion" / "lost.json", {"model": "", "why": "It says so."})
    scene.run()
    assert scene.metrics["subject"]["champion"] == DIGESTS["champion"]
    assert scene.metrics["comparison"]["populations"]["core"]["images"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said", "digest"),
    [
        (cut_graph, "model.onnx", DIGESTS["champion"]),
        (no_metadata, "FileNotFoundError", DIGESTS["champion"]),
        (later_schema, "schema 99", DIGESTS["champion"]),
        (no_numbers, "returns NaN or infinity for", DIGESTS["champion"]),
        (lost, "The object is not there.", "f" * 64),
    ],
)
def test_a_model_in_service_that_cannot_be_had_is_told_and_does_not_stop_the_evaluation(
    damage: Callable[[Path], None], said: str, digest: str, tmp_path: Path
) -> None:
    scene = scenes.make(tmp_path, champion=True)
    damage(tmp_path / "champion")
    scene.run()
    metrics = scene.metrics
    assert said in metrics["service_error"]
    assert (metrics["comparison"], metrics["core"], metrics["subject"]["champion"]) == (None, None, digest)
    assert metrics["all"]["figures"]["accuracy"]["value"] > 0.5
    (tmp_path / "decision").mkdir()
    work = Work("key", scene.store, {"report": "e" * 64})
    for rule, passes in (("refuse", False), ("allow", True)):
        gate(scene.report, tmp_path / "decision", work, policy={"without_service": rule})
        decision = contracts.read_record("decision", tmp_path / "decision" / "decision.json")
        check = next(check for check in decision["checks"] if check["name"] == "without_service")
        assert check["passed"] is passes
        assert ("could not be loaded" in decision["sentence"]) is not passes
        assert ("first.floors.sensitivity" in [check["name"] for check in decision["checks"]]) is passes


@pytest.mark.slow
def test_three_classes(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, classes=THREE, champion=True)
    scene.run()
    everything = scene.metrics["all"]
    assert scene.metrics["positive"] is None
    assert (everything["roc"], everything["pr"], everything["calibration"]) == (None, None, None)
    assert list(everything["roc_by_class"]) == sorted(THREE)
    assert len(everything["confusion"]) == 3
    macro = np.mean([entry["auc"]["value"] for entry in everything["per_class"].values()])
    assert everything["figures"]["auc"]["value"] == pytest.approx(macro)
    assert "BACTERIAL" in scene.page


def test_a_class_absent_from_test_is_null_and_said(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, classes=THREE, wrong=0)
    scenes.change(tmp_path / "dataset", "labels", lambda _, old: [min(old[0], 1)])
    scene.run()
    viral = scene.metrics["all"]["per_class"]["VIRAL"]
    assert viral["images"] == 0
    assert viral["auc"] == viral["sensitivity"] == {"value": None, "low": None, "high": None}
    assert scene.metrics["all"]["figures"]["auc"]["value"] is not None


@pytest.mark.slow
def test_as_shipped_and_as_trained(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    scenes.add_int8(tmp_path / "model", factor=1.1)
    scene.run(precision="int8")
    facts = scene.metrics["as_trained"]
    assert scene.metrics["subject"]["precision"] == "int8"
    assert 0.5 < facts["agreement"] <= 1
    assert 0 < facts["largest_probability_difference"] < 0.5
    assert facts["bytes"] == scene.metrics["subject"]["model_bytes"]
    assert "As shipped and as trained" in scene.page
    scene.run("trained")
    trained = contracts.read_record("metrics", tmp_path / "trained" / "metrics.json")
    assert facts["accuracy_float32"] == trained["all"]["figures"]["accuracy"]["value"]


def test_subgroups(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, patients=240)
    scenes.change(tmp_path / "dataset", "site", lambda row, old: "" if row % 10 == 8 else old)
    scenes.change(tmp_path / "dataset", "age", lambda row, _: (-1, 10, 30, 50, 80)[row // 20 % 5])
    scene.run()
    rows = scene.metrics["subgroups"]
    assert [row["value"] for row in rows if row["field"] == "age"] == ["<18", "18–39", "40–64", "65+", "unknown"]
    assert [row["value"] for row in rows if row["field"] == "sex"] == ["F", "M"]
    for field in ("sex", "age", "site", "view"):
        assert sum(row["images"] for row in rows if row["field"] == field) == scene.metrics["all"]["images"]
    assert all(row["too_small"] == (row["patients"] < 20) for row in rows)
    assert {row["too_small"] for row in rows} == {True, False}
    view = next(row for row in rows if row["field"] == "view")
    for name in ("accuracy", "auc", "sensitivity", "specificity"):
        assert view["figures"][name] == scene.metrics["all"]["figures"][name]


def test_a_subgroup_of_one_class_is_too_small(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, patients=240, wrong=0)
    scenes.change(tmp_path / "dataset", "sex", lambda row, _: "FM"[row // 2 % 2])
    scene.run()
    sexes = [row for row in scene.metrics["subgroups"] if row["field"] == "sex"]
    assert [(row["patients"], row["figures"]["auc"], row["too_small"]) for row in sexes] == [(24, None, True)] * 2
    assert {row["why"] for row in sexes} == {"All images are of one class."}


def test_age_bands() -> None:
    assert [age_band(age) for age in (-1, 0, 17, 18, 39, 40, 64, 65, 120)] == [
        "unknown", "<18", "<18", "18–39", "18–39", "40–64", "40–64", "65+", "65+",
    ]  # fmt: skip


def test_metrics_are_plain_json(first: Scene) -> None:
    def numbers(value: Any) -> list[float]:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [value] if isinstance(value, float) else [n for item in items for n in numbers(item)]

    text = (first.report / "metrics.json").read_text(encoding="utf-8")
    found = numbers(json.loads(text, parse_constant=pytest.fail))
    assert all(round(number, 10) == number for number in found)


def test_the_record_says_task_latency_and_the_state_of_the_data(first: Scene) -> None:
    metrics = first.metrics
    assert metrics["schema"] == 2
    assert metrics["task"] == "classification"
    latency = metrics["latency"]
    assert 0 < latency["milliseconds"] <= latency["p95"] < 1000
    assert (latency["images"], latency["threads"] >= 1) == (40, True)
    assert metrics["data"] == {"images": 240, "quarantined": 0, "warnings": {}, "guessed": 0, "leakage": 0}
    assert [point["at"] for point in metrics["operating_points"]] == [
        "threshold from validation", "specificity 0.90", "specificity 0.95",
    ]  # fmt: skip
    at_threshold = metrics["operating_points"][0]
    assert at_threshold["threshold"] == 0.5
    for name in ("sensitivity", "specificity"):
        assert at_threshold[name] == metrics["all"]["figures"][name]
    assert metrics["all"]["micro"] is None


def test_warnings_of_the_data_set_are_told(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    about = contracts.read_record("dataset", tmp_path / "dataset" / "dataset.json")
    about["counts"] |= {"quarantined": 7, "warnings": {"alike": 2}, "guessed": {"folder": 4, "file": 5}}
    contracts.write_record("dataset", tmp_path / "dataset" / "dataset.json", about)
    scene.run()
    about = {"images": 240, "quarantined": 7, "warnings": {"alike": 2}, "guessed": 9, "leakage": 0}
    assert scene.metrics["data"] == about


def test_where_labels_come_from_makes_subgroups_where_anybody_says_it(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, patients=160)
    data = dataset.Data.open(tmp_path / "dataset", scene.store)
    assert "label_source" not in describe_images(data, np.arange(3))
    scenes.change(tmp_path / "dataset", "label_source", lambda row, _: "expert" if row // 20 % 2 else "")
    scene.run()
    rows = [row for row in scene.metrics["subgroups"] if row["field"] == "label_source"]
    assert [row["value"] for row in rows] == ["expert", "unknown"]
    assert sum(row["images"] for row in rows) == scene.metrics["all"]["images"]
    assert "Label from" in scene.page


@pytest.mark.slow
def test_ordered_classes_have_a_weighted_kappa(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, classes=THREE, champion=True)
    scene.run()
    assert "weighted_kappa" not in scene.metrics["all"]["figures"]
    assert set(scene.metrics["all"]["micro"]) == {"precision", "sensitivity", "f1", "auc", "pr_auc"}
    scene.run("ordered", ordered=True)
    metrics = contracts.read_record("metrics", tmp_path / "ordered" / "metrics.json")
    table = pq.read_table(tmp_path / "ordered" / "predictions.parquet")
    expected = cohen_kappa_score(table["label"].to_numpy(), table["predicted"].to_numpy(), weights="quadratic")
    assert metrics["all"]["figures"]["weighted_kappa"]["value"] == pytest.approx(expected, abs=1e-9)
    assert metrics["comparison"]["populations"]["all"]["weighted_kappa"]["test"] == "bootstrap"


FINDINGS = ["mass", "edema", "effusion"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Any number of findings an image, a model in service, half of the test patients new."""
    scene = scenes.make(
        tmp_path_factory.mktemp("several"), 160, FINDINGS, champion=True, core=False, wrong=0, task="multilabel"
    )
    kinds = [[], [0], [2], [0, 2], [1, 2]]
    scenes.change(scene.root / "dataset", "labels", lambda row, _: kinds[(row // 20 + row) % 5])
    scene.run()
    return scene


@pytest.mark.slow
def test_findings(several: Scene) -> None:
    metrics, table = several.metrics, pq.read_table(several.report / "predictions.parquet")
    everything = metrics["all"]
    assert (metrics["task"], metrics["positive"], everything["confusion"], everything["roc"]) == (
        "multilabel", None, None, None,
    )  # fmt: skip
    truth, called, p = (
        np.stack([table[f"{what}_{name}"].to_numpy() for name in FINDINGS], axis=1)
        for what in ("label", "predicted", "p")
    )
    assert truth.sum(axis=1).max() == 2
    assert truth.sum(axis=1).min() == 0
    assert np.array_equal(called, p >= 0.5)
    for k, name in enumerate(FINDINGS):
        entry = everything["per_class"][name]
        assert entry["images"] == everything["by_class"][name] == truth[:, k].sum() > 0
        assert entry["auc"]["value"] == pytest.approx(roc_auc_score(truth[:, k], p[:, k]))
        assert np.sum(everything["confusion_by_class"][name]) == len(table)
    assert everything["figures"]["auc"]["value"] == pytest.approx(roc_auc_score(truth, p, average="macro"))
    assert everything["micro"]["auc"]["value"] == pytest.approx(roc_auc_score(truth, p, average="micro"))
    assert everything["figures"]["accuracy"]["value"] == pytest.approx((truth == called).mean())
    assert everything["figures"]["exact_match"]["value"] == pytest.approx((truth == called).all(axis=1).mean())
    assert {point["class"] for point in metrics["operating_points"]} == set(FINDINGS)
    sexes = [row for row in metrics["subgroups"] if row["field"] == "sex"]
    assert sum(row["images"] for row in sexes) == len(table)


def test_findings_are_compared_on_three_populations(several: Scene) -> None:
    populations = several.metrics["comparison"]["populations"]
    assert set(populations) == {"core", "new", "all"}
    assert populations["core"]["images"] + populations["new"]["images"] == populations["all"]["images"]
    for group in populations.values():
        assert (group["accuracy"]["test"], group["auc"]["test"]) == ("mcnemar", "delong")
        assert group["accuracy"]["low"] <= group["accuracy"]["difference"] <= group["accuracy"]["high"]
        assert len(group["auc"]["lower"]) == len(group["f1"]["lower"]) == 10


def test_findings_have_a_page(several: Scene) -> None:
    for words in ("mass, edema, effusion", "False positives", "By finding", "Compared with the model in service"):
        assert words in several.page, words


def test_findings_pass_the_gate(several: Scene, tmp_path: Path) -> None:
    """The gate's checks find their numbers in the record of findings."""
    (tmp_path / "decision").mkdir()
    work = Work("key", several.store, {"report": "e" * 64})
    gate(several.report, tmp_path / "decision", work)
    decision = contracts.read_record("decision", tmp_path / "decision" / "decision.json")
    assert [check["name"] for check in decision["checks"] if check["value"] is None] == []
    assert "non_inferiority.accuracy" in [check["name"] for check in decision["checks"]]


# Bad input.


def refused(scene: Scene, *words: str, **parameters: Any) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        scene.run(**parameters)
    for word in words:
        assert word in str(caught.value)


def test_no_test_rows(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    other = made.make_dataset(tmp_path / "other", scene.store, 4)
    made.make_split(tmp_path / "splits", other)
    refused(scene, "0 test images", "at least 1", "split that was made from this dataset")


def test_a_split_of_another_state_of_the_dataset(tmp_path: Path) -> None:
    """Its images are there, but the dataset has others by now."""
    scene = scenes.make(tmp_path)
    record = contracts.read_record("split", tmp_path / "splits" / "split.json")
    ours = record["dataset"]
    contracts.write_record("split", tmp_path / "splits" / "split.json", {**record, "dataset": "0" * 64})
    refused(scene, "fingerprint 000000000000", ours[:12], "split that was made from this dataset")


def test_one_class_in_test(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    scenes.change(tmp_path / "dataset", "labels", lambda *_: [1])
    refused(scene, "All 48 test images are of one class, 'PNEUMONIA'", "at least two", "split again")


def test_no_finding_tells_the_test_apart(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, classes=FINDINGS, wrong=0, task="multilabel")
    scenes.change(tmp_path / "dataset", "labels", lambda *_: [])
    refused(scene, "findings is on all or on none of the 48 test images", "split again")


def test_findings_are_not_ordered(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, classes=FINDINGS, wrong=0, task="multilabel")
    refused(scene, "ordered is true", "3 findings", "Set ordered to false", ordered=True)


@pytest.mark.parametrize("which", ["model", "champion"])
def test_another_task(tmp_path: Path, which: str) -> None:
    scene = scenes.make(tmp_path, champion=True)
    scenes.change_metadata(tmp_path / which, task="multilabel")
    name = "model in service" if which == "champion" else "model"
    refused(
        scene, f"The task of the {name} is multilabel; that of the dataset is classification", "ingest_options.task"
    )


def test_fewer_patients_than_make_an_interval(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, patients=10, champion=True, wrong=0)
    scene.run()
    metrics = scene.metrics
    assert metrics["all"]["patients"] == 2
    sensitivity = metrics["all"]["figures"]["sensitivity"]
    assert sensitivity == {"value": sensitivity["value"], "low": None, "high": None}
    assert sensitivity["value"] is not None
    difference = metrics["comparison"]["populations"]["core"]["auc"]
    assert (difference["low"], difference["p"], difference["lower"][0]) == (None, None, [0.05, None])
    assert "no interval" in scene.page


@pytest.mark.parametrize("which", ["model", "champion"])
def test_other_classes(tmp_path: Path, which: str) -> None:
    scene = scenes.make(tmp_path, champion=True)
    scenes.change_metadata(tmp_path / which, classes=["NORMAL", "VIRAL"])
    name = "model in service" if which == "champion" else "model"
    refused(
        scene, f"The classes of the {name} are NORMAL, VIRAL; those of the dataset are NORMAL, PNEUMONIA", "lacks PNEU"
    )


@pytest.mark.parametrize("which", ["model", "champion"])
def test_images_decoded_in_another_way(tmp_path: Path, which: str) -> None:
    scene = scenes.make(tmp_path, champion=True)
    preprocess = inference.read_bundle(tmp_path / which)["preprocess"]
    smaller = {**preprocess["decoding"], "max_side": 512, "frames": 3}
    scenes.change_metadata(tmp_path / which, preprocess={**preprocess, "decoding": smaller})
    scene.run("smaller")
    lung = {**preprocess["decoding"], "window_center": -600.0, "window_width": 1500.0}
    scenes.change_metadata(tmp_path / which, preprocess={**preprocess, "decoding": lung})
    name = {"model": "model", "champion": "model in service"}[which]
    refused(
        scene,
        f"The {name} was trained on images decoded with window_center -600.0; the dataset's are decoded with 0.0.",
        {"model": "Train on this dataset", "champion": "start a new loop"}[which],
    )


def test_classes_in_another_order(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path)
    scenes.change_metadata(tmp_path / "model", classes=["PNEUMONIA", "NORMAL"])
    refused(scene, "another order", "Train on this dataset")


def test_logits_that_are_no_numbers(tmp_path: Path) -> None:
    scene = scenes.make(tmp_path, champion=True)
    scenes.change_weights(tmp_path / "model", float("nan"))
    refused(scene, "NaN or infinity for 48 of 48 test images", "none is allowed", "again")


def test_a_precision_the_model_lacks(tmp_path: Path) -> None:
    refused(scenes.make(tmp_path), "has no int8 graph", precision="int8")
