"""The gate: passes and fails each check, says by how much, and stays closed when something is missing."""

from __future__ import annotations

import copy
import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from components.gate.gate import MARKER, gate
from components.gate.policy import complete_policy, merge_changes
from components.shared import contracts
from components.shared.ledger import signing
from components.shared.runtime.stage_interface import read
from components.shared.runtime.work import Work
from components.shared.storage.store import open_store
from tests.components.evaluate import scenes
from tests.components.gate.reports import Metrics, promised
from tests.components.shared.decisions import keep, steps
from tests.components.shared.signers import Pair, use
from workflows.parameters import read_policy

EASY = {
    "floors": {"accuracy": 0.5, "auc": 0.5},
    "ceilings": {"calibration_error": 0.9},
    "first": {"floors": {"sensitivity": 0.4, "specificity": 0.4}},
    "non_inferiority": {"accuracy": 0.5, "auc": 0.5},
    "subgroups": {"floors": {"accuracy": 0.5}},
    "agreement": 0.5,
}


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

    def run(
        change: Callable[[Metrics], object] = bool,
        looks: int = 1,
        spent: float = 0.0,
        signer: str = "",
        revision: str = "",
        **policy: Any,
    ) -> Metrics:
        folder = tmp_path / "report"
        shutil.copytree(report, folder, dirs_exist_ok=True)
        metrics = copy.deepcopy(promised(contracts.read_record("metrics", report / "metrics.json")))
        change(metrics)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (tmp_path / "decision").mkdir(exist_ok=True)
        work = Work("key", open_store(str(tmp_path / "store")), {"report": "e" * 64})
        given: dict[str, Any] = {"looks": looks, "spent": spent, "signer": signer, "revision": revision}
        values = gate(folder, tmp_path / "decision", work, policy=merge_changes(EASY, policy), **given)
        record = contracts.read_record("decision", tmp_path / "decision" / "decision.json")
        assert values == {"outcome": record["outcome"], "sentence": record["sentence"]}
        return record

    return run


def failed(decision: Metrics) -> list[str]:
    passed = decision["outcome"] != "refused"
    assert passed == all(check["passed"] for check in decision["checks"])
    return [check["name"] for check in decision["checks"] if not check["passed"]]


def named(decision: Metrics, name: str) -> Metrics:
    return next(dict(check) for check in decision["checks"] if check["name"] == name)


def test_the_interface_can_be_read() -> None:
    interface = read("gate")
    assert interface.inputs == ("report",)
    assert interface.outputs == ("decision",)
    plain = {"policy": {}, "looks": 1, "spent": 0.0, "signer": "", "revision": "", "shipped": False}
    assert interface.complete({}) == plain
    assert all(parameter.help for parameter in interface.parameters.values())


@pytest.mark.slow
@pytest.mark.parametrize(("confidence", "names"), [(0.99, []), (0.9, ["confidence"]), (None, ["confidence"])])
def test_what_holds_too_seldom_bounds_nothing(
    judge: Callable[..., Metrics], confidence: float | None, names: list[str]
) -> None:
    """A run may ask evaluate for other intervals; its policy's limits are not meant for narrower ones."""
    decision = judge(lambda metrics: metrics.update(confidence=confidence))
    assert failed(decision) == names
    if confidence and names:
        said = "The report's bounds have a confidence of 0.9, 0.05 short of the required 0.95."
        assert named(decision, "confidence")["sentence"] == said


def test_approved(judge: Callable[..., Metrics], report: Path) -> None:
    decision = judge()
    assert decision["outcome"] == "approved"
    assert [check["name"] for check in decision["checks"]] == [
        "budget.looks",
        "counts.patients",
        "counts.class_images",
        "floors.accuracy",
        "floors.auc",
        "ceilings.calibration_error",
        "non_inferiority.accuracy",
        "non_inferiority.auc",
        "subgroups.floors.accuracy",
        "data.max_quarantined_share",
        "data.max_leakage",
        "agreement",
    ]
    figures = contracts.read_record("metrics", report / "metrics.json")["all"]["figures"]
    low, auc = figures["accuracy"]["low"], figures["auc"]["low"]
    said = f"accuracy is at least {low:.3f} and AUC is at least {auc:.3f} with 95 % confidence"
    assert decision["sentence"] == f"Approved: {said}; all 12 checks of the policy 'default, changed' passed."
    subject = contracts.read_record("metrics", report / "metrics.json")["subject"]
    del subject["model_bytes"]
    assert decision["subject"] == subject
    assert decision["report"] == "e" * 64
    assert decision["policy"] == complete_policy(EASY)
    assert decision["policy_digest"] == contracts.fingerprint(complete_policy(EASY))


def test_refused_by_the_policy_of_the_issue(judge: Callable[..., Metrics]) -> None:
    decision = judge(put(0.93, "all", "figures", "accuracy", "low"), floors={"accuracy": 0.999})
    assert failed(decision) == ["floors.accuracy"]
    assert decision["sentence"] == (
        "Refused: accuracy is at least 0.93 with 95 % confidence, 0.069 short of the required 0.999."
    )


def put(value: Any, *path: Any) -> Callable[[Metrics], None]:
    def change(metrics: Metrics) -> None:
        for key in path[:-1]:
            metrics = metrics[key]
        metrics[path[-1]] = value

    return change


CORE = ("comparison", "populations", "core")
AT_0_002 = ("lower", 5, 1)
"""The bound at the error rate 0.002, the largest that is not above 0.05 over 24 looks."""


class Case(NamedTuple):
    """Where a check finds its number, one that fails by a little, its limit and policy, and what the sentence says."""

    path: tuple[Any, ...]
    bad: float
    limit: float
    policy: dict[str, Any]
    words: str


EACH = {
    "counts.patients": Case(
        ("all", "patients"), 19, 20, {}, "the test set has 19 patients, 1 fewer than the required 20"
    ),
    "counts.class_images": Case(
        ("all", "by_class", "PNEUMONIA"), 9, 10, {}, "9 test images are of PNEUMONIA, the rarest class, 1 fewer than"
    ),
    "floors.accuracy": Case(
        ("all", "figures", "accuracy", "low"),
        0.7999,
        0.8,
        {"floors": {"accuracy": 0.8}},
        "accuracy is at least 0.7999 with 95 % confidence, 0.0001 short of the required 0.8",
    ),
    "floors.auc": Case(
        ("all", "figures", "auc", "low"),
        0.8,
        0.85,
        {"floors": {"auc": 0.85}},
        "AUC is at least 0.8 with 95 % confidence, 0.05 short of the required 0.85",
    ),
    "floors.sensitivity@PNEUMONIA": Case(
        ("all", "per_class", "PNEUMONIA", "sensitivity", "low"),
        0.85,
        0.9,
        {"floors": {"sensitivity@PNEUMONIA": 0.9}},
        "sensitivity for PNEUMONIA is at least 0.85 with 95 % confidence, 0.05 short of the required 0.9",
    ),
    "ceilings.calibration_error": Case(
        ("all", "figures", "calibration_error", "high"),
        0.2,
        0.15,
        {"ceilings": {"calibration_error": 0.15}},
        "calibration error is at most 0.2 with 95 % confidence, 0.05 above the allowed 0.15",
    ),
    "require.0": Case(
        ("all", "figures", "kappa", "value"),
        0.55,
        0.6,
        {"require": ["kappa >= 0.6"]},
        "kappa is 0.55, 0.05 short of the required 0.6",
    ),
    "non_inferiority.accuracy": Case(
        (*CORE, "accuracy", *AT_0_002),
        -0.08,
        -0.05,
        {"non_inferiority": {"accuracy": 0.05}},
        "accuracy on the locked core may be up to 0.08 below that of the model in service with 99.8 % confidence, "
        "0.03 more than the allowed 0.05",
    ),
    "non_inferiority.auc": Case(
        (*CORE, "auc", *AT_0_002),
        -0.05,
        -0.03,
        {"non_inferiority": {"auc": 0.03}},
        "AUC on the locked core may be up to 0.05 below",
    ),
    "non_inferiority.brier": Case(
        (*CORE, "brier", *AT_0_002),
        -0.03,
        -0.02,
        {"non_inferiority": {"brier": 0.02}},
        "Brier score on the locked core may be up to 0.03 above",
    ),
    "subgroups.floors.accuracy": Case(
        ("subgroups", 1, "figures", "accuracy", "low"),
        0.6,
        0.7,
        {"subgroups": {"floors": {"accuracy": 0.7}}},
        "in the weakest subgroup, sex M, is at least 0.6 with 95 % confidence, 0.1 short of the required 0.7; ",
    ),
    "subgroups.max_gap.accuracy": Case(
        ("gaps", 0, "gap"),
        0.12,
        0.1,
        {"subgroups": {"max_gap": {"accuracy": 0.1}}},
        "accuracy differs by 0.12 (-0.02 to 0.1) between sex F and M, 0.02 above the allowed 0.1",
    ),
    "latency_ms": Case(
        ("latency", "milliseconds"), 60.0, 50.0, {"latency_ms": 50}, "takes 60 ms, 10 above the allowed 50"
    ),
    "model_mb": Case(
        ("subject", "model_bytes"), 3e6, 2e6, {"model_mb": 2}, "the graph has 3 MB, 1 above the allowed 2"
    ),
    "data.max_quarantined_share": Case(
        ("data", "quarantined"), 110, 47.5, {}, "the share of quarantined images is 0.367, 0.167 above the allowed 0.2"
    ),
    "data.max_leakage": Case(
        ("data", "leakage"), 1, 0, {}, "the number of leaks between splits is 1, 1 above the allowed 0"
    ),
    "agreement": Case(
        ("as_trained", "agreement"),
        0.95,
        0.97,
        {"agreement": 0.97},
        "does is 0.95, 0.02 short of the required 0.97",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EACH)
def test_each_check_fails_and_says_by_how_much(judge: Callable[..., Metrics], name: str) -> None:
    case = EACH[name]
    decision = judge(put(case.bad, *case.path), **case.policy)
    assert failed(decision) == [name]
    assert case.words in decision["sentence"]
    check = named(decision, name)
    assert check["margin"] < 0
    assert check["sentence"].endswith(".")


@pytest.mark.parametrize("name", EACH)
def test_each_check_passes_at_its_limit(judge: Callable[..., Metrics], name: str) -> None:
    case = EACH[name]
    assert failed(judge(put(case.limit, *case.path), **case.policy)) == []


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.99", True, {}, 10**400])
def test_what_is_no_number_fails(judge: Callable[..., Metrics], name: str, value: Any) -> None:
    decision = judge(put(value, *EACH[name].path), **EACH[name].policy)
    assert failed(decision) == [name]
    if name != "counts.class_images":
        assert named(decision, name)["value"] is None
    assert "no number" in decision["sentence"]


@pytest.mark.parametrize("part", ["all", "comparison", "as_trained", "subgroups", "data"])
def test_a_missing_part_fails(judge: Callable[..., Metrics], part: str) -> None:
    decision = judge(put(None, part))
    assert len(failed(decision)) == {"all": 5, "comparison": 2, "as_trained": 1, "subgroups": 1, "data": 2}[part]


def test_several_failures_are_all_named(judge: Callable[..., Metrics]) -> None:
    decision = judge(floors={"accuracy": 0.999, "auc": 1.0})
    assert failed(decision) == ["floors.accuracy", "floors.auc"]
    assert "short of the required 0.999; AUC is at least" in decision["sentence"]


@pytest.mark.parametrize(("text", "kept"), [("accuracy > 0.9", False), ("accuracy >= 0.9", True)])
def test_a_required_line_is_kept_to_the_letter(judge: Callable[..., Metrics], text: str, kept: bool) -> None:
    decision = judge(put(0.9, "all", "figures", "accuracy", "value"), require=[text])
    assert (failed(decision) == []) is kept
    if not kept:
        assert decision["sentence"] == "Refused: accuracy is 0.9; it must be more than 0.9."


@pytest.mark.parametrize(("accuracy", "outcome"), [(0.91, "approved"), (0.9, "refused"), (0.89, "refused")])
def test_the_old_system_s_rule_decides_as_it_did(judge: Callable[..., Metrics], accuracy: float, outcome: str) -> None:
    change = put(accuracy, "all", "figures", "accuracy", "value")
    assert judge(change, **read_policy("old-threshold"))["outcome"] == outcome


def test_without_a_core_nothing_is_approved(judge: Callable[..., Metrics]) -> None:
    decision = judge(lambda metrics: metrics["comparison"]["populations"].pop("core"))
    assert failed(decision) == ["non_inferiority.accuracy", "non_inferiority.auc"]
    assert "on the locked core, which has no images left" in decision["sentence"]


def first(metrics: Metrics) -> None:
    metrics["subject"] |= {"champion": "", "precision": "float32"}
    metrics |= {"comparison": None, "as_trained": None}


def test_a_first_model_has_floors_of_its_own(judge: Callable[..., Metrics]) -> None:
    names = [check["name"] for check in judge(first)["checks"]]
    assert "first.floors.sensitivity" in names
    assert not [name for name in names if name.startswith("non_inferiority") or name == "agreement"]
    refused = judge(first, first={"floors": {"specificity": 0.999}})
    assert failed(refused) == ["first.floors.specificity"]
    assert judge(first={"floors": {"specificity": 0.999}})["outcome"] == "approved"


def lost(metrics: Metrics) -> None:
    metrics |= {"comparison": None, "service_error": "models/model.onnx cannot be read."}


def test_a_model_in_service_that_cannot_be_loaded(judge: Callable[..., Metrics]) -> None:
    refused = judge(lost)
    assert failed(refused) == ["without_service"]
    assert (
        "could not be loaded, so there is no comparison with it (models/model.onnx cannot be read)"
        in refused["sentence"]
    )
    allowed = judge(lost, without_service="allow")
    assert allowed["outcome"] == "approved"
    assert named(allowed, "first.floors.sensitivity")["passed"]
    assert "the policy allows that" in named(allowed, "without_service")["sentence"]
    silent = judge(put(None, "comparison"), without_service="allow")  # a report that only lacks its comparison
    assert failed(silent) == ["non_inferiority.accuracy", "non_inferiority.auc"]


@pytest.mark.parametrize(
    ("figure", "difference", "said"),
    [
        ("accuracy", 0.01, "patients it was better by 0.010; more patients are needed to show that it is not worse)"),
        ("accuracy", 0.0, "patients it was equal; more patients are needed"),
        ("accuracy", -0.01, ""),
        ("brier", -0.01, "patients it was better by 0.010"),
        ("brier", 0.01, ""),
    ],
)
def test_what_lacks_only_patients_is_told_so(
    judge: Callable[..., Metrics], figure: str, difference: float, said: str
) -> None:
    def change(metrics: Metrics) -> None:
        put(-0.6, *CORE, figure, *AT_0_002)(metrics)
        put(difference, *CORE, figure, "difference")(metrics)

    decision = judge(change, non_inferiority={figure: 0.5})
    assert failed(decision) == [f"non_inferiority.{figure}"]
    assert ("more patients are needed" in decision["sentence"]) is bool(said)
    assert said in decision["sentence"]


def test_the_model_in_service_is_not_worse_than_itself(judge: Callable[..., Metrics]) -> None:
    def same(metrics: Metrics) -> None:
        metrics["subject"]["model"] = metrics["subject"]["champion"]
        put(-0.6, *CORE, "accuracy", *AT_0_002)(metrics)

    decision = judge(same)
    assert decision["outcome"] == "approved"
    assert "This model is already in service" in named(decision, "non_inferiority.accuracy")["sentence"]


def test_a_gap_is_asked_for_only_where_two_subgroups_of_a_field_are_large_enough(judge: Callable[..., Metrics]) -> None:
    def one_of_each(metrics: Metrics) -> None:
        kept = {group["field"]: group for group in metrics["subgroups"]}
        metrics["subgroups"] = [{**group, "too_small": False} for group in kept.values()]
        metrics["gaps"] = []

    asked = {"max_gap": {"accuracy": 0.1}}
    assert named(judge(one_of_each, subgroups=asked), "subgroups.max_gap.accuracy")["passed"]
    assert failed(judge(put([], "gaps"), subgroups=asked)) == ["subgroups.max_gap.accuracy"]
    assert failed(judge(put(None, "gaps"), subgroups=asked)) == ["subgroups.max_gap.accuracy"]


# The budget of the test set.


@pytest.mark.parametrize(
    ("budget", "level", "share"),
    [({"looks": 1}, 0, "95"), ({"looks": 2}, 1, "97.5"), ({}, 5, "99.8"), ({"looks": 500}, 9, "99.99")],
)
def test_the_difference_is_bounded_at_what_one_look_may_spend(
    judge: Callable[..., Metrics], budget: dict[str, int], level: int, share: str
) -> None:
    """By the largest error rate of the report that is not above it."""
    decision = judge(put(-0.6, *CORE, "accuracy", "lower", level, 1), budget=budget)
    assert failed(decision) == ["non_inferiority.accuracy"]
    assert f"with {share} % confidence" in decision["sentence"]
    assert judge(put(-0.6, *CORE, "accuracy", "lower", (level + 1) % 10, 1), budget=budget)["outcome"] == "approved"


def test_a_report_without_a_bound_at_that_rate_fails(judge: Callable[..., Metrics]) -> None:
    decision = judge(put([[0.05, 0.1], [0.025, 0.1]], *CORE, "accuracy", "lower"))
    assert failed(decision) == ["non_inferiority.accuracy"]
    assert "at an error rate of 0.0021" in decision["sentence"]


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (1, "This is evaluation 1 of 24 on this locked test set. Each may release a model that is worse than allowed"),
        (1, "with a probability of at most 0.0021, which adds up to 0.05. 23 are left."),
        (17, "adds up to 0.05. 7 are left."),
        (18, "6 are left: plan a new locked test set now."),
        (23, "1 is left: plan a new"),
        (24, "It is the last one: no further model is approved"),
    ],
)  # fmt: skip
def test_what_a_look_costs_is_said(judge: Callable[..., Metrics], tmp_path: Path, look: int, said: str) -> None:
    decision = judge(looks=look, spent=(look - 1) * 0.05 / 24)
    assert decision["outcome"] == "approved"
    budget = decision["budget"]
    assert said in budget["sentence"]
    assert ("plan a new" in budget["sentence"]) == (18 <= look < 24)
    assert (budget["look"], budget["looks"], budget["left"]) == (look, 24, 24 - look)
    assert budget["error_at_this_look"] == pytest.approx(0.05 / 24)
    assert budget["spent"] == pytest.approx(0.05 * look / 24)
    assert budget["sentence"] in (tmp_path / "decision" / "page.html").read_text(encoding="utf-8")


def test_beyond_the_plan_nothing_is_approved(judge: Callable[..., Metrics]) -> None:
    decision = judge(looks=25, spent=0.05)
    assert failed(decision) == ["budget.looks"]
    assert "this is evaluation 25 on this locked test set, and 24 were planned" in decision["sentence"]
    assert "Use a new locked test set, or raise budget.looks in the policy" in decision["sentence"]
    assert decision["budget"]["spent"] == pytest.approx(0.05)
    more = judge(looks=25, spent=0.05, budget={"looks": 48})
    assert failed(more) == ["budget.error"]
    assert (
        "earlier evaluations spent an error rate of 0.05, this one costs 0.001, and the policy allows 0.05"
        in (more["sentence"])
    )
    assert more["budget"]["error_at_this_look"] == 0
    assert judge(looks=25, spent=0.05, budget={"looks": 48, "error": 0.1})["outcome"] == "approved"


@pytest.mark.slow
def test_another_plan_at_each_look_spends_no_more(judge: Callable[..., Metrics]) -> None:
    """As many looks planned as there were: each plan alone would be kept, but not the error rate."""
    spent, approved = 0.0, 0
    for look in range(1, 25):
        decision = judge(looks=look, spent=spent, budget={"looks": look})
        spent += decision["budget"]["error_at_this_look"]
        approved += decision["outcome"] == "approved"
        assert decision["budget"]["spent"] == pytest.approx(spent)
    assert approved == 1
    assert spent == pytest.approx(0.05)


# Approval by a person.


def test_a_policy_may_let_it_wait_for_a_person(judge: Callable[..., Metrics], tmp_path: Path) -> None:
    decision = judge(approval={"needed": "always"})
    assert decision["outcome"] == "awaiting approval"
    assert decision["sentence"].startswith("Awaiting approval: ")
    assert decision["sentence"].endswith("all 12 checks of the policy 'default, changed' passed.")
    page = (tmp_path / "decision" / "page.html").read_text(encoding="utf-8")
    assert "…</span>Awaiting approval" in page
    assert "valid for 30 days" in page
    assert judge(approval={"needed": "always"}, floors={"auc": 1})["outcome"] == "refused"


# Policies that are wrong.


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ({"floors": {"acuracy": 0.9}}, "Did you mean 'accuracy'"),
        ({"floors": {"auc@PNEUMONA": 0.9}}, "no class 'PNEUMONA'. Did you mean 'PNEUMONIA'"),
        ({"flors": {}}, "Did you mean 'floors'"),
    ],
)
def test_a_wrong_policy_decides_nothing(
    judge: Callable[..., Metrics], tmp_path: Path, policy: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        judge(**policy)
    assert list((tmp_path / "decision").iterdir()) == []


def test_small_subgroups_are_named_and_not_judged(judge: Callable[..., Metrics]) -> None:
    def shrink(metrics: Metrics) -> None:
        for group in metrics["subgroups"]:
            group |= {"too_small": True, "figures": {"accuracy": None}}
        metrics["gaps"] = []

    decision = judge(shrink, subgroups={"max_gap": {"accuracy": 0.1}})
    assert decision["outcome"] == "approved"
    check = named(decision, "subgroups.floors.accuracy")
    assert (check["value"], check["passed"]) == (None, True)
    assert check["sentence"].startswith("Not known: no subgroup could be judged; ")
    assert decision["sentence"].endswith("passed; 2 could not be judged.")
    assert "are too small to be judged" in check["sentence"]
    assert "No two subgroups could be compared" in named(decision, "subgroups.max_gap.accuracy")["sentence"]


def test_patients_of_unknown_sex_or_site_are_no_subgroup(judge: Callable[..., Metrics], tmp_path: Path) -> None:
    def forget(metrics: Metrics) -> None:
        metrics["subgroups"] = [{**metrics["subgroups"][0], "field": "sex", "value": "unknown", "too_small": False}]
        metrics["subgroups"][0]["figures"]["accuracy"]["low"] = 0.1
        metrics["gaps"] = []

    decision = judge(forget)
    check = named(decision, "subgroups.floors.accuracy")
    assert (decision["outcome"], check["value"], check["passed"]) == ("approved", None, True)
    assert check["sentence"].startswith(
        "Not known: no subgroup could be judged; the data name no groups in the fields sex"
    )
    page = (tmp_path / "decision" / "page.html").read_text(encoding="utf-8")
    assert "<summary>11 checks passed, 1 not judged</summary>" in page
    assert "– not judged" in page


def test_only_the_fields_that_are_named_are_judged(judge: Callable[..., Metrics]) -> None:
    bad = put(0.1, "subgroups", 0, "figures", "accuracy", "low")  # of a sex
    assert failed(judge(bad)) == ["subgroups.floors.accuracy"]
    assert judge(bad, subgroups={"fields": ["site"]})["outcome"] == "approved"


def test_names_with_braces_are_said_as_they_are(judge: Callable[..., Metrics]) -> None:
    def rename(metrics: Metrics) -> None:
        metrics["subgroups"][0] |= {"field": "site", "value": "{value} {0}"}
        metrics["subgroups"][0]["figures"]["accuracy"]["low"] = 0.1

    assert "the weakest subgroup, site {value} {0}, is at least 0.1 with" in judge(rename)["sentence"]


@pytest.mark.parametrize("name", ["model", "dataset", "split", "precision", "runtime", "champion"])
def test_a_report_that_does_not_say_what_it_judged(judge: Callable[..., Metrics], name: str) -> None:
    with pytest.raises(ValueError, match=rf"does not identify its model: .*{name}.*Evaluate the model again"):
        judge(lambda metrics: metrics["subject"].pop(name))


def test_a_report_without_classes(judge: Callable[..., Metrics]) -> None:
    with pytest.raises(ValueError, match="names 0 classes"):
        judge(put([], "classes"))


def test_a_report_of_another_schema(judge: Callable[..., Metrics]) -> None:
    with pytest.raises(ValueError, match="schema 99"):
        judge(put(99, "schema"))


def test_the_page_shows_the_decision_first(judge: Callable[..., Metrics], tmp_path: Path) -> None:
    decision = judge(floors={"accuracy": 0.999})
    page = (tmp_path / "decision" / "page.html").read_text(encoding="utf-8")
    assert MARKER not in page
    assert page.index("</h1>") < page.index("Refused") < page.index("Summary</h2>")
    assert decision["sentence"] in page
    assert all(check["sentence"] in page for check in decision["checks"])
    assert page.count("✓ passed") == 11
    assert page.count("✕ failed") == 1
    assert page.index("✕ failed") < page.index("<summary>11 checks passed</summary>") < page.index("✓ passed")
    assert decision["policy_digest"][:12] in page
    assert "http://" not in page
    assert "https://" not in page
    judge()
    page = (tmp_path / "decision" / "page.html").read_text(encoding="utf-8")
    assert "✓</span>Approved" in page
    assert "<summary>12 checks passed</summary>" in page
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


def test_the_page_holds_the_policy_as_it_can_be_written_into_a_file(
    judge: Callable[..., Metrics], tmp_path: Path
) -> None:
    decision = judge(require=["accuracy > 0.1"])
    page = (tmp_path / "decision" / "page.html").read_text(encoding="utf-8")
    shown = page.partition('<div class="policy">')[2].partition("</div>")[0]
    assert complete_policy(yaml.safe_load(html.unescape(shown))) == decision["policy"]


def test_the_decision_is_signed_by_the_key_that_the_run_began_with(
    judge: Callable[..., Metrics], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = Pair(), Pair()
    use(monkeypatch, ours, ours)
    with pytest.raises(PermissionError, match="not the result of a step of"):
        judge(signer=ours.id, revision="revision")
    assert not (tmp_path / "decision" / "decision.sig").exists()
    store = open_store(str(tmp_path / "store"))
    keep(store, steps(store, judge()["subject"], "e" * 64))
    decision = judge(signer=ours.id, revision="revision")
    assert decision["signer"] == ours.id
    assert decision["lineage"] == contracts.file_digest(tmp_path / "decision" / "lineage.json")
    path = tmp_path / "decision" / "decision.json"
    trusted = signing.verifier()
    assert trusted
    signing.check_file(trusted, path, "decision", "The decision")
    assert decision["page"] == contracts.file_digest(path.with_name("page.html"))
    for key, words in ((other, f"holds the key {other.id}"), (None, "is not set")):
        use(monkeypatch, key)
        with pytest.raises(RuntimeError, match=f"began with the signing key {ours.id}, but .* {words}"):
            judge(signer=ours.id, revision="revision")


def test_without_a_signer_there_is_no_signature(judge: Callable[..., Metrics], tmp_path: Path) -> None:
    assert judge()["signer"] == ""
    assert not (tmp_path / "decision" / "decision.sig").exists()
