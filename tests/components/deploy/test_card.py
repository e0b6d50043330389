"""A released version has a card that is written from its run, whatever its records tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from components.deploy import card
from components.deploy.card import VersionRecords
from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.ledger import release_log
from components.shared.ledger.model_registry import CARD
from components.shared.storage.artifacts import gather
from components.shared.storage.store import Store, open_store
from medloop.cli.main import app
from tests import made, tracking_database
from tests.components.deploy.test_deploy import Candidate

CHAPTERS = [
    "# Model card: medloop v2",
    "## Intended use",
    "## Data",
    "## Figures",
    "## Subgroups",
    "## Limits",
    "## Changes since v1",
    "### Description of modifications",
    "### Modification protocol",
    "### Impact assessment",
    "## Origin",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.03, "high": value + 0.02}


def metrics(**changes: Any) -> dict[str, Any]:
    """Figures as evaluate writes them in schema 2, which has more than that of before."""
    figures = {name: figure(0.9) for name in ("accuracy", "auc", "sensitivity", "specificity")}
    pair = {"ours": 0.9, "theirs": 0.88, "difference": 0.02, "low": -0.01, "high": 0.05, "p": 0.2, "test": "mcnemar"}
    return {
        "classes": ["NORMAL", "PNEUMONIA"],
        "positive": "PNEUMONIA",
        "confidence": 0.95,
        "all": {"images": 240, "patients": 120, "by_class": {"NORMAL": 100, "PNEUMONIA": 140}, "figures": figures},
        "core": {"images": 200, "patients": 100, "figures": figures},
        "new": None,
        "comparison": {"populations": {"core": {"accuracy": pair, "disagree": 9, "images": 200, "patients": 100}}},
        "operating_points": [
            {"at": "specificity 0.90", "threshold": 0.4, "sensitivity": figure(0.93), "specificity": figure(0.9)}
        ],
        "subgroups": [
            {"field": "sex", "value": "F", "images": 100, "patients": 60, "too_small": False,
             "figures": {"accuracy": figure(0.91), "auc": figure(0.95)}},
            {"field": "site", "value": "north", "images": 10, "patients": 5, "too_small": True,
             "figures": {"accuracy": figure(0.8), "auc": None}},
        ],
        "gaps": [
            {"field": "sex", "figure": "accuracy", "best": "F", "worst": "M", "gap": 0.05, "low": 0.0, "high": 0.1}
        ],
        "latency": {"milliseconds": 4.2, "p95": 5, "threads": 2, "images": 20},
        "data": {"leakage": 0},
        "shortcuts": {"sentence": "On the borders alone it reaches 0.61."},
        **changes,
    }  # fmt: skip


VERDICT = {
    "sentence": "Approved: all 1 checks passed.",
    "checks": [{"title": "Accuracy, lower bound", "value": 0.87, "limit": 0.8, "bound": "at least", "passed": True}],
    "budget": {"sentence": "This is evaluation 2 of 24 on this locked test set."},
    "policy": {"name": "chest"},
}
RECORD = {"precision": "int8", "runtime": "onnxruntime", "model": "e" * 64, "policy": "9" * 64, "by": "someone"}


def records(tmp_path: Path, gain: float, **changes: Any) -> VersionRecords:
    bundle = made.make_bundle(tmp_path / f"bundle{gain}", gain=gain)
    about = json.loads((bundle / "configs" / "metadata.json").read_text())["medloop"]
    counts: dict[str, Any] = {"images": int(100 * gain), "patients": 50, "quarantined": 3, "duplicates": 2}
    counts["guessed"] = {"file name": 900, "folder": 300}
    split = {"images": {"train": 60, "val": 20, "test": 20}, "patients": {"train": 30, "val": 10, "test": 10}}
    return VersionRecords({**about, **changes}, metrics(), {"name": "chest", "counts": counts}, split)


def test_it_tells_all_in_the_order_in_which_it_is_asked_for(tmp_path: Path) -> None:
    earlier = records(tmp_path, 9)
    now = records(tmp_path, 12, threshold=0.6, parameters={"epochs": 3})
    words = card.render("v2", RECORD, VERDICT, now, earlier, "v1")
    lines = words.splitlines()
    assert [line for line in lines if line.startswith("#")] == CHAPTERS
    for said in (
        "Approved: all 1 checks passed.",
        "1,200 images of 50 patients; 3 images were quarantined",
        "The patients of 1,200 images were guessed from names of files and folders.",
        "Tested on 20 images of 10 patients.",
        "Test images: NORMAL 100, PNEUMONIA 140.",
        "| accuracy | 0.900 (0.870 to 0.920) | 0.900 (0.870 to 0.920) |",
        "| specificity 0.90 | 0.4 | 0.930 (0.900 to 0.950) | 0.900 (0.870 to 0.920) |",
        "| sex: F | 60 | 100 | 0.910 (0.880 to 0.930) | 0.950 (0.920 to 0.970) |",
        "| site: north (too few) | 5 | 10 | 0.800 (0.770 to 0.820) | – |",
        "sex: accuracy differs by 0.050 (0.000 to 0.100) between F and M.",
        "Too few test patients to measure performance on: site north.",
        "On the borders alone it reaches 0.61.",
        "This is evaluation 2 of 24",
        "- Threshold: 0.5 before, 0.6 now.",
        "- Images in the data set: 900 before, 1200 now.",
        "- parameters, epochs: 1 before, 3 now.",
        "| Accuracy, lower bound | 0.87 | at least 0.8 | passed |",
        "| figure | the locked core |",
        "| accuracy | +0.020 (-0.010 to +0.050) |",
        "| the two models disagree on | 9 of 200 images |",
        "a policy that was set in advance, 'chest' (digest: 9999",
        "`medloop rollback --reason WHY` restores v1",
        f"- model: {'e' * 64}",
    ):
        assert said in words, said


def test_a_predecessor_that_could_not_be_loaded_is_said(tmp_path: Path) -> None:
    now = records(tmp_path, 12)
    lost = VersionRecords(
        now.bundle, metrics(comparison=None, service_error="The object 12 is gone."), now.dataset, now.split
    )
    words = card.render("v2", RECORD, VERDICT, lost, VersionRecords(), "v1")
    assert "- It was not compared with v1 on the same images: v1 could not be loaded (The object 12 is gone)." in words


def test_findings_have_a_limit_of_their_own(tmp_path: Path) -> None:
    words = card.render("v1", RECORD, VERDICT, records(tmp_path, 12, task="multilabel"), None, "")
    assert "The model detects these findings only" in words
    assert "assigns one of these classes" not in words


def test_what_is_not_known_is_said_and_stops_nothing() -> None:
    words = card.render("v1", {}, {}, VersionRecords(), None, "")
    assert "The records of the data set and of the split are not in the store." in words
    assert "The report's figures are not in the store." in words
    assert "This is the first version" in words


@pytest.mark.parametrize("odd", [None, [], "text", 7, {"figures": []}, {"a": None}, [None, 3, {"field": None}]])
@pytest.mark.parametrize("name", list(metrics()))
def test_odd_records_stop_no_release(odd: Any, name: str, tmp_path: Path) -> None:
    now = VersionRecords(
        {name: odd}, metrics(**{name: odd}), {name: odd, "counts": odd}, {"images": odd, "warnings": odd}
    )
    verdict = {"checks": odd, "budget": odd, "sentence": odd}
    assert card.render("v2", RECORD, verdict, now, now, "v1").startswith("# Model card: medloop v2")


def test_a_class_that_is_named_like_markup_is_shown_as_it_is() -> None:
    words = card.render("v1", {}, {}, VersionRecords({"classes": ["a|b", "<script>\n# x"]}), None, "")
    assert r"a\|b, \<script\> \# x" in words


def test_who_released_it_cannot_write_into_the_card() -> None:
    words = card.render(
        "v1", {**RECORD, "by": "me\n\n## Intended use\n\nAnything."}, VERDICT, VersionRecords(), None, ""
    )
    assert words.count("\n## Intended use\n") == 1
    assert "- by: me \\#\\# Intended use Anything." in words


def test_what_a_person_approved_is_not_said_to_wait() -> None:
    verdict = {
        **VERDICT,
        "sentence": "Awaiting approval: all 1 checks passed, and the policy wants a person’s approval.",
    }
    record = {**RECORD, "sentence": "v2: Approved by Dr. B (read them): all 1 checks passed."}
    words = card.render("v2", record, verdict, VersionRecords(), None, "")
    assert "**The decision.** v2: Approved by Dr. B (read them)" in words
    assert "Awaiting" not in words


def test_findings_are_no_classes_of_which_an_image_has_one(tmp_path: Path) -> None:
    point = {"at": "specificity 0.90", "threshold": 0.4, "sensitivity": figure(0.93), "specificity": figure(0.9)}
    points = [{**point, "class": "Mass"}, {**point, "class": "Cyst|s"}]
    now = VersionRecords({"task": "multilabel", "classes": ["Mass", "Cyst|s"]}, metrics(operating_points=points))
    words = card.render("v1", RECORD, VERDICT, now, None, "")
    assert "assigns one of these classes to every image" not in words
    assert "The model detects these findings only" in words
    assert "| specificity 0.90, Mass | 0.4 |" in words
    assert r"| specificity 0.90, Cyst\|s | 0.4 |" in words


def test_a_release_names_its_card_and_the_command_line_shows_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Candidate(tmp_path / "one", store).deploy()
    Candidate(tmp_path / "two", store, gain=9).deploy()
    entry = release_log.read_log(store)[1]
    manifest = Manifest.decode(store.get(entry.record["card"]), "card")
    assert set(manifest.files) == {CARD}
    words = store.get(manifest.files[CARD].digest).decode()
    assert words.startswith("# Model card: medloop v2\n")
    assert "## Changes since v1" in words
    assert "0.900 (0.860 to 0.930)" in words
    assert "v2: It is approved." in entry.record["sentence"]
    monkeypatch.setenv("MEDLOOP_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["models", "--card", "v2"])
    assert done.output == f"{words}\n"
    wrong = CliRunner().invoke(app, ["models", "--card", "v3"])
    assert "There is no released version 'v3'. Released versions: " in str(wrong.exception)


@pytest.mark.slow
def test_the_card_comes_into_the_registry(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_database.place_in(tmp_path))
    Candidate(tmp_path / "one", store).deploy()
    from mlflow import MlflowClient

    (version,) = MlflowClient().search_model_versions("name='medloop'")
    entry = release_log.read_log(store)[0].record
    assert version.description.startswith("# Model card: medloop v1\n")
    assert len(version.description) <= 5000
    assert version.tags["medloop.card"] == entry["card"]


def test_a_card_is_the_same_when_it_is_written_again(store: Store, tmp_path: Path) -> None:
    bundle = made.make_bundle(tmp_path / "bundle")
    record = {"model": gather(store, bundle).digest, "precision": "float32", "runtime": "onnxruntime"}
    assert card.store_card(store, "v1", record, {}, None) == card.store_card(store, "v1", record, {}, None)
    assert contracts.digest(b"") not in card.store_card(store, "v1", record, {}, None)
