"""Resolve reads once what can change from outside, and recognises a run that asks the same again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.ledger import release_log, signing
from components.shared.privacy import keyed_hash
from components.shared.runtime.work import Result
from components.shared.storage import image_source
from components.shared.storage.artifacts import gather
from components.shared.storage.store import Store, open_store
from tests import made
from tests.components.shared.images import encoded, gray
from tests.components.shared.signers import Pair, use
from tests.components.shared.steps import laid_out, step

KEY = keyed_hash.parse(keyed_hash.SYNTHETIC)
OPTIONS = ("ingest", "split", "train", "evaluate", "quantize")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for name in ("A/one.png", "B/two.png"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(gray()))
    return tmp_path / "scans"


def resolve(store: Store, scans: Path, asked: dict[str, Any] | None = None, **options: Any) -> Result:
    given = {f"{stage}_options": {} for stage in OPTIONS} | options
    return step("resolve", store, {}, source=str(scans), asked=asked or {"epochs": 3}, **given)


def state(store: Store, done: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.get(done.outputs["state"].files["resolved.json"].digest))
    return found


def release(store: Store, done: Result, what: str, tmp_path: Path, **fields: Any) -> release_log.Entry:
    """The entry that the run which resolved this would write."""
    model = gather(store, made.make_bundle(tmp_path / f"bundle{len(release_log.read_log(store))}")).digest
    resolved = state(store, done)
    kept = {name: resolved[name] for name in ("request", "seen", "key_id", "revision")}
    fields["decision"] = decided(store, tmp_path / f"decision{len(release_log.read_log(store))}")
    return release_log.append(store, release_log.read_log(store), what, model=model, run="run-1", **kept, **fields)


def decided(store: Store, folder: Path) -> str:
    """A decision that some work gave, its record in the store."""
    folder.mkdir()
    (folder / "decision.json").write_text(folder.name)
    digest = gather(store, folder).digest
    result = {"stage": "gate", "inputs": {}, "outputs": {"decision": digest}, "values": {}, "seconds": 0.1}
    store.write(f"work/{folder.name}/result.json", contracts.encode("result", result))
    store.write(f"refs/{digest}.json", contracts.encode("ref", {"key": folder.name, "stage": "gate"}))
    return digest


def test_a_run_whose_work_is_lost_is_judged_anew(store: Store, scans: Path, tmp_path: Path) -> None:
    entry = release(store, resolve(store, scans), "release", tmp_path, version="v1")
    assert state(store, resolve(store, scans))["repeats"] == "run-1"
    store.delete("work/decision0/result.json")
    again = state(store, resolve(store, scans))
    assert again["repeats"] == ""
    assert again["seen"]["champion"] == entry.record["model"]


def test_a_new_loop_has_no_past(store: Store, scans: Path) -> None:
    done = resolve(store, scans)
    found = state(store, done)
    revision = image_source.revision(image_source.entries(str(scans)))
    values = {"revision": revision, "key_id": KEY.id, "weights_digest": "", "looks": 1, "spent": 0.0, "signer": ""}
    assert done.values == values
    assert (found["head"], found["repeats"], found["files"]) == ("", "", 2)
    assert found["seen"] == {"previous": "", "champion": "", "champion_version": ""}
    assert done.outputs["previous"].files == done.outputs["champion"].files == {}


def test_it_is_done_anew_each_time_and_keeps_no_work(store: Store, scans: Path) -> None:
    assert not resolve(store, scans).reused
    assert not resolve(store, scans).reused
    assert store.names("work") == []


def test_the_model_in_service_and_the_last_split_are_handed_on(store: Store, scans: Path, tmp_path: Path) -> None:
    dataset = made.make_dataset(tmp_path / "dataset", store, patients=6)
    split = gather(store, made.make_split(tmp_path / "split", dataset))
    entry = release(store, resolve(store, scans), "release", tmp_path, version="v1", split=split.digest)
    done = resolve(store, scans, {"epochs": 4})
    assert done.outputs["previous"] == split
    assert done.outputs["champion"].digest == entry.record["model"]
    assert state(store, done)["seen"]["champion_version"] == "v1"
    assert state(store, done)["head"] == entry.hash


@pytest.mark.parametrize("how", ["removed", "damaged", "manifest removed"])
def test_a_model_in_service_that_the_store_has_lost_is_named(
    how: str, store: Store, scans: Path, tmp_path: Path
) -> None:
    """The run goes on: it is for the gate to say what that means. An object that is put back is used again."""
    entry = made.release_bundle(store, made.make_bundle(tmp_path / "bundle"))
    whole = resolve(store, scans).outputs["champion"]
    digest = entry.record["model"] if how == "manifest removed" else whole.files["models/model.onnx"].digest
    place = tmp_path / "store" / "objects" / digest[:2] / digest
    sound = place.read_bytes()
    place.chmod(0o644)
    place.write_bytes(sound[:-1]) if how == "damaged" else place.unlink()
    again = open_store(store.uri)
    done = resolve(again, scans)
    lost = contracts.decode("lost", again.get(done.outputs["champion"].files["lost.json"].digest), "lost.json")
    assert set(done.outputs["champion"].files) == {"lost.json"}
    assert lost["model"] == entry.record["model"] == state(again, done)["seen"]["champion"]
    assert digest[:12] in lost["why"]
    place.write_bytes(sound)
    assert resolve(open_store(store.uri), scans).outputs["champion"] == whole


def test_a_refused_run_leaves_its_split_and_not_its_model(store: Store, scans: Path, tmp_path: Path) -> None:
    dataset = made.make_dataset(tmp_path / "dataset", store, patients=6)
    split = gather(store, made.make_split(tmp_path / "split", dataset))
    release(store, resolve(store, scans), "refusal", tmp_path, split=split.digest)
    done = resolve(store, scans, {"epochs": 4})
    assert done.outputs["previous"] == split
    assert done.outputs["champion"].files == {}


def test_a_run_that_asks_the_same_again_is_handed_what_was_seen_then(store: Store, scans: Path, tmp_path: Path) -> None:
    first = resolve(store, scans)
    split = gather(store, made.make_split(tmp_path / "s", made.make_dataset(tmp_path / "d", store, patients=6)))
    entry = release(store, first, "release", tmp_path, version="v1", split=split.digest)
    again = resolve(store, scans)
    assert (again.outputs["previous"], again.outputs["champion"]) == (
        first.outputs["previous"],
        first.outputs["champion"],
    )
    assert state(store, again)["repeats"] == "run-1"
    assert state(store, again)["seen"] == state(store, first)["seen"]
    assert state(store, again)["head"] == entry.hash


def test_numbers_that_a_pipeline_made_floats_ask_for_the_same(store: Store, scans: Path, tmp_path: Path) -> None:
    release(store, resolve(store, scans, {"epochs": 3}, train_options={"channels": 1}), "refusal", tmp_path, split="")
    again = resolve(store, scans, {"epochs": 3.0}, train_options={"channels": 1.0})
    assert state(store, again)["repeats"] == "run-1"


@pytest.mark.parametrize("what", ["parameter", "option", "source"])
def test_whatever_changes_makes_it_another_request(what: str, store: Store, scans: Path) -> None:
    first = state(store, resolve(store, scans))["request"]
    if what == "source":
        (scans / "A" / "new.png").write_bytes(b"x")
    asked = {"epochs": 4 if what == "parameter" else 3}
    options = {"policy": {"floors": {"auc": 0.5}}} if what == "option" else {}
    assert state(store, resolve(store, scans, asked, **options))["request"] != first


def test_another_key_than_the_stores_is_refused(
    store: Store, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(store, resolve(store, scans), "refusal", tmp_path)
    monkeypatch.setenv(keyed_hash.VARIABLE, "ab" * 32)
    with pytest.raises(ValueError, match=f"this store was made with key {KEY.id}.*every patient would seem new"):
        resolve(store, scans)


def test_no_key_is_refused(store: Store, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keyed_hash.VARIABLE)
    with pytest.raises(RuntimeError, match="MEDLOOP_HASH_KEY is not set"):
        resolve(store, scans)


def test_no_such_source_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no source .*nowhere.*medloop synth"):
        resolve(store, tmp_path / "nowhere")


def test_a_source_without_images_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty" / "A").mkdir(parents=True)
    (tmp_path / "empty" / "patients.csv").write_text("file\n")
    with pytest.raises(ValueError, match=r"has no images: no file name ends in \.dcm"):
        resolve(store, tmp_path / "empty")


def test_a_broken_log_is_refused(store: Store, scans: Path, tmp_path: Path) -> None:
    for version in ("v1", "v2"):
        release(store, resolve(store, scans), "release", tmp_path, version=version)
    store.delete("releases/00000001.json")
    with pytest.raises(ValueError, match="The release log is broken"):
        resolve(store, scans)


def test_no_name_of_a_file_is_written_down(store: Store, scans: Path) -> None:
    (scans / "A" / "ZEBEDEE.png").write_bytes(b"x")
    done = resolve(store, scans)
    assert "files" in state(store, done)
    assert not any(b"ZEBEDEE" in path.read_bytes() for path in Path(store.uri).rglob("*") if path.is_file())


def test_other_weights_at_the_same_place_are_another_request(store: Store, scans: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    requests = set()
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        given: dict[str, Any] = {f"{stage}_options": {} for stage in OPTIONS}
        done = step("resolve", store, {}, source=str(scans), weights=str(weights), asked={}, **given)
        assert store.get(done.values["weights_digest"]) == content
        requests.add(state(store, done)["request"])
    assert len(requests) == 2


def look(store: Store, scans: Path, epochs: int) -> int:
    """The number of the look at the locked test that a run would have."""
    done = resolve(store, scans, {"epochs": epochs})
    assert state(store, done)["looks"] == done.values["looks"]
    return int(done.values["looks"])


def test_each_decision_is_a_look_at_the_locked_test(store: Store, scans: Path, tmp_path: Path) -> None:
    assert look(store, scans, 1) == 1
    for epochs, what in ((1, "refusal"), (2, "release"), (3, "awaiting")):
        fields = {"version": "v1"} if what == "release" else {}
        release(store, resolve(store, scans, {"epochs": epochs}), what, tmp_path, **fields)
        assert look(store, scans, 9) == epochs + 1
    release_log.append(store, release_log.read_log(store), "rotation", key_id=KEY.id)
    assert look(store, scans, 9) == 4


def test_what_the_looks_before_spent_is_summed(store: Store, scans: Path, tmp_path: Path) -> None:
    for epochs, spent in ((1, 0.002), (2, 0.01), (3, 0.03)):
        asked = resolve(store, scans, {"epochs": epochs})
        release(store, asked, "refusal", tmp_path, spent=spent)
    for epochs, before in ((1, 0.0), (2, 0.002), (3, 0.012), (4, 0.042)):
        done = resolve(store, scans, {"epochs": epochs})
        assert done.values["spent"] == state(store, done)["spent"] == pytest.approx(before)


def test_a_repeated_run_has_the_look_that_it_had(store: Store, scans: Path, tmp_path: Path) -> None:
    for epochs in (1, 2, 3):
        release(store, resolve(store, scans, {"epochs": epochs}), "refusal", tmp_path)
    assert [look(store, scans, epochs) for epochs in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_what_has_to_be_done_anew_is_a_look_of_its_own(store: Store, scans: Path, tmp_path: Path) -> None:
    """Else who removes the work, or changes the data and back, could try one request for ever."""
    release(store, resolve(store, scans, {"epochs": 1}), "refusal", tmp_path)
    release(store, resolve(store, scans, {"epochs": 2}), "refusal", tmp_path)
    assert look(store, scans, 1) == 1
    store.delete("work/decision0/result.json")
    assert look(store, scans, 1) == 3
    model = gather(store, made.make_bundle(tmp_path / "other", gain=9)).digest
    first = release_log.read_log(store)[0].record
    again = {name: first[name] for name in ("request", "seen", "key_id", "decision")}
    release_log.append(store, release_log.read_log(store), "refusal", model=model, **again)
    assert look(store, scans, 3) == 4  # it came out with another model
    split = store.put_bytes(Manifest().encode()).digest
    release_log.append(store, release_log.read_log(store), "refusal", split=split, **again, model=model)
    assert look(store, scans, 2) == 4  # and nothing is as it was for the one before


def test_a_release_that_a_person_approved_is_the_look_that_waited_for_it(
    store: Store, scans: Path, tmp_path: Path
) -> None:
    asked = resolve(store, scans, {"epochs": 1})
    release(store, asked, "awaiting", tmp_path)
    release(store, resolve(store, scans, {"epochs": 2}), "refusal", tmp_path)
    release(store, asked, "release", tmp_path, version="v1")
    assert look(store, scans, 3) == 3
    assert look(store, scans, 1) == 1  # the newest entry answers it: it is handed what it was handed
    assert look(store, scans, 2) == 3  # compared with another model in service now, which is another question


def test_a_policy_in_another_form_is_no_other_request(store: Store, scans: Path) -> None:
    requests = set()
    for looks in (12, 12.0, "12"):
        done = resolve(store, scans, policy={"budget": {"looks": looks}})
        requests.add(state(store, done)["request"])
    assert len(requests) == 1


def test_it_names_who_signs_and_signs_what_it_found(
    store: Store, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Pair()
    use(monkeypatch, ours, ours)
    done = resolve(store, scans)
    assert done.values["signer"] == ours.id
    trusted = signing.verifier()
    assert trusted
    path = laid_out(store, done, "state", tmp_path / "state") / "resolved.json"
    signing.check_file(trusted, path, "resolved", "What resolve found")
    assert ours.private not in path.read_text()


def test_a_log_that_its_run_could_not_go_on_with_stops_it_at_once(
    store: Store, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Pair()
    release(store, resolve(store, scans), "release", tmp_path, version="v1")
    use(monkeypatch, ours)
    with pytest.raises(RuntimeError, match="last of the release log's 1 entries has no signature"):
        resolve(store, scans)
    use(monkeypatch, None, ours)
    with pytest.raises(PermissionError, match="Entry 1 of the release log is not signed"):
        resolve(store, scans)
