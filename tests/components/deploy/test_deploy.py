"""Deploy releases an approved model once, and refuses everything that is not exactly that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from components.shared import contracts
from components.shared.ledger import release_log
from components.shared.ledger.approvals import FOLDER, approve, newest
from components.shared.ledger.model_registry import project
from components.shared.runtime.notify import VARIABLE
from components.shared.runtime.work import Result
from components.shared.storage.artifacts import gather
from components.shared.storage.store import Store, open_store
from tests import made
from tests.components.shared.decisions import DATASET, SPLIT, decision, state
from tests.components.shared.servers import BUCKET, free_port, listening, rclone
from tests.components.shared.steps import step


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


class Candidate:
    """A model that was judged, and what deploy is handed with it."""

    def __init__(self, root: Path, store: Store, gain: float = 12.0) -> None:
        self.store, self.root, self.tries = store, root, 0
        self.bundle = made.make_bundle(root / "bundle", gain=gain)
        self.digest = gather(store, self.bundle).digest

    def deploy(self, verdict: dict[str, Any] | None = None, seen: dict[str, Any] | None = None) -> Result:
        """Deploy it; `verdict` and `seen` say where decision and state differ from what is right."""
        return self.hand_in(*self.inputs(verdict, seen))

    def inputs(self, verdict: dict[str, Any] | None = None, seen: dict[str, Any] | None = None) -> tuple[Path, Path]:
        """The directories of decision and state."""
        self.tries += 1
        service = release_log.in_service(release_log.read_log(self.store))
        champion = service.record["model"] if service else ""
        folders = self.root / f"decision{self.tries}", self.root / f"state{self.tries}"
        decision(folders[0], self.store, **{"model": self.digest, "champion": champion, **(verdict or {})})
        state(folders[1], self.store, **{"champion": champion, **(seen or {})})
        return folders

    def hand_in(self, decision: Path, state: Path) -> Result:
        """Deploy it with these."""
        inputs = {"decision": decision, "state": state, "model": self.bundle}
        return step("deploy", self.store, inputs, run="run-1", by="someone")


@pytest.fixture
def candidate(tmp_path: Path, store: Store) -> Candidate:
    return Candidate(tmp_path / "candidate", store)


def test_an_approved_model_goes_into_service(candidate: Candidate, store: Store) -> None:
    done = candidate.deploy()
    log = release_log.read_log(store)
    entry = log[0].record
    assert done.values == {"outcome": "released", "version": "v1", "sentence": "v1: It is approved."}
    assert [e.kind for e in log] == ["release"]
    assert (entry["model"], entry["dataset"], entry["split"]) == (candidate.digest, DATASET, SPLIT)
    assert (entry["policy"], entry["code"]) == ("9" * 64, "c" * 64)
    assert store.has(entry["report"])
    assert (entry["run"], entry["by"], entry["precision"], entry["runtime"]) == (
        "run-1",
        "someone",
        "float32",
        "onnxruntime",
    )
    assert (entry["key_id"], entry["request"], entry["revision"]) == ("key", "request-1", "revision")
    assert entry["decision"] == gather(store, candidate.root / "decision1").digest


def test_versions_count_on(candidate: Candidate, store: Store, tmp_path: Path) -> None:
    candidate.deploy()
    assert Candidate(tmp_path / "next", store, gain=9).deploy().values["version"] == "v2"
    assert [entry.version for entry in release_log.history(release_log.read_log(store))] == ["v1", "v2"]


def test_the_model_in_service_is_not_released_again(candidate: Candidate, store: Store) -> None:
    candidate.deploy()
    again = candidate.deploy()
    assert again.values["outcome"] == "unchanged"
    assert again.values["sentence"] == "This model is already in service, as v1."
    assert len(release_log.read_log(store)) == 1


def test_a_try_that_died_after_its_entry_finds_it_done(candidate: Candidate, store: Store) -> None:
    candidate.deploy()
    again = candidate.deploy(verdict={"champion": ""}, seen={"champion": "", "head": ""})
    assert again.values["version"] == "v1"
    assert len(release_log.read_log(store)) == 1


@pytest.mark.parametrize(
    ("verdict", "seen", "sentence"),
    [
        ({"outcome": "refused"}, {}, "The decision is 'refused', not 'approved'"),
        ({"outcome": "awaiting approval"}, {}, "awaits a person's approval, but there is none"),
        ({"outcome": ""}, {}, "not 'approved'"),
        ({"model": "f" * 64}, {}, "The decision approves the model ffffffffffff, but this model is"),
        ({"shipped": False}, {}, "is on the trained model, not on the graph to ship"),
        ({"champion": "f" * 64}, {}, "compares with another model than the one in service"),
        ({}, {"champion": "f" * 64}, "compares with another model than the one in service"),
        ({}, {"head": "f" * 64}, "The release log has changed since this run began"),
        ({"precision": "int8"}, {}, "This model has no int8 graph"),
    ],
)
def test_what_is_not_an_approval_of_this_model_here_and_now_is_refused(
    verdict: dict[str, Any], seen: dict[str, Any], sentence: str, candidate: Candidate, store: Store
) -> None:
    with pytest.raises((RuntimeError, ValueError), match=sentence):
        candidate.deploy(verdict, seen)
    assert release_log.read_log(store) == []


def test_an_entry_written_by_someone_else_meanwhile_stops_it(
    candidate: Candidate, store: Store, tmp_path: Path
) -> None:
    seen = state(tmp_path / "seen", store)
    other = Candidate(tmp_path / "other", store, gain=9)
    other.deploy()
    inputs = {
        "decision": decision(tmp_path / "decision", store, candidate.digest),
        "state": seen,
        "model": candidate.bundle,
    }
    with pytest.raises(RuntimeError, match="changed since this run began: entry 1 was written"):
        step("deploy", store, inputs, run="run-2")
    assert [entry.record["model"] for entry in release_log.read_log(store)] == [other.digest]


def test_a_model_that_was_not_compared_with_the_one_in_service_is_not_released(
    candidate: Candidate, store: Store, tmp_path: Path
) -> None:
    other = Candidate(tmp_path / "other", store, gain=9)
    other.deploy()
    log = release_log.read_log(store)
    seen = state(tmp_path / "seen", store, head=release_log.head(log), champion="")
    inputs = {
        "decision": decision(tmp_path / "decision", store, candidate.digest, champion=""),
        "state": seen,
        "model": candidate.bundle,
    }
    with pytest.raises(RuntimeError, match="The decision compares with no model, but the model in service is"):
        step("deploy", store, inputs, run="run-2")
    assert release_log.in_service(release_log.read_log(store)) == log[-1]


def test_a_model_that_a_person_took_back_is_not_released_again_by_a_run(
    candidate: Candidate, store: Store, tmp_path: Path
) -> None:
    candidate.deploy()
    bad = Candidate(tmp_path / "bad", store, gain=9)
    bad.deploy()
    log = release_log.read_log(store)
    fields = {name: log[0].record[name] for name in ("version", "model", "runtime", "precision")}
    release_log.append(store, log, "rollback", **fields, reason="misses pneumonia", by="Dr. B")
    again = bad.deploy()
    assert again.values["outcome"] == "withheld"
    assert "rolled back by Dr. B (misses pneumonia)" in again.values["sentence"]
    service = release_log.in_service(release_log.read_log(store))
    assert service is not None
    assert service.version == "v1"


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"kind": "decision", "schema": 99}'])
def test_a_damaged_decision_stops_it(damage: bytes, candidate: Candidate, store: Store, tmp_path: Path) -> None:
    (tmp_path / "decision").mkdir()
    (tmp_path / "decision" / "decision.json").write_bytes(damage)
    inputs = {"decision": tmp_path / "decision", "state": state(tmp_path / "s", store), "model": candidate.bundle}
    with pytest.raises(ValueError, match=r"decision\.json"):
        step("deploy", store, inputs, run="run-1")


def test_a_missing_decision_stops_it(candidate: Candidate, store: Store, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    inputs = {"decision": tmp_path / "nothing", "state": state(tmp_path / "s", store), "model": candidate.bundle}
    with pytest.raises(FileNotFoundError, match=r"decision\.json"):
        step("deploy", store, inputs, run="run-1")


def test_a_model_that_gives_no_numbers_is_not_released(store: Store, tmp_path: Path) -> None:
    candidate = Candidate(tmp_path / "candidate", store)
    path = candidate.bundle / "models" / "model.onnx"
    graph = onnx.load(str(path))
    weights = next(tensor for tensor in graph.graph.initializer if tensor.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * float("nan"), "weights"))
    path.write_bytes(graph.SerializeToString())
    candidate.digest = gather(store, candidate.bundle).digest
    with pytest.raises(RuntimeError, match="probabilities that are not finite"):
        candidate.deploy()
    assert release_log.read_log(store) == []


def test_a_store_that_does_not_create_once_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rclone(tmp_path / "rclone") as server:
        for name, value in {**server.environment, "MEDLOOP_CACHE": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        store = open_store(f"s3://{BUCKET}/loop")
        candidate = Candidate(tmp_path / "candidate", store)
        with pytest.raises(RuntimeError, match=r"the server .* at http://.*If-None-Match.*MinIO or AWS S3"):
            candidate.deploy()
        assert release_log.read_log(store) == []


def test_a_notification_is_posted(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (url, heard):
        monkeypatch.setenv(VARIABLE, url)
        done = candidate.deploy()
        candidate.deploy()
    assert heard == [
        {"outcome": "released", "version": "v1", "run": "run-1", "sentence": done.values["sentence"], "entry": 1}
    ]


def test_a_deaf_receiver_stops_no_release(candidate: Candidate, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{free_port()}/")
    assert candidate.deploy().values["version"] == "v1"
    assert len(release_log.read_log(store)) == 1


@pytest.mark.slow
def test_a_tracking_server_that_is_not_there_stops_no_release(
    candidate: Candidate, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/no/such/folder/mlflow.db")
    assert candidate.deploy().values["version"] == "v1"
    assert len(release_log.read_log(store)) == 1


def test_without_a_tracking_address_nothing_is_projected(store: Store) -> None:
    assert not project([], store.uri)


WAITS: dict[str, Any] = {"outcome": "awaiting approval"}


def approved(candidate: Candidate, days: int = 30, **changes: Any) -> str:
    """Approve what this candidate's next decision will be, with the record changed; gives the decision's digest."""
    service = release_log.in_service(release_log.read_log(candidate.store))
    champion = service.record["model"] if service else ""
    folder = decision(
        candidate.root / f"given{len(changes)}{days}", candidate.store, candidate.digest, champion=champion, **WAITS
    )
    digest = gather(candidate.store, folder).digest
    log = release_log.read_log(candidate.store)
    release_log.append(candidate.store, log, "awaiting", model=candidate.digest, decision=digest)
    record = approve(candidate.store, digest, {"subject": {"model": candidate.digest}}, "Dr. B", "Read them.", days)
    if changes:
        (name,) = candidate.store.names(f"{FOLDER}/{digest}")
        candidate.store.delete(name)
        candidate.store.create(name, contracts.encode("approval", {**record, **changes}))
    return digest


def test_foreign_files_beside_an_approval_do_not_count(candidate: Candidate, store: Store) -> None:
    digest = approved(candidate)
    folder = Path(store.uri) / FOLDER / digest
    for name in (".DS_Store", "0001.json~", "zzz.json"):
        (folder / name).write_text("not an approval")
    second = approve(store, digest, {"subject": {"model": candidate.digest}}, "Dr. C", "Read more.", 30)
    assert newest(store, digest) == second
    assert (folder / "0002.json").is_file()
    os.mkfifo(folder / "0003.json")
    with pytest.raises(ValueError, match=r"0003\.json is a FIFO; it must be a file"):
        newest(store, digest)
    (folder / "0003.json").unlink()
    assert candidate.deploy(WAITS).values["outcome"] == "released"


def test_what_waited_goes_into_service_with_a_persons_approval(candidate: Candidate, store: Store) -> None:
    digest = approved(candidate)
    done = candidate.deploy(WAITS)
    assert done.values["outcome"] == "released"
    entry = release_log.read_log(store)[1].record
    assert entry["decision"] == digest
    assert (entry["approval"]["by"], entry["approval"]["reason"]) == ("Dr. B", "Read them.")
    assert entry["approval"]["decision"] == digest
    assert done.values["sentence"].startswith("v1: Approved by Dr. B (Read them): ")
    again = candidate.deploy({**WAITS, "champion": ""}, seen={"champion": "", "head": ""})
    assert again.values["outcome"] == "unchanged"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"until": "2020-01-01T00:00:00+00:00"}, r"The approval by Dr\. B expired at 2020-01-01"),
        ({"decision": "f" * 64}, r"The approval by Dr\. B is of the decision ffffffffffff"),
        ({"model": "f" * 64}, "on the model ffffffffffff, not of"),
        ({"by": " "}, "lacks by"),
        ({"reason": ""}, "lacks reason"),
        ({"until": ""}, "lacks until"),
        ({"until": "2999-01-01T00:00:00"}, "until is '2999-01-01T00:00:00'; it must be a time with a time zone"),
        ({"until": "soon"}, "until is 'soon'"),
        ({"at": 7}, "at is 7"),
        ({"at": "2998-01-01T00:00:00+00:00", "until": "2999-01-01T00:00:00+00:00"}, "must not begin in the future"),
        ({"schema": 99}, "schema 99"),
    ],
)
def test_an_approval_that_ended_or_is_another_ones_is_none(
    changes: dict[str, Any], sentence: str, candidate: Candidate, store: Store
) -> None:
    approved(candidate, **changes)
    with pytest.raises((RuntimeError, ValueError), match=sentence):
        candidate.deploy(WAITS)
    assert [entry.kind for entry in release_log.read_log(store)] == ["awaiting"]


def test_a_refused_decision_is_not_helped_by_an_approval(candidate: Candidate, store: Store) -> None:
    digest = approved(candidate)
    record = store.read(f"{FOLDER}/{digest}/0001.json") or b""
    refused = gather(store, decision(candidate.root / "refused", store, candidate.digest, "refused")).digest
    store.create(f"{FOLDER}/{refused}/0001.json", record)
    with pytest.raises(RuntimeError, match="The decision is 'refused', not 'approved'"):
        candidate.deploy({"outcome": "refused"})


def test_after_an_approval_ended_another_can_be_given(candidate: Candidate, store: Store) -> None:
    digest = approved(candidate, until="2020-01-01T00:00:00+00:00")
    approve(store, digest, {"subject": {"model": candidate.digest}}, "Dr. C", "Again.", 3)
    assert candidate.deploy(WAITS).values["outcome"] == "released"
    assert len(store.names(f"{FOLDER}/{digest}")) == 2


@pytest.mark.parametrize("what", ["refusal", "awaiting", "seal", "rotation", "promotion"])
def test_while_one_waits_others_may_be_refused_or_wait_and_nothing_else(
    what: str, candidate: Candidate, store: Store, tmp_path: Path
) -> None:
    service = made.release_bundle(store, made.make_bundle(tmp_path / "service", gain=9))
    approved(candidate)
    before = release_log.head(release_log.read_log(store))
    kept = {name: service.record[name] for name in ("version", "model", "runtime", "precision")}
    fields = {"promotion": kept, "rotation": {"key_id": "key"}}.get(what, {"model": "m"})
    release_log.append(store, release_log.read_log(store), what, **fields)
    if what in ("refusal", "awaiting", "seal"):
        assert candidate.deploy(WAITS, seen={"head": before}).values["outcome"] == "released"
        return
    with pytest.raises(RuntimeError, match="The release log has changed"):
        candidate.deploy(WAITS, seen={"head": before})


def test_an_approval_from_before_another_model_came_into_service_is_none(
    candidate: Candidate, store: Store, tmp_path: Path
) -> None:
    approved(candidate)
    Candidate(tmp_path / "other", store, gain=9).deploy()
    with pytest.raises(RuntimeError, match=r"has changed|in service"):
        candidate.deploy({**WAITS, "champion": ""}, seen={"champion": "", "head": ""})
    assert [entry.kind for entry in release_log.read_log(store)] == ["awaiting", "release"]


def test_what_is_approved_must_wait_by_the_log(candidate: Candidate, store: Store) -> None:
    """A run may break off between its two gates, and a model that waits may be refused under another policy."""
    log = release_log.read_log(store)
    digest = gather(store, decision(candidate.root / "given", store, candidate.digest, **WAITS)).digest
    approve(store, digest, {"subject": {"model": candidate.digest}}, "Dr. B", "Read them.", 30)
    with pytest.raises(RuntimeError, match=r"no entry in which the decision .* awaits approval: its run stopped"):
        candidate.deploy(WAITS)
    entry = release_log.append(store, log, "awaiting", model=candidate.digest, decision=digest)
    release_log.append(store, [entry], "refusal", model=candidate.digest)
    with pytest.raises(RuntimeError, match="or its model was refused later"):
        candidate.deploy(WAITS)
    assert release_log.in_service(release_log.read_log(store)) is None
