"""A step of an earlier run, done again here: equal, and without a trace in the store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.shared.contracts import Manifest, file_digest
from components.shared.runtime.step_log import steps
from medloop.runner.run import find
from tests.components.shared.steps import manifest, remove
from tests.e2e.loop import ROOT
from tests.images.built import require
from tests.made import make_dataset
from tests.medloop.by_hand import RUN, ByHand
from tests.medloop.test_cli import medloop

PURE = ("ingest", "merge", "split", "train", "evaluate", "gate", "quantize")


def listing(made: ByHand) -> dict[str, str]:
    """Every file of the store, and of the tracking database, with its digest."""
    root = Path(made.store.uri)
    files = [path for path in root.rglob("*") if path.is_file()]
    files += [made.home / "tracking.db"] if (made.home / "tracking.db").exists() else []
    return {str(path.relative_to(made.home)): file_digest(path) for path in files}


@pytest.mark.parametrize("stage", PURE)
def test_each_stage_gives_again_what_it_gave_and_changes_nothing(stage: str, finished: ByHand) -> None:
    before = listing(finished)
    told = json.loads(medloop(finished.home, "replay", RUN[:8], stage, "--json").stdout)
    assert told["status"] == 0
    if stage == "evaluate":  # its report says how long an image took
        again = file_digest(Path(told["folder"]) / "outputs" / "report" / "predictions.parquet")
        reports = [step["outputs"]["report"] for step in find(finished.store, RUN).stages if step["stage"] == stage]
        then = [Manifest.decode(finished.store.get(digest), "report") for digest in reports]
        assert again in [each.files["predictions.parquet"].digest for each in then]
    else:
        assert set(told["equal"].values()) == {True}
    assert listing(finished) == before
    assert [path for path in (Path(told["folder"]) / "outputs").rglob("*") if path.is_file()]


def test_what_reads_the_outside_is_done_again_on_the_outside_of_now(finished: ByHand) -> None:
    before = listing(finished)
    done = medloop(finished.home, "replay", RUN, "resolve")
    assert "previous   equal to the recorded output" in done.stdout  # the newest release answers the same request
    assert "state      NOT equal to the recorded output" in done.stdout  # its head is another by now
    assert "reads external state" in done.stdout
    assert listing(finished) == before


def test_deploying_again_writes_nothing_and_tells_nobody(finished: ByHand) -> None:
    before = listing(finished)
    done = medloop(finished.home, "replay", RUN, "deploy", MEDLOOP_NOTIFY_URL="http://127.0.0.1:9/never")
    assert "This model is already in service" in done.stdout
    assert listing(finished) == before


def test_a_deploy_that_came_to_nothing_can_be_studied_without_a_release(finished: ByHand, tmp_path: Path) -> None:
    """Its release goes aside: the store, its log and its tracking stay without one."""
    from components.shared.ledger import release_log

    shutil.copytree(finished.home / "store", tmp_path / "store")
    shutil.copy(finished.home / "tracking.db", tmp_path)
    made = ByHand(tmp_path)
    for path in (Path(made.store.uri) / "releases").glob("*"):
        path.unlink()
    assert release_log.read_log(made.store) == []
    before = listing(made)
    done = medloop(tmp_path, "replay", RUN, "deploy")
    assert '"outcome": "released"' in done.stdout
    assert listing(made) == before
    assert release_log.read_log(made.store) == []


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (("1999", "train"), "There is no run '1999'. The latest runs: " + RUN, 1),
        ((RUN, "tran"), "Did you mean 'train'?", 2),
        ((RUN, "reject"), "has no step 'reject'", 2),
        ((RUN, "gate", "--number", "3"), "--number is 3, and the run", 2),
        ((RUN, "gate", "--runner", "podman"), "--runner is 'podman'", 2),
    ],
)
def test_what_is_not_there_is_named(arguments: tuple[str, ...], words: str, status: int, finished: ByHand) -> None:
    assert words in medloop(finished.home, "replay", *arguments, status=status).stderr


def test_one_of_several_steps_is_chosen_by_its_number(finished: ByHand) -> None:
    first, last = [
        json.loads(medloop(finished.home, "replay", RUN, "gate", "--json", *number).stdout)["folder"]
        for number in (("--number", "1"), ())
    ]
    reports = [json.loads((Path(folder) / "inputs" / "report.json").read_text()) for folder in (first, last)]
    assert reports[0] != reports[1]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> ByHand:
    """A run that failed for what it was given, in a store of its own."""
    made = ByHand(tmp_path_factory.mktemp("failed"))
    few = manifest(made.store, make_dataset(made.home / "few", made.store, patients=4))
    with pytest.raises(ValueError, match="needs at least 3"):
        made.step("split", {"dataset": few, "previous": made.nothing()})
    return made


@pytest.mark.slow
def test_a_step_that_failed_fails_again_for_the_same_reason(failed: ByHand) -> None:
    before = listing(failed)
    done = medloop(failed.home, "replay", RUN, "split", status=1)
    assert done.stderr.count("needs at least 3") == 1
    assert "It failed in the run, too." in done.stderr
    assert "not tried again" not in done.stderr
    assert "Inputs:" in done.stderr
    told = json.loads(medloop(failed.home, "replay", RUN, "split", "--json", status=1).stdout)
    assert (told["status"], told["equal"]) == (1, {})
    assert listing(failed) == before


@pytest.mark.slow
def test_the_debugger_stops_at_the_line_that_fails(failed: ByHand) -> None:
    command = [sys.executable, "-m", "medloop.cli.main", "replay", RUN, "split", "--debug"]
    environment = {**os.environ, "MEDLOOP_HOME": str(failed.home)}
    done = subprocess.run(
        command, input="p 6 * 7\nup\nq\n", capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.stdout.count("components/split/assign.py") == 2  # where it failed, and who called
    assert "-> raise RefusedError(" in done.stdout
    assert "(Pdb) 42" in done.stdout
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The step split failed here." in done.stderr


def test_a_step_that_never_knew_its_inputs_cannot_be_done_again(finished: ByHand, tmp_path: Path) -> None:
    made = ByHand(tmp_path, "11111111-9dad-41d1-80b4-00c04fd430c8")
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    with pytest.raises(ValueError, match="dataset"):
        made.step("split", {"dataset": wrong, "previous": made.nothing()})
    done = medloop(tmp_path, "replay", "1111", "split", status=2)
    assert "failed before its inputs were known" in done.stderr


@pytest.mark.slow
def test_inputs_that_have_gone_are_named(failed: ByHand) -> None:
    (digest,) = {step["inputs"]["dataset"] for step in steps(failed.store, RUN)}
    kept = failed.store.get(digest)
    remove(failed.store, digest)
    try:
        done = medloop(failed.home, "replay", RUN, "split", status=1)
    finally:
        failed.store.put_bytes(kept)
    assert digest[:12] in done.stderr
    assert "is not in" in done.stderr


def test_in_a_container(finished: ByHand) -> None:
    require("gate")
    before = listing(finished)
    told = json.loads(medloop(finished.home, "replay", RUN, "gate", "--runner", "docker", "--json").stdout)
    assert set(told["equal"].values()) == {True}
    assert listing(finished) == before


def test_in_a_container_below_a_home_of_an_odd_name(finished: ByHand, tmp_path: Path) -> None:
    require("gate")
    home = tmp_path / "-a:b, 'ä\""
    done = medloop(home, "replay", RUN, "gate", "--runner", "docker", "--json", MEDLOOP_STORE=finished.store.uri)
    assert set(json.loads(done.stdout)["equal"].values()) == {True}


def test_a_machine_without_the_key_does_a_step_again_and_makes_no_key(finished: ByHand, tmp_path: Path) -> None:
    away = finished.scans.rename(finished.home / "away")  # as on a laptop: the scans are on the cluster
    try:
        done = medloop(tmp_path, "replay", RUN, "split", "--json", MEDLOOP_STORE=finished.store.uri)
        assert set(json.loads(done.stdout)["equal"].values()) == {True}
        assert not (tmp_path / "hash.key").exists()
        done = medloop(tmp_path, "replay", RUN, "ingest", status=1, MEDLOOP_STORE=finished.store.uri)
        assert "MEDLOOP_HASH_KEY is not set" in done.stderr
    finally:
        away.rename(finished.scans)


def test_without_an_engine_a_container_is_refused(finished: ByHand) -> None:
    arguments = ("replay", RUN, "gate", "--runner", "docker")
    done = medloop(finished.home, *arguments, status=1, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert "Docker does not respond" in done.stderr


def test_a_home_without_the_hash_key_gets_none_made_up(finished: ByHand, tmp_path: Path) -> None:
    """Another machine, with the store alone: what needs the key says so, and what does not is done."""
    mark = finished.scans / "synth.json"
    mark.rename(tmp_path / "aside")  # now they could be anybody's scans
    try:
        told = medloop(tmp_path / "empty", "replay", RUN, "gate", MEDLOOP_STORE=finished.store.uri).stdout
        refused = medloop(
            tmp_path / "empty", "replay", RUN, "ingest", status=1, MEDLOOP_STORE=finished.store.uri
        ).stderr
    finally:
        (tmp_path / "aside").rename(mark)
    assert "equal to the recorded output" in told
    assert "MEDLOOP_HASH_KEY is not set" in refused
    assert not (tmp_path / "empty" / "hash.key").exists()
