"""A policy is checked before anything is done, and what is wrong with it is said with the nearest word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.gate.policy import (
    SHIPPED,
    Requirement,
    check_changes,
    check_classes,
    complete_policy,
    merge_changes,
    parse_requirement,
)
from components.shared.contracts import fingerprint

POLICIES = Path(__file__).parents[3] / "workflows" / "policies"


def test_without_changes_it_is_the_shipped_one() -> None:
    whole = complete_policy({})
    assert whole["name"] == "default"
    assert whole["floors"] == {"accuracy": 0.8, "auc": 0.85}
    assert whole["non_inferiority"] == {"accuracy": 0.05, "auc": 0.03}
    assert whole["counts"] == {"patients": 20, "class_images": 10}
    assert whole["budget"] == {"error": 0.05, "looks": 24}
    assert (whole["approval"]["needed"], whole["without_service"]) == ("never", "refuse")
    assert set(whole) == set(yaml.safe_load(SHIPPED.read_text(encoding="utf-8")))


def test_changes_are_laid_over_it_entry_by_entry_and_null_takes_away() -> None:
    whole = complete_policy({"name": "ours", "floors": {"sensitivity": 0.9, "auc": None}, "latency_ms": 50})
    assert whole["name"] == "ours"
    assert whole["floors"] == {"accuracy": 0.8, "sensitivity": 0.9}
    assert whole["latency_ms"] == 50
    assert complete_policy({"floors": {"sensitivity": 0.9}})["name"] == "default, changed"
    assert complete_policy({})["floors"] == {"accuracy": 0.8, "auc": 0.85}


def test_the_form_in_which_a_pipeline_hands_numbers_on_does_not_matter() -> None:
    plain = {"floors": {"auc": 0.9, "accuracy": None}, "counts": {"patients": 30}, "budget": {"looks": 12}}
    handed = {"floors": {"auc": "0.9", "accuracy": "none"}, "counts": {"patients": "30"}, "budget": {"looks": 12.0}}
    assert fingerprint(complete_policy(plain)) == fingerprint(complete_policy(handed))
    assert type(complete_policy(handed)["budget"]["looks"]) is int


FIGURES = r".*Allowed: accuracy, exact_match, balanced_accuracy, sensitivity"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"flors": {}}, r"The policy has no section 'flors'\. Did you mean 'floors'\? Allowed: name, floors"),
        ({"floors": {"acuracy": 0.9}}, rf"floors has no figure 'acuracy'\. Did you mean 'accuracy'\?{FIGURES}"),
        ({"floors": {"recall": 0.9}}, rf"floors has no figure 'recall'\. Did you mean 'sensitivity'\?{FIGURES}"),
        ({"first": {"floors": {"acuracy": 0.9}}}, r"first\.floors has no figure 'acuracy'"),
        ({"floors": {"brier": 0.2}}, "floors contains brier, for which lower is better. Use ceilings"),
        ({"ceilings": {"auc": 0.2}}, "ceilings contains auc, for which higher is better. Use floors"),
        ({"floors": {"accuracy@A": 0.9}}, "limits accuracy of one class; for a class use: sensitivity"),
        ({"floors": {"auc@": 0.9}}, "without a class after the @"),
        ({"floors": {"auc": "high"}}, r"floors\.auc is 'high'; it must be a number from -1 to 1"),
        ({"floors": {"auc": True}}, r"floors\.auc is True"),
        ({"floors": {"auc": float("nan")}}, r"floors\.auc is nan"),
        ({"floors": {"auc": 85}}, r"floors\.auc is 85; it must be from -1 to 1"),
        ({"floors": {"auc": 10**400}}, r"floors\.auc is 1000.*; it must be a number from -1 to 1"),
        ({"floors": {"auc": 0.9, "auc ": 0.1}}, "floors contains auc twice, in two spellings"),
        ({"ceilings": {"calibration_error@A": 0.1, "calibration_error @A": 1}}, "calibration_error@A twice"),
        ({"floors": 0.9}, r"floors is 0\.9; it must be a mapping from figures to limits"),
        ({"require": ["acc > 0.9"]}, r"require has no figure 'acc'"),
        ({"require": ["accuracy"]}, r"require contains 'accuracy'\. Write a figure, > or <, and a number"),
        ({"require": ["accuracy = 0.9"]}, "hardly ever equal to a number"),
        ({"require": ["accuracy > 90 %"]}, r"not per cent\. Write 0\.9 for 90 %"),
        ({"require": ["accuracy > many"]}, "require's accuracy is 'many'"),
        ({"require": "accuracy > 0.9"}, "must be a list of lines"),
        ({"non_inferiority": {"sensitivity": 0.1}}, "non_inferiority has no figure 'sensitivity'"),
        ({"non_inferiority": {"auc@A": 0.1}}, "allows no class. Write auc alone"),
        ({"subgroups": {"fields": ["sexes"]}}, r"subgroups\.fields has no field 'sexes'\. Did you mean 'sex'\?"),
        ({"subgroups": {"floor": {}}}, r"subgroups has no entry 'floor'\. Did you mean 'floors'\?"),
        ({"counts": {"patients": 2.5}}, r"counts\.patients is 2\.5; it must be a whole number from 1 to 1,000,000"),
        ({"counts": {"patients": None}}, r"counts\.patients is None; it must be a whole number"),
        ({"data": {"max_leaks": 0}}, r"data has no entry 'max_leaks'\. Did you mean 'max_leakage'\?"),
        ({"budget": {"looks": 501}}, r"over 501 evaluations.*at most 500"),
        ({"budget": {"error": 0}}, r"budget\.error is 0; it must be from 0\.0001 to 0\.5"),
        ({"approval": {"needed": "allways"}}, r"must be one of never, always\. Did you mean 'always'\?"),
        ({"approval": "always"}, r"approval is 'always'; it must be a mapping with some of: needed, valid_days"),
        ({"without_service": True}, "without_service is True; it must be one of refuse, allow"),
        ({"name": ""}, "name is ''; it must be a text"),
        (["floors"], "The policy is .*must be a mapping with some of: name, floors"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(changes: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        complete_policy(changes)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("accuracy > 0.9", Requirement("accuracy", ">", 0.9)),
        ("accuracy>=.9", Requirement("accuracy", ">=", 0.9)),
        ("sensitivity@No Finding ≥ 0.8", Requirement("sensitivity@No Finding", ">=", 0.8)),
        (" brier <0.2 ", Requirement("brier", "<", 0.2)),
    ],
)
def test_a_line_is_read(text: str, read: Requirement) -> None:
    assert parse_requirement(text) == read
    assert parse_requirement(complete_policy({"require": [text]})["require"][0]) == read


@pytest.mark.parametrize(
    "changes",
    [
        {"floors": {"sensitivity@PNEUMONA": 0.9}},
        {"ceilings": {"calibration_error@PNEUMONA": 0.9}},
        {"first": {"floors": {"auc@PNEUMONA": 0.9}}},
        {"require": ["auc@PNEUMONA > 0.9"]},
    ],
)
def test_a_class_that_is_not_there_is_named_with_the_nearest(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no class 'PNEUMONA'\. Did you mean 'PNEUMONIA'\? Classes: NORMAL, PNEU"):
        check_classes(complete_policy(changes), ["NORMAL", "PNEUMONIA"])
    check_classes(complete_policy(changes), ["PNEUMONA", "NORMAL"])


def test_changes_over_changes_keep_what_is_not_named_again() -> None:
    below = {"floors": {"auc": 0.9}, "require": ["auc > 0.8"], "subgroups": {"floors": {"accuracy": 0.5}}}
    both = merge_changes(below, {"floors": {"accuracy": 0.7}, "require": [], "subgroups": {"max_gap": {"auc": 0.1}}})
    assert both == {
        "floors": {"auc": 0.9, "accuracy": 0.7},
        "require": [],
        "subgroups": {"floors": {"accuracy": 0.5}, "max_gap": {"auc": 0.1}},
    }
    assert check_changes(both) == both


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.yaml")), ids=lambda path: str(path.stem))
def test_the_examples_are_right_and_bear_the_name_of_their_file(path: Path) -> None:
    assert complete_policy(yaml.safe_load(path.read_text(encoding="utf-8")))["name"] == path.stem


def test_the_old_system_s_rule_is_one_line() -> None:
    text = (POLICIES / "old-threshold.yaml").read_text(encoding="utf-8")
    rules = [each for each in text.splitlines() if each and not each.startswith(("#", "name:"))]
    assert rules == ['require: ["accuracy > 0.9"]']
    assert complete_policy(yaml.safe_load(text))["require"] == ["accuracy > 0.9"]
