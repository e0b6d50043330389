"""The loop as its users see it: released, repeated, grown, refused."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.ledger import release_log
from components.shared.privacy.keyed_hash import SYNTHETIC
from components.shared.runtime.stage_interface import read
from components.shared.storage.store import open_store
from medloop.runner.explain import artifact_file
from tests.e2e.loop import ROOT, Place, outputs, same_but_for_time, shown_as, states

PURE = ("ingest", "merge", "split", "train", "evaluate", "gate", "quantize")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, Any]]:
    """A place where a first model was released, and that run."""
    place = Place(tmp_path_factory.mktemp("loop"))
    place.medloop("synth", str(place.scans), "--patients", "40")
    return place, place.run()


def sides(place: Place, run: dict[str, Any]) -> dict[str, str]:
    """Each patient's side in a run."""
    store = open_store(str(place.home / "store"))
    manifest = Manifest.decode(store.get(outputs(run, "split")["splits"]), "splits")
    rows = pq.read_table(store.fetch(manifest.files["patients.parquet"].digest)).to_pylist()
    return {row["patient_id"]: row["side"] for row in rows}


def test_a_first_run_ends_with_a_model_in_service(released: tuple[Place, dict[str, Any]]) -> None:
    place, run = released
    assert run["outcome"] == "released"
    assert [step["stage"] for step in run["stages"]] == [
        "resolve", "ingest", "merge", "split", "train", "evaluate", "gate", "quantize", "evaluate", "gate", "deploy",
    ]  # fmt: skip
    assert run["decision"]["subject"]["precision"] == "int8"
    assert set(run["figures"]["accuracy"]) == {"value", "low", "high"}
    assert place.models()["in_service"] == run["in_service"] == "v1"


def test_the_report_is_one_file_that_tells_the_decision(released: tuple[Place, dict[str, Any]]) -> None:
    place, run = released
    page = Path(place.medloop("report").stdout.strip()).read_text(encoding="utf-8")
    assert run["decision"]["sentence"] in page.replace("&#39;", "'")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_explain_tells_every_check(released: tuple[Place, dict[str, Any]]) -> None:
    place, run = released
    told = place.medloop("explain", run["run"]).stdout
    assert all(check["sentence"] in told for check in run["decision"]["checks"])


def test_the_same_run_again_does_nothing_twice(released: tuple[Place, dict[str, Any]]) -> None:
    place, first = released
    before = place.models()
    again = place.run()
    assert {stage: states(again)[stage] for stage in PURE} == dict.fromkeys(PURE, "reused")
    assert [step["key"] for step in again["stages"][1:-1]] == [step["key"] for step in first["stages"][1:-1]]
    assert "already in service" in again["sentence"]
    assert place.models() == before


def test_a_source_in_parts_gives_the_same_data_set(released: tuple[Place, dict[str, Any]]) -> None:
    place, first = released
    parted = place.run("--set", "parts=2")
    assert [step["stage"] for step in parted["stages"]].count("ingest") == 2
    data = [next(step["outputs"] for step in run["stages"] if step["stage"] == "merge") for run in (first, parted)]
    assert data[0] == data[1]
    assert {states(parted)[stage] for stage in ("split", "train", "quantize")} == {"reused"}


def test_plan_says_what_is_reused_and_what_a_change_would_redo(released: tuple[Place, dict[str, Any]]) -> None:
    place, _ = released
    arguments = ("--source", str(place.scans), "--params", str(ROOT / "workflows/params/smoke.yaml"), "--json")
    same = {step["stage"]: step for step in json.loads(place.medloop("plan", *arguments).stdout)}
    assert all(same[stage]["state"] == "reused" for stage in PURE)
    other = json.loads(place.medloop("plan", *arguments, "--set", "epochs=3").stdout)
    found = {step["stage"]: step for step in reversed(other)}
    assert [found[stage]["state"] for stage in ("merge", "split", "train", "evaluate")] == [
        "reused",
        "reused",
        "runs",
        "runs",
    ]
    assert "epochs 2 → 3" in found["train"]["why"]
    assert found["train"]["last_seconds"] > 0
    assert found["deploy"]["state"] == "depends"


def test_a_refused_model_is_a_result_that_leaves_service_alone(released: tuple[Place, dict[str, Any]]) -> None:
    place, _ = released
    refused = place.run("--set", "policy.floors.accuracy=0.999")
    assert refused["outcome"] == "refused"
    failed = [check for check in refused["decision"]["checks"] if not check["passed"]]
    assert [check["name"] for check in failed] == ["floors.accuracy"]
    assert failed[0]["limit"] == 0.999
    assert f"{0.999 - failed[0]['value']:.3f}".rstrip("0") + " short" in failed[0]["sentence"]
    assert refused["in_service"] == place.models()["in_service"] == "v1"
    assert states(refused)["train"] == "reused"


def test_what_cannot_be_read_is_set_aside_and_the_run_goes_on(released: tuple[Place, dict[str, Any]]) -> None:
    place, run = released
    values = next(step["values"] for step in run["stages"] if step["stage"] == "merge")
    assert values["quarantined"] >= 4
    assert "unreadable" in place.medloop("explain", run["run"]).stdout


def test_a_run_whose_earlier_work_is_lost_is_compared_with_what_is_in_service(
    released: tuple[Place, dict[str, Any]], tmp_path: Path
) -> None:
    place, run = released
    elsewhere = Place(tmp_path / "home")
    shutil.copytree(place.home / "store", elsewhere.home / "store")
    shutil.rmtree(elsewhere.home / "store" / "work")
    again = elsewhere.run(source=place.scans)
    assert again["decision"]["subject"]["champion"] == run["decision"]["subject"]["model"]


@pytest.fixture(scope="module")
def grown(released: tuple[Place, dict[str, Any]]) -> tuple[Place, dict[str, Any], dict[str, Any]]:
    """The place after new scans have come and a second model was released; both runs."""
    place, first = released
    place.medloop("synth", str(place.scans), "--patients", "52")
    return place, first, place.run()


def test_new_scans_retrain_and_no_known_patient_changes_side(
    grown: tuple[Place, dict[str, Any], dict[str, Any]],
) -> None:
    place, first, second = grown
    before, after = sides(place, first), sides(place, second)
    assert len(after) > len(before)
    assert {patient: after[patient] for patient in before} == before
    assert states(second)["train"] == "finished"
    store = open_store(str(place.home / "store"))
    report = next(step for step in reversed(second["stages"]) if step["stage"] == "evaluate")["outputs"]["report"]
    figures = contracts.decode("metrics", artifact_file(store, report, "metrics.json"), "metrics.json")
    in_service = release_log.versions(release_log.read_log(store))["v1"].record["model"]
    assert figures["comparison"]["champion"] == in_service
    assert figures["core"]["images"] + figures["new"]["images"] == figures["all"]["images"]
    assert second["outcome"] == "released"
    assert place.models()["in_service"] == "v2"
    back = place.medloop("rollback", "--reason", "a test").stdout
    assert "v1 is in service again, instead of v2." in back
    assert place.models()["in_service"] == "v1"
    again = place.run()  # what a person took back, a run does not bring back
    assert (again["outcome"], again["in_service"]) == ("withheld", "v1")
    assert "(a test)" in again["sentence"]
    assert "v2 is in service again" in place.medloop("promote", "v2", "--reason", "a test").stdout


def test_the_commands_of_the_readme_that_need_a_history_work(
    grown: tuple[Place, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    """Runs are only planned, and files go elsewhere; all else is done as it stands there."""
    place, _, run = grown
    blocks = [block.replace("20261121", run["run"]) for block in shown_as("console")]
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("medloop ")]
    commands.remove("medloop serve")  # it runs until it is stopped
    assert {command.split()[1] for command in commands} >= {"run", "rollback", "promote", "replay"}
    for command in commands:
        words = [str(tmp_path / word) if word.endswith(".yaml") else word for word in shlex.split(command)[1:]]
        if words[0] == "run":
            words = ["plan", *(str(place.scans) if word == "scans" else word for word in words[1:])]
            words = words[: words.index("--runner")] if "--runner" in words else words
        place.medloop(*words, *(["--no-pin"] if words[0] == "compile" else []))  # that registry is an example


def test_stages_by_hand_give_what_the_pipeline_gave(released: tuple[Place, dict[str, Any]], tmp_path: Path) -> None:
    """In an empty store, so all is done again: also the proof that a run repeats to the byte (but for times)."""
    place, run = released
    store = open_store(str(place.home / "store"))
    place.medloop("synth", str(tmp_path / "scans"), "--patients", "40")
    empty = tmp_path / "empty"
    empty.mkdir()
    made: dict[str, Path] = {"previous": empty, "champion": empty}
    environment = {**place.environment(), "MEDLOOP_HASH_KEY": SYNTHETIC}
    for step in run["stages"]:
        if step["stage"] not in PURE:
            continue
        record = contracts.decode("result", store.read(f"work/{step['key']}/result.json") or b"", "result")
        parameters = dict(record["parameters"])
        if step["stage"] == "ingest":
            from components.shared.storage import image_source

            parameters["source"] = str(tmp_path / "scans")
            parameters["revision"] = image_source.revision(image_source.entries(parameters["source"]))
        command = [sys.executable, "-m", "components", step["stage"], "--store", str(tmp_path / "store")]
        interface = read(step["stage"])
        for name in interface.inputs:
            given = {"model": "quantized" if "quantized" in made else "model", "portions": "portion"}.get(name, name)
            command += [f"--{name}", str(made[given])]
        for name in interface.outputs:
            made[name] = tmp_path / f"{name}-{len(made)}"
            command += [f"--{name}", str(made[name])]
        for name, value in parameters.items():
            text = value if isinstance(value, str) else json.dumps(value)
            command += [f"--{name.replace('_', '-')}", text]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        digests = {name: Manifest.decode(made[name].read_bytes(), name).digest for name in interface.outputs}
        by_hand = open_store(str(tmp_path / "store"))
        assert same_but_for_time(step["stage"], (by_hand, digests), (store, step["outputs"])), step["stage"]
        assert json.loads(done.stdout) == step["values"]
