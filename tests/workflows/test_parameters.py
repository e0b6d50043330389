"""What is wrong with a run's parameters is said before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.shared.runtime.stage_interface import read
from workflows.parameters import describe, option_parameters, pipeline_parameters, settle


def settled(*assignments: str, file: Path | None = None, source: str | None = "/scans") -> dict[str, Any]:
    return settle(source, file, assignments, {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def test_without_wishes_the_defaults_are_those_of_the_stages() -> None:
    found = settled()
    assert found["source"] == "/scans"
    for stage, names in {"train": ["epochs", "seed", "learning_rate", "architecture"], "gate": ["policy"]}.items():
        assert {name: found[name] for name in names} == {name: read(stage).parameters[name].default for name in names}
    assert found["train_options"] == found["policy"] == {}
    assert set(found) == set(pipeline_parameters())


def test_the_file_then_the_assignments_then_the_source_decide(file: Path) -> None:
    file.write_text("source: /from-file\nepochs: 5\nseed: 1\ntrain_options:\n  augment: 0.5\n  fit: stretch\n")
    found = settled("epochs=6", "train_options.fit=pad", file=file, source=None)
    assert (found["source"], found["epochs"], found["seed"]) == ("/from-file", 6, 1)
    assert found["train_options"] == {"augment": 0.5, "fit": "pad"}
    assert settled("source=/assigned", file=file)["source"] == "/scans"


def test_one_runs_options_do_not_reach_the_next() -> None:
    settled("train_options.augment=0.5")
    assert settled()["train_options"] == {}


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("learning_rate=1e-3", "learning_rate", 0.001),
        ("learning_rate=1", "learning_rate", 1.0),
        ("epochs= 4", "epochs", 4),
        (" epochs =4", "epochs", 4),
        ("epochs=4.0", "epochs", 4),
        ("architecture=resnet18", "architecture", "resnet18"),
        ("weights=18", "weights", "18"),
        ("train_options={augment: 0.5}", "train_options", {"augment": 0.5}),
        ("ingest_options.classes=[A, B]", "ingest_options", {"classes": ["A", "B"]}),
    ],
)
def test_an_assignment_is_read_in_its_parameters_type(assignment: str, name: str, value: object) -> None:
    found = settled(assignment)[name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("epcohs=3", "There is no parameter 'epcohs'. Did you mean 'epochs'?"),
        ("augment=1", "There is no parameter 'augment'. Did you mean 'train_options.augment'?"),
        ("train_options.agument=1", "no parameter 'train_options.agument'. Did you mean 'train_options.augment'?"),
        ("train_options={agument: 1}", "no parameter 'train_options.agument'. Did you mean 'train_options.augment'?"),
        ("train_option.augment=1", "Did you mean 'train_options.augment'?"),
        ("store=/x", "There is no parameter 'store'"),
        ("run=/x", "There is no parameter 'run'"),
        ("ingest_options.source=/x", "There is no parameter 'ingest_options.source'"),
        ("epochs", "--set is 'epochs'; write name=value"),
        ("=3", "There is no parameter ''"),
        ("epochs=0", "epochs is 0; it must be from 1 to 1000"),
        ("epochs=many", "epochs is 'many'; it must be a whole number"),
        ("epochs=2.5", "epochs is 2.5; it must be a whole number"),
        ("epochs=", "epochs is None; it must be a whole number"),
        ("epochs=true", "epochs is True; it must be a whole number"),
        ("epochs=[1", "epochs is '[1'; it must be a whole number"),
        ("learning_rate=nan", "learning_rate is nan; it must be a number"),
        ("learning_rate=.inf", "learning_rate is inf; it must be from"),
        ("policy.floors.accuracy=1.01", "The policy's floors.accuracy is 1.01; it must be from -1 to 1"),
        ("policy.floors.acuracy=0.9", "The policy's floors has no figure 'acuracy'. Did you mean 'accuracy'?"),
        ("policy.flors.accuracy=0.9", "The policy has no section 'flors'. Did you mean 'floors'?"),
        ("policy.floors.accuracy=", "--set policy.floors.accuracy= has no value"),
        (
            "policy=screning",
            "There is no policy 'screning'. Did you mean 'screening'? Name a YAML file or a built-in policy",
        ),
        ("policy=[1]", "There is no policy '[1]'"),
        ("policy={floors: 3}", "The policy's floors is 3; it must be a mapping"),
        ("policy.budget.looks=501", "Set budget.looks to at most 500"),
        ("train_options.fit=crop", "fit is 'crop'; it must be one of pad, stretch"),
        ("train_options.augment=4", "augment is 4.0; it must be from 0 to 3"),
        ("train_options=3", "train_options is 3; it must be a mapping"),
        ("ingest_options.classes=A", "classes is 'A'; it must be a list"),
    ],
)
def test_a_wrong_assignment_is_refused_with_the_remedy(assignment: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        settled(assignment)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs: [1, 2", "is not valid YAML: while parsing a flow sequence"),
        ("epochs: 1\n  seed: 2", "is not valid YAML"),
        ("- epochs", "contains a list; write one `name: value` per line"),
        ("epochs", "contains a str; write one `name: value` per line"),
        ("epcohs: 3", "Did you mean 'epochs'?"),
        ("epochs: '3'", "epochs is '3'; it must be a whole number"),
        ("train_options:\n  agument: 3", "Did you mean 'train_options.augment'?"),
        ("train_options:", "train_options is None; it must be a mapping"),
        ("1: 2", "There is no parameter '1'"),
        ("epochs: 3\nepochs: 5", "'epochs' occurs more than once"),
        ("epochs: 1:30", "epochs is '1:30'; it must be a whole number"),
    ],
)
def test_a_wrong_file_is_refused_with_the_remedy(text: str, sentence: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=r"\w") as refused:
        settled(file=file)
    assert sentence in str(refused.value)


def test_a_file_that_is_no_text_is_refused_by_name(file: Path) -> None:
    file.write_bytes(b"\x89PNG\r\n\xff\xfe")
    with pytest.raises(ValueError, match=r"params\.yaml is not valid YAML"):
        settled(file=file)


def test_a_missing_file_names_those_that_are_shipped(file: Path) -> None:
    with pytest.raises(ValueError, match=r"The parameter file .*params\.yaml does not exist\. Built-in ones: .*smoke"):
        settled(file=file)


def test_a_shipped_file_is_found_by_its_name_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settled(file=Path("smoke"))["image_size"] == 48
    with pytest.raises(ValueError, match=r"The parameter file smoek does not exist\. Did you mean 'smoke'\?"):
        settled(file=Path("smoek"))
    monkeypatch.chdir(tmp_path)
    Path("smoke").write_text("image_size: 64\n")
    assert settled(file=Path("smoke"))["image_size"] == 64


def test_an_empty_file_asks_for_nothing(file: Path) -> None:
    file.write_text("# nothing\n")
    assert settled(file=file) == settled()


def test_a_source_that_is_set_to_nothing_is_not_this_directory() -> None:
    with pytest.raises(ValueError, match="No source was given"):
        settled("source=", source=None)


@pytest.mark.parametrize("source", [None, ""])
def test_no_source_is_refused(source: str | None) -> None:
    with pytest.raises(ValueError, match=r"No source was given\. Set it with --source DIR"):
        settled(source=source)


def test_a_source_is_made_absolute_and_an_address_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settled(source="scans")["source"] == str(tmp_path / "scans")
    assert settled(source="s3://bucket/scans")["source"] == "s3://bucket/scans"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "workflows" / "params").glob("*.yaml"), key=str))
def test_the_shipped_files_are_right(path: Path) -> None:
    assert settled(file=path) != settled()


def test_the_list_names_every_parameter_with_its_limits() -> None:
    text = describe()
    for name in (*pipeline_parameters(), *option_parameters()):
        assert name.endswith("_options") or f"\n  {name}  (" in f"\n{text}"
    assert f"\n  epochs  (default {read('train').parameters['epochs'].default}; from 1 to 1000)\n" in text
    assert max(map(len, text.splitlines())) <= 80
    everything = " ".join(text.split())
    assert all(" ".join(each.help.split()) in everything for each in option_parameters().values())


def test_words_narrow_the_list() -> None:
    smoothing = describe(["smoothing"])
    assert smoothing.splitlines()[0].startswith("  train_options.label_smoothing  (default 0.0; from 0 to 0.5)")
    assert "epochs" not in smoothing
    assert {line.split(".")[0] for line in describe(["quantize"]).splitlines() if line[2] != " "} == {
        "  quantize_options"
    }
    with pytest.raises(ValueError, match=r"No parameter name contains 'epohcs'\. Did you mean 'epochs'\?"):
        describe(["epohcs"])
    with pytest.raises(ValueError, match=r"contains 'quantize' and 'epochs'\. Did you mean 'epochs'\?"):
        describe(["quantize", "epochs"])


def test_a_policy_is_a_name_a_file_or_a_mapping_and_entries_are_laid_over_it(file: Path) -> None:
    file.write_text("policy:\n  floors:\n    auc: 0.9\n    accuracy: 0.7\n")
    mine = file.with_name("mine.yaml")
    mine.write_text("floors:\n  accuracy: 0.6\nbudget:\n  looks: 12\n")
    assert settled(file=file)["policy"] == {"floors": {"auc": 0.9, "accuracy": 0.7}}
    both = settle("/scans", file, ["policy.floors.sensitivity@A.B=0.5"], {}, str(mine))["policy"]
    assert both == {"floors": {"accuracy": 0.6, "sensitivity@A.B": 0.5}, "budget": {"looks": 12.0}}
    assert settle("/scans", None, [], {}, "default")["policy"] == {}
    assert settled("policy=old-threshold")["policy"]["require"] == ["accuracy > 0.9"]
    file.write_text("policy: old-threshold\n")
    assert settled(file=file)["policy"]["name"] == "old-threshold"
    assert settled("policy.subgroups.floors.accuracy=0.6")["policy"] == {"subgroups": {"floors": {"accuracy": 0.6}}}


def test_a_policy_has_the_form_in_which_a_pipeline_hands_it_on() -> None:
    found = settled("policy={counts: {patients: 30}, floors: {auc: null}}")["policy"]
    assert found == {"counts": {"patients": 30.0}, "floors": {"auc": "none"}}
    assert type(found["counts"]["patients"]) is float


def test_a_policys_classes_are_held_against_those_asked_for() -> None:
    with pytest.raises(ValueError, match=r"no class 'PNEUMONA'\. Did you mean 'PNEUMONIA'"):
        settled("policy.floors.auc@PNEUMONA=0.9", "ingest_options.classes=[NORMAL, PNEUMONIA]")
    assert settled("policy.floors.auc@PNEUMONA=0.9")["policy"] == {"floors": {"auc@PNEUMONA": 0.9}}


def test_a_policy_that_is_no_mapping_is_refused(file: Path) -> None:
    file.write_text("- accuracy > 0.9\n")
    with pytest.raises(ValueError, match="contains a list; write the sections of a policy"):
        settle("/scans", None, [], {}, str(file))
    file.write_text("floors: {auc: 0.9}\nfloors: {auc: 0.8}\n")
    with pytest.raises(ValueError, match="'floors' occurs more than once"):
        settle("/scans", None, [], {}, str(file))
    file.write_text("floors: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(ValueError, match="has more than 32 levels of nesting"):
        settle("/scans", None, [], {}, str(file))
    with pytest.raises(ValueError, match=r"--set policy=.* is not valid YAML: the key 'auc' occurs more than once"):
        settled("policy={floors: {auc: 0.9, auc: 0.1}}")
