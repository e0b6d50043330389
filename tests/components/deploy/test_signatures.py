"""Deploy fails closed where public keys are set: unsigned, foreign and changed things are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.ledger import release_log, signing
from components.shared.ledger.approvals import FOLDER
from components.shared.storage.artifacts import gather
from components.shared.storage.store import Store, open_store
from tests.components.deploy.test_deploy import WAITS, Candidate, approved
from tests.components.shared.signers import Pair, use
from tests.components.shared.steps import step


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def candidate(tmp_path: Path, store: Store) -> Candidate:
    return Candidate(tmp_path / "candidate", store)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Pair:
    made = Pair()
    use(monkeypatch, made, made)
    return made


def test_what_is_signed_goes_into_service(candidate: Candidate, store: Store, ours: Pair) -> None:
    assert candidate.deploy().values["version"] == "v1"
    assert release_log.read_log(store)[0].record["signer"] == ours.id


def test_what_was_made_without_a_key_is_refused(
    candidate: Candidate, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = candidate.inputs()
    ours = Pair()
    use(monkeypatch, ours, ours)
    with pytest.raises(PermissionError, match="The decision is not signed"):
        candidate.hand_in(*made)
    with pytest.raises(PermissionError, match="The state that resolve read is not signed"):
        candidate.hand_in(candidate.inputs()[0], made[1])
    assert release_log.read_log(store) == []


def test_the_decision_of_a_foreign_key_is_refused(
    candidate: Candidate, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = Pair(), Pair()
    use(monkeypatch, other)
    made = candidate.inputs()
    use(monkeypatch, ours, ours)
    with pytest.raises(PermissionError, match=f"The decision is signed with the key {other.id}"):
        candidate.hand_in(*made)
    assert release_log.read_log(store) == []


def test_the_decision_of_a_key_that_was_rotated_out_but_is_still_trusted_is_taken(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Pair(), Pair()
    use(monkeypatch, old)
    made = candidate.inputs()
    use(monkeypatch, new, old, new)
    assert candidate.hand_in(*made).values["version"] == "v1"


def other_outcome(folder: Path) -> None:
    path = folder / "decision.json"
    path.write_bytes(path.read_bytes().replace(b"It is approved.", b"It is splendid."))


def other_page(folder: Path) -> None:
    (folder / "page.html").write_text("<html>all is well</html>")


def one_more_file(folder: Path) -> None:
    (folder / "more.txt").write_text("more")


def no_signature(folder: Path) -> None:
    (folder / "decision.sig").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_outcome, "The decision does not match its signature"),
        (other_page, "page was changed after it was signed"),
        (one_more_file, "decision was changed: a file was added"),
        (no_signature, "The decision is not signed"),
    ],
)
def test_a_changed_decision_is_refused(
    candidate: Candidate, store: Store, ours: Pair, change: Callable[[Path], None], words: str
) -> None:
    decision, state = candidate.inputs()
    change(decision)
    with pytest.raises(PermissionError, match=words):
        candidate.hand_in(decision, state)
    assert release_log.read_log(store) == []


def test_a_signed_decision_about_another_model_does_not_serve_for_this_one(
    candidate: Candidate, store: Store, ours: Pair, tmp_path: Path
) -> None:
    decision, state = candidate.inputs()
    graph = candidate.bundle / "models" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(RuntimeError, match="The decision approves the model"):
        candidate.hand_in(decision, state)
    assert release_log.read_log(store) == []


def test_a_changed_object_of_the_model_is_refused(candidate: Candidate, store: Store) -> None:
    """Without keys, too: an object is named by what it holds."""
    decision, state = candidate.inputs()
    manifest = gather(store, candidate.bundle)
    path = store.fetch(manifest.files["models/model.onnx"].digest)
    handed = {name: gather(store, folder) for name, folder in (("decision", decision), ("state", state))}
    sound = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(sound[:-1] + b"\0\0")
    inputs = {name: store.fetch(made.digest) for name, made in handed.items()}
    with pytest.raises(OSError, match="does not match its digest"):
        step("deploy", store, {**inputs, "model": store.fetch(manifest.digest)}, run="run-1", by="someone")
    assert release_log.read_log(store) == []


def report_of(store: Store, decision: Path) -> Manifest:
    digest = contracts.read_record("decision", decision / "decision.json")["report"]
    return Manifest.decode(store.get(digest), "report")


def test_a_report_that_differs_or_is_gone_is_refused(candidate: Candidate, store: Store) -> None:
    decision, state = candidate.inputs()
    path = store.fetch(report_of(store, decision).files["metrics.json"].digest)
    sound = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(sound.replace(b"0.96", b"0.99"))
    with pytest.raises(OSError, match="does not match its digest"):
        candidate.hand_in(decision, state)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is not in"):
        candidate.hand_in(decision, state)
    assert release_log.read_log(store) == []


def test_a_report_about_another_model_is_refused(candidate: Candidate, store: Store, tmp_path: Path) -> None:
    other = Candidate(tmp_path / "other", store, gain=9)
    theirs = contracts.read_record("decision", other.inputs()[0] / "decision.json")["report"]
    decision, state = candidate.inputs()
    record = contracts.read_record("decision", decision / "decision.json")
    contracts.write_record("decision", decision / "decision.json", {**record, "report": theirs})
    with pytest.raises(RuntimeError, match="differs from the one it was made on, in: model"):
        candidate.hand_in(decision, state)
    assert release_log.read_log(store) == []


def test_a_forged_entry_in_the_log_stops_a_release(
    candidate: Candidate, store: Store, ours: Pair, tmp_path: Path
) -> None:
    candidate.deploy()
    path = Path(store.uri) / "releases" / "00000001.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"by": "someone"', b'"by": "another"'))
    second = Candidate(tmp_path / "second", store, gain=9)
    with pytest.raises(PermissionError, match="Entry 1 of the release log does not match its signature"):
        second.deploy()


def test_a_manifest_that_names_another_size_is_refused(
    candidate: Candidate, store: Store, ours: Pair, tmp_path: Path
) -> None:
    decision, state = candidate.inputs()
    manifest = gather(store, decision)
    handed = tmp_path / "manifest"
    text = manifest.encode()
    handed.write_bytes(text.replace(b'"size": ', b'"size": 1'))
    inputs = {"decision": handed, "state": state, "model": candidate.bundle}
    with pytest.raises(FileNotFoundError, match="is not in"):
        step("deploy", store, inputs, run="run-1", by="someone")
    store.put_bytes(handed.read_bytes())  # put there by one who may write into the store
    with pytest.raises(PermissionError, match="decision was changed: a file was added"):
        step("deploy", store, inputs, run="run-1", by="someone")
    handed.write_bytes(text.replace(b"\n", b" "))
    with pytest.raises(ValueError, match="not a valid manifest"):
        step("deploy", store, inputs, run="run-1", by="someone")
    assert release_log.read_log(store) == []


def test_the_private_key_is_nowhere_in_the_store(candidate: Candidate, store: Store, ours: Pair) -> None:
    candidate.deploy()
    body = "".join(ours.private.splitlines()[1:-1]).encode()
    shutil.copytree(store.uri, f"{store.uri}-copy")
    assert [p for p in Path(f"{store.uri}-copy").rglob("*") if p.is_file() and body in p.read_bytes()] == []


def test_an_approval_counts_only_by_a_trusted_signature(
    candidate: Candidate, store: Store, ours: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write into the store cannot approve: not unsigned, not by another key, not by changing a word."""
    digest = approved(candidate)
    (name,) = store.names(f"{FOLDER}/{digest}")
    sound = store.read(name) or b""
    record = contracts.decode("approval", sound, name)
    said = {key: value for key, value in record.items() if key not in ("signer", "signature")}
    other = Pair()
    use(monkeypatch, other)
    foreign = contracts.encode("approval", signing.sign("approval", said))
    use(monkeypatch, ours, ours)
    for changed, sentence in (
        (contracts.encode("approval", said), "not signed"),
        (sound.replace(b"Dr. B", b"Dr. C"), "does not match its signature"),
        (foreign, f"signed with the key {other.id}"),
    ):
        store.delete(name)
        store.create(name, changed)
        with pytest.raises(PermissionError, match=f"The approval .* {sentence}"):
            candidate.deploy(WAITS)
    assert [entry.kind for entry in release_log.read_log(store)] == ["awaiting"]
    store.delete(name)
    store.create(name, sound)
    assert candidate.deploy(WAITS).values["outcome"] == "released"
