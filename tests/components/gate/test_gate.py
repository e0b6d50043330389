"""The gate: passes and fails each check, says by how much, and stays closed when something is missing."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from components.gate.gate import MARKER, gate
from components.shared import contracts, signing
from components.shared.interface import read
from components.shared.store import open_store
from components.shared.work import Work
from tests.components.evaluate import scenes
from tests.components.shared.signers import Pair, use

EASY = {
    "min_accuracy": 0.5,
    "min_auc": 0.5,
    "max_accuracy_loss": 0.5,
    "max_auc_loss": 0.5,
    "max_calibration_error": 0.9,
    "min_agreement": 0.5,
}
Metrics = dict[str, Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real report: int8, with a model in service and new patients."""
    scene = scenes.make(tmp_path_factory.mktemp("gate"), patients=200, champion=True, core=False)
    scenes.add_int8(scene.root / "model", 1.05)
    scene.run(precision="int8")
    return scene.report


@pytest.fixture
def judge(report: Path, tmp_path: Path) -> Callable[..., Metrics]:
    """Runs the gate on the report, with its metrics changed, and gives the decision."""

    def run(change: Callable[[Metrics], object] = bool, **policy: Any) -> Metrics:
        folder = tmp_path / "report"
        shutil.copytree(report, folder, dirs_exist_ok=True)
        metrics = copy.deepcopy(contracts.read_record("metrics", report / "metrics.json"))
        change(metrics)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (tmp_path / "decision").mkdir(exist_ok=True)
        work = Work("key", open_store(str(tmp_path / "store")), {"report": "e" * 64})
        values = gate(folder, tmp_path / "decision", work, **{**EASY, **policy})
        record = contracts.read_record("decision", tmp_path / "decision" / "decision.json")
        assert values == {"outcome": record["outcome"], "sentence": record["sentence"]}
        return record

    return run


def failed(decision: Metrics) -> list[str]:
    assert decision["outcome"] == ("approved" if all(c["passed"] for c in decision["checks"]) else "refused")
    return [check["name"] for check in decision["checks"] if not check["passed"]]


def test_the_interface_can_be_read() -> None:
    interface = read("gate")
    assert interface.inputs == ("report",)
    assert interface.outputs == ("decision",)
    assert interface.settle({})["min_accuracy"] == 0.8
    assert all(parameter.help for parameter in interface.parameters.values())


def test_approved(judge: Callable[..., Metrics], report: Path, tmp_path: Path) -> None:
    decision = judge()
    assert decision["outcome"] == "approved"
    assert [check["name"] for check in decision["checks"]] == [
        "test_patients",
        "class_images",
        "accuracy",
        "auc",
        "calibration_error",
        "accuracy_difference",
        "auc_difference",
        "agreement",
    ]
    figures = contracts.read_record("metrics", report / "metrics.json")["all"]["figures"]
    low, auc = figures["accuracy"]["low"], figures["auc"]["low"]
    said = f"accuracy is at least {low:.3f} and AUC at least {auc:.3f} with 95 % confidence"
    assert decision["sentence"] == f"Approved: {said}; all 8 checks passed."
    subject = contracts.read_record("metrics", report / "metrics.json")["subject"]
    del subject["model_bytes"]
    assert decision["subject"] == subject
    assert decision["report"] == "e" * 64
    assert decision["policy"] == {**EASY, "min_test_patients": 20, "min_class_images": 10}


def test_refused_by_the_policy_of_the_issue(judge: Callable[..., Metrics]) -> None:
    def set_low(metrics: Metrics) -> None:
        metrics["all"]["figures"]["accuracy"]["low"] = 0.93

    decision = judge(set_low, min_accuracy=0.999)
    assert failed(decision) == ["accuracy"]
    assert decision["sentence"] == (
        "Refused: accuracy is at least 0.93 with 95 % confidence, 0.069 short of the required 0.999."
    )


def put(value: Any, *path: str) -> Callable[[Metrics], None]:
    def change(metrics: Metrics) -> None:
        for key in path[:-1]:
            metrics = metrics[key]
        metrics[path[-1]] = value

    return change


CORE = ("comparison", "populations", "core")


class Case(NamedTuple):
    """Where a check finds its number, one that fails by a little, its limit and policy, and what the sentence says."""

    path: tuple[str, ...]
    bad: float
    limit: float
    policy: dict[str, float]
    words: str


EACH = {
    "test_patients": Case(("all", "patients"), 19, 20, {}, "19 patients were tested, 1 fewer than the required 20"),
    "class_images": Case(
        ("all", "by_class", "PNEUMONIA"), 9, 10, {}, "9 test images are of PNEUMONIA, the rarest class, 1 fewer than"
    ),
    "accuracy": Case(
        ("all", "figures", "accuracy", "low"),
        0.7999,
        0.8,
        {"min_accuracy": 0.8},
        "accuracy is at least 0.7999 with 95 % confidence, 0.0001 short of the required 0.8",
    ),
    "auc": Case(
        ("all", "figures", "auc", "low"),
        0.8,
        0.85,
        {"min_auc": 0.85},
        "AUC is at least 0.8 with 95 % confidence, 0.05 short of the required 0.85",
    ),
    "calibration_error": Case(
        ("all", "figures", "calibration_error", "value"),
        0.2,
        0.15,
        {"max_calibration_error": 0.15},
        "the calibration error is 0.2, 0.05 above the allowed 0.15",
    ),
    "accuracy_difference": Case(
        (*CORE, "accuracy", "low"),
        -0.08,
        -0.05,
        {"max_accuracy_loss": 0.05},
        "accuracy on the locked core may be up to 0.08 below the model in service’s with 95 % confidence, "
        "0.03 more than the allowed 0.05",
    ),
    "auc_difference": Case(
        (*CORE, "auc", "low"),
        -0.05,
        -0.03,
        {"max_auc_loss": 0.03},
        "AUC on the locked core may be up to 0.05 below",
    ),
    "agreement": Case(
        ("as_trained", "agreement"),
        0.95,
        0.97,
        {"min_agreement": 0.97},
        "does is 0.95, 0.02 short of the required 0.97",
    ),
}


@pytest.mark.parametrize("name", EACH)
def test_each_check_fails_and_says_by_how_much(judge: Callable[..., Metrics], name: str) -> None:
    case = EACH[name]
    decision = judge(put(case.bad, *case.path), **case.policy)
    assert failed(decision) == [name]
    assert case.words in decision["sentence"]
    check = next(check for check in decision["checks"] if check["name"] == name)
    assert check["margin"] == pytest.approx(-abs(case.bad - case.limit))
    assert check["sentence"].endswith(".")


@pytest.mark.parametrize("name", EACH)
def test_each_check_passes_at_its_limit(judge: Callable[..., Metrics], name: str) -> None:
    case = EACH[name]
    assert failed(judge(put(case.limit, *case.path), **case.policy)) == []


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.99", True, {}])
def test_what_is_no_number_fails(judge: Callable[..., Metrics], name: str, value: Any) -> None:
    decision = judge(put(value, *EACH[name].path))
    assert failed(decision) == [name]
    if name != "class_images":
        assert next(c for c in decision["checks"] if c["name"] == name)["value"] is None
    assert "no number" in decision["sentence"]


@pytest.mark.parametrize("part", ["all", "comparison", "as_trained"])
def test_a_missing_part_fails(judge: Callable[..., Metrics], part: str) -> None:
    decision = judge(put(None, part))
    assert len(failed(decision)) == {"all": 5, "comparison": 2, "as_trained": 1}[part]


def test_several_failures_are_all_named(judge: Callable[..., Metrics]) -> None:
    decision = judge(min_accuracy=0.999, min_auc=1.0)
    assert failed(decision) == ["accuracy", "auc"]
    assert "short of the required 0.999; AUC is at least" in decision["sentence"]


def test_without_a_core_all_images_are_compared(judge: Callable[..., Metrics]) -> None:
    def without(metrics: Metrics) -> None:
        del metrics["comparison"]["populations"]["core"]
        metrics["comparison"]["populations"]["all"]["accuracy"]["low"] = -0.6

    decision = judge(without)
    assert failed(decision) == ["accuracy_difference"]
    assert "on all test images may be up to 0.6 below" in decision["sentence"]


def test_a_first_float_model_has_fewer_checks(judge: Callable[..., Metrics]) -> None:
    def change(metrics: Metrics) -> None:
        metrics["subject"] |= {"champion": "", "precision": "float32"}
        metrics |= {"comparison": None, "as_trained": None}

    assert len(judge(change)["checks"]) == 5


@pytest.mark.parametrize("name", ["model", "dataset", "split", "precision", "runtime", "champion"])
def test_a_report_that_does_not_say_what_it_judged(judge: Callable[..., Metrics], name: str) -> None:
    with pytest.raises(ValueError, match=rf"does not say what it judged: {name}.*Evaluate the model again"):
        judge(lambda metrics: metrics["subject"].pop(name))


def test_a_report_without_classes(judge: Callable[..., Metrics]) -> None:
    with pytest.raises(ValueError, match="names 0 classes"):
        judge(put([], "classes"))


def test_a_report_of_another_schema(judge: Callable[..., Metrics]) -> None:
    with pytest.raises(ValueError, match="schema 99"):
        judge(put(99, "schema"))


def test_the_page_shows_the_decision_first(judge: Callable[..., Metrics], tmp_path: Path) -> None:
    decision = judge(min_accuracy=0.999)
    page = (tmp_path / "decision" / "page.html").read_text(encoding="utf-8")
    assert MARKER not in page
    assert page.index("</h1>") < page.index("Refused") < page.index("In short")
    assert decision["sentence"] in page
    assert all(check["sentence"] in page for check in decision["checks"])
    assert page.count("✓ passed") == 7
    assert page.count("✕ failed") == 1
    assert "http://" not in page
    assert "https://" not in page
    judge()
    page = (tmp_path / "decision" / "page.html").read_text(encoding="utf-8")
    assert "✓</span>Approved" in page
    assert "✕" not in page


def test_a_page_without_a_place_for_it(report: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    shutil.copytree(report, folder)
    (folder / "report.html").write_text("<html></html>")
    (tmp_path / "decision").mkdir()
    work = Work("key", open_store(str(tmp_path / "store")), {"report": "e" * 64})
    with pytest.raises(ValueError, match="no place for the decision"):
        gate(folder, tmp_path / "decision", work)


def test_same_report_same_bytes(judge: Callable[..., Metrics], tmp_path: Path) -> None:
    judge()
    before = [(tmp_path / "decision" / name).read_bytes() for name in ("decision.json", "page.html")]
    judge()
    assert before == [(tmp_path / "decision" / name).read_bytes() for name in ("decision.json", "page.html")]


def test_the_decision_is_signed_by_the_key_that_the_run_began_with(
    judge: Callable[..., Metrics], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = Pair(), Pair()
    use(monkeypatch, ours, ours)
    decision = judge(signer=ours.id)
    assert decision["signer"] == ours.id
    path = tmp_path / "decision" / "decision.json"
    trusted = signing.verifier()
    assert trusted
    signing.check_file(trusted, path, "decision", "The decision")
    assert decision["page"] == contracts.file_digest(path.with_name("page.html"))
    for key, words in ((other, f"holds the key {other.id}"), (None, "is not set")):
        use(monkeypatch, key)
        with pytest.raises(RuntimeError, match=f"began with the signing key {ours.id}, and .* {words}"):
            judge(signer=ours.id)


def test_without_a_signer_there_is_no_signature(judge: Callable[..., Metrics], tmp_path: Path) -> None:
    assert judge()["signer"] == ""
    assert not (tmp_path / "decision" / "decision.sig").exists()
