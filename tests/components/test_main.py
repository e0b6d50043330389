"""A stage by hand is the pipeline's step: the same store, the same work, the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.shared.contracts import Manifest
from components.shared.runtime.stage_interface import read, stages
from components.shared.storage.store import Store, open_store
from tests import made
from tests.components.shared.steps import contents, manifest, nothing, step

REPOSITORY = Path(__file__).resolve().parents[2]


def by_hand(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "components", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env={**os.environ}, capture_output=True, text=True, check=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def test_the_help_lists_every_stage_with_what_it_does() -> None:
    done = by_hand("--help")
    assert done.returncode == 0
    for stage in stages():
        assert f"  {stage:9} {read(stage).summary}" in done.stdout
    assert by_hand().stdout == done.stdout


def test_a_stages_help_lists_what_it_takes_with_limits_and_needs_no_heavy_package() -> None:
    code = (
        "import sys, components.__main__ as m\ntry: m.main(['train', '--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("False\n")
    words = " ".join(done.stdout.split())
    for name, parameter in read("train").parameters.items():
        assert f"--{name.replace('_', '-')}" in words
        assert " ".join(parameter.help.split()[:3]) in words
    assert "from 1 to 1000; default" in words
    assert "--dataset PATH input: a manifest, or a directory of files" in words


@pytest.mark.slow
def test_a_step_by_hand_is_the_step_of_the_pipeline(store: Store, tmp_path: Path) -> None:
    dataset = made.make_dataset(tmp_path / "dataset", store)
    (tmp_path / "previous").mkdir()
    arguments = ["split", "--store", store.uri, "--dataset", dataset, "--previous", tmp_path / "previous", "--seed", 3]
    done = by_hand(*arguments, "--splits", tmp_path / "out" / "splits.json")
    assert done.returncode == 0, done.stderr
    found = Manifest.decode((tmp_path / "out" / "splits.json").read_bytes(), "out")
    again = step("split", store, {"dataset": dataset, "previous": nothing(store)}, seed=3)
    assert again.reused, "the pipeline finds the work done"
    assert again.outputs["splits"] == found
    assert json.loads(done.stdout) == again.values
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == ["started", "finished"]


@pytest.mark.slow
def test_manifests_go_in_and_files_come_out_into_a_directory_that_exists(store: Store, tmp_path: Path) -> None:
    dataset = manifest(store, made.make_dataset(tmp_path / "dataset", store))
    (tmp_path / "out").mkdir()
    arguments = ["split", "--store", store.uri, "--dataset", dataset, "--previous", nothing(store)]
    for _ in range(2):
        done = by_hand(*arguments, "--splits", tmp_path / "out")
        assert done.returncode == 0, done.stderr
    kept = step("split", store, {"dataset": dataset, "previous": nothing(store)}).outputs["splits"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == contents(store.uri, kept)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["splitt"], 2, "splitt: There is no stage 'splitt'. Did you mean 'split'?"),
        (["split"], 2, "the following arguments are required: --store, --dataset, --previous, --splits"),
        (["split", "--sed=3"], 2, "required"),
        (["split", "--seed=x"], 2, "argument --seed: 'x' is not int in JSON"),
        (["split", "--seed=2.5"], 2, "split: seed is 2.5; it must be a whole number"),
        (["split", "--test-fraction=0.9"], 2, "split: test_fraction is 0.9; it must be from 0.05 to 0.5"),
        (["split", "--dataset=/nowhere"], 1, "split: There is no /nowhere. Pass a manifest"),
        (["split", "--store="], 2, "split: The store's address is empty"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_a_status(
    arguments: list[str], status: int, sentence: str, store: Store, tmp_path: Path
) -> None:
    given: list[object] = [*arguments]
    if sentence.startswith("split: "):
        dataset = made.make_dataset(tmp_path / "dataset", store)
        rest = {"store": store.uri, "dataset": dataset, "previous": nothing(store), "splits": tmp_path / "out"}
        given += [f"--{name}={value}" for name, value in rest.items() if not arguments[1].startswith(f"--{name}=")]
    done = by_hand(*given)
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_traceback_is_there_for_those_who_ask(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOOP_TRACEBACK", "1")
    done = by_hand("splitt")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
