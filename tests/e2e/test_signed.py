"""The loop with keys set, as its users run it: all is signed and verified, and the private key is nowhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from components.shared.contracts import Manifest
from components.shared.ledger import signing
from components.shared.storage.store import open_store
from tests.components.shared.signers import Pair
from tests.e2e.leaks import unpacked
from tests.e2e.loop import Place, outputs


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Place:
    """A place where a first model was released with keys set."""
    place = Place(
        tmp_path_factory.mktemp("signed") / "home", {signing.VARIABLE: pair.private, signing.VERIFY: pair.public}
    )
    place.medloop("synth", str(place.scans), "--patients", "40")
    assert place.run()["outcome"] == "released"
    return place


def test_all_that_a_release_rests_on_is_signed(signed: Place, pair: Pair) -> None:
    (entry,) = signed.models()["log"]
    assert entry["signer"] == pair.id
    run = json.loads(signed.medloop("explain", "--json").stdout)
    assert run["decision"]["signer"] == pair.id
    store = open_store(str(signed.home / "store"))
    assert "decision.sig" in Manifest.decode(store.get(outputs(run, "gate")["decision"]), "decision").files
    found = json.loads(signed.medloop("audit", "verify", "--json").stdout)
    assert (found["entries"], found["signed"], found["problems"]) == (1, 1, [])


def test_the_same_run_again_finds_its_work_done(signed: Place) -> None:
    again = signed.run()
    assert "already in service" in again["sentence"]
    assert {step["state"] for step in again["stages"][1:-1]} == {"reused"}


def test_the_card_is_written_from_the_run(signed: Place) -> None:
    words = signed.medloop("models", "--card", "v1").stdout
    assert " images of 40 patients; " in words
    assert "| accuracy |" in words
    assert "| sex: F" in words
    assert "are not in the store" not in words


def test_the_private_key_is_in_no_file_of_the_home(signed: Place, pair: Pair) -> None:
    body = "".join(pair.private.splitlines()[1:-1]).encode().lower()
    files = [path for path in signed.home.rglob("*") if path.is_file()]
    assert len(files) > 50
    held = [path for path in files if any(body in layer.lower() for layer in unpacked(path.read_bytes()))]
    assert held == []


def test_who_has_no_key_changes_nothing_and_is_told_at_once(signed: Place, pair: Pair) -> None:
    public = {signing.VERIFY: pair.public}
    for extra, words in ((public, "MEDLOOP_VERIFY_KEYS requires signatures"), ({}, "The release log is signed")):
        without = replace(signed, extra=extra)
        run = without.run("--set", "epochs=3", status=1)
        assert run["failed_stage"] == "resolve"
        assert words in run["why"]
    assert len(signed.models()["log"]) == 1


def test_another_key_is_refused_before_anything_is_done(signed: Place, pair: Pair, tmp_path: Path) -> None:
    other = Pair()
    foreign = replace(signed, extra={signing.VARIABLE: other.private, signing.VERIFY: other.public})
    assert f"signed with the key {pair.id}" in foreign.run(status=1)["why"]
    assert f"signed with the key {pair.id}" in foreign.medloop("models", status=1).stderr
