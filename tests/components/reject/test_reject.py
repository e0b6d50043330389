"""A refused model leaves an entry that says why, and what is in service stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.shared.ledger import release_log
from components.shared.runtime.notify import VARIABLE
from components.shared.runtime.work import Result
from components.shared.storage.store import Store, open_store
from tests import made
from tests.components.shared.decisions import SPLIT, decision, state
from tests.components.shared.servers import listening
from tests.components.shared.signers import Pair, use
from tests.components.shared.steps import step

MODEL = "e" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def reject(store: Store, folder: Path, outcome: str = "refused", request: str = "request-1") -> Result:
    inputs = {
        "decision": decision(folder / "decision", store, MODEL, outcome),
        "state": state(folder / "state", store, request=request),
    }
    return step("reject", store, inputs, run="run-1", by="someone")


def test_a_refusal_is_written_down_with_its_reason(store: Store, tmp_path: Path) -> None:
    done = reject(store, tmp_path)
    log = release_log.read_log(store)
    assert done.values == {"outcome": "refused", "version": "", "sentence": "It is refused. No model is in service."}
    assert [entry.kind for entry in log] == ["refusal"]
    entry = log[0].record
    assert (entry["model"], entry["split"], entry["sentence"]) == (MODEL, SPLIT, "It is refused.")
    assert (entry["run"], entry["by"], entry["request"]) == ("run-1", "someone", "request-1")


def test_what_is_in_service_stays(store: Store, tmp_path: Path) -> None:
    made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    done = reject(store, tmp_path)
    assert done.values == {"outcome": "refused", "version": "v1", "sentence": "It is refused. v1 stays in service."}
    service = release_log.in_service(release_log.read_log(store))
    assert service
    assert service.version == "v1"


def test_a_repetition_is_not_a_second_refusal(store: Store, tmp_path: Path) -> None:
    first = reject(store, tmp_path / "1")
    assert reject(store, tmp_path / "2").values == first.values
    assert len(release_log.read_log(store)) == 1
    reject(store, tmp_path / "3", request="request-2")
    assert len(release_log.read_log(store)) == 2


def test_a_repetition_that_came_out_otherwise_is_a_second_decision(store: Store, tmp_path: Path) -> None:
    """Its work was lost and done anew: what the log says must be what was decided last."""
    reject(store, tmp_path / "1", outcome="awaiting approval")
    reject(store, tmp_path / "2", outcome="refused")
    assert [entry.kind for entry in release_log.read_log(store)] == ["awaiting", "refusal"]


def test_an_approval_is_not_for_reject(store: Store, tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match="The decision is 'approved'; this stage records only 'refused' or 'awaiting approval'"
    ):
        reject(store, tmp_path, outcome="approved")
    assert release_log.read_log(store) == []


def test_those_who_wait_are_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (url, heard):
        monkeypatch.setenv(VARIABLE, url)
        reject(store, tmp_path)
    assert heard == [{"outcome": "refused", "run": "run-1", "sentence": "It is refused."}]


def test_a_model_that_waits_for_a_person_is_found_in_the_log_and_told(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as (url, heard):
        monkeypatch.setenv(VARIABLE, url)
        done = reject(store, tmp_path / "1", outcome="awaiting approval")
    assert done.values["outcome"] == "awaiting approval"
    assert done.values["sentence"] == "It is awaiting approval. No model is in service."
    log = release_log.read_log(store)
    assert [(entry.kind, entry.record["model"]) for entry in log] == [("awaiting", MODEL)]
    assert heard == [{"outcome": "awaiting approval", "run": "run-1", "sentence": "It is awaiting approval."}]
    assert release_log.in_service(log) is None
    assert reject(store, tmp_path / "2", outcome="awaiting approval").values == done.values
    assert len(release_log.read_log(store)) == 1


@pytest.mark.parametrize(("outcome", "then"), [("awaiting approval", "unchanged"), ("refused", "refused")])
def test_what_was_approved_meanwhile_does_not_wait_again(store: Store, tmp_path: Path, outcome: str, then: str) -> None:
    """A model in service that a stricter policy refuses is refused: that is worth an entry."""
    entry = made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    inputs = {
        "decision": decision(tmp_path / "decision", store, entry.record["model"], outcome),
        "state": state(tmp_path / "state", store),
    }
    done = step("reject", store, inputs, run="run-1", by="someone")
    assert (done.values["outcome"], done.values["version"]) == (then, "v1")
    assert len(release_log.read_log(store)) == (1 if then == "unchanged" else 2)


def test_a_refusal_is_signed_and_rests_on_a_signed_decision(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Pair()
    inputs = {"decision": decision(tmp_path / "d", store, MODEL, "refused"), "state": state(tmp_path / "s", store)}
    use(monkeypatch, ours, ours)
    with pytest.raises(PermissionError, match="The decision is not signed"):
        step("reject", store, inputs, run="run-1", by="someone")
    reject(store, tmp_path)
    assert release_log.read_log(store)[0].record["signer"] == ours.id
