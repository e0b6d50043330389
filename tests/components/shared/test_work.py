"""A step is done once for each distinct work, whatever happens in between."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from components.shared.contracts import decode, encode
from components.shared.runtime import events, step_log, work
from components.shared.storage import artifacts
from components.shared.storage.store import Store, open_store
from tests import made
from tests.components.shared.steps import contents, manifest, nothing, remove, step

A, B = "a" * 64, "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def inputs(store: Store, tmp_path: Path) -> dict[str, Path]:
    """What split takes: a real stage that is quick."""
    return {"dataset": made.make_dataset(tmp_path / "dataset", store), "previous": nothing(store)}


def stamp(store: Store, done: work.Result) -> tuple[int, bytes]:
    path = Path(store.uri) / "work" / done.key / "result.json"
    return path.stat().st_mtime_ns, path.read_bytes()


def test_the_key_changes_with_each_input_and_parameter_and_with_nothing_else() -> None:
    def key(*, dataset: str = A, previous: str = A, **parameters: Any) -> str:
        return work.prepare("split", {"dataset": dataset, "previous": previous}, parameters).key

    keys = [key(), key(dataset=B), key(previous=B), key(seed=8), key(test_fraction=0.3), key(val_fraction=0.2)]
    assert len(set(keys)) == len(keys)
    assert key() == key(seed=7, test_fraction=0.25, val_fraction=0.15)
    assert key(seed=7.0) == key(seed=7)
    swapped = work.prepare("split", {"previous": A, "dataset": B}, {}).key
    assert swapped == key(dataset=B)
    assert swapped != key(previous=B)


def test_stages_of_equal_inputs_and_parameters_have_keys_of_their_own() -> None:
    assert work.prepare("evaluate", {}, {}).key != work.prepare("gate", {}, {}).key


def test_a_step_is_done_once_and_then_reused(store: Store, inputs: dict[str, Path]) -> None:
    first = step("split", store, inputs)
    before = stamp(store, first)
    second = step("split", store, inputs)
    assert (first.reused, second.reused) == (False, True)
    assert (second.key, second.outputs, second.values) == (first.key, first.outputs, first.values)
    assert stamp(store, first) == before


def test_reuse_does_not_need_what_the_step_read(store: Store, inputs: dict[str, Path]) -> None:
    files = {"dataset": manifest(store, inputs["dataset"]), "previous": inputs["previous"]}
    first = step("split", store, files)
    for blob in json.loads(files["dataset"].read_bytes())["files"].values():
        remove(store, blob["digest"])
    assert step("split", store, files).outputs == first.outputs


def test_a_split_that_is_handed_itself_is_known_as_done(store: Store, inputs: dict[str, Path]) -> None:
    first = step("split", store, inputs)
    again = step("split", store, {**inputs, "previous": store.fetch(first.outputs["splits"].digest)})
    assert again.reused
    assert again.key != first.key
    assert (again.outputs, again.values) == (first.outputs, first.values)


def test_another_parameter_is_other_work(store: Store, inputs: dict[str, Path]) -> None:
    first, second = step("split", store, inputs, seed=1), step("split", store, inputs, seed=2)
    assert first.key != second.key
    assert not second.reused
    assert first.outputs != second.outputs


@pytest.mark.parametrize("lost", ["a file", "the manifest"])
def test_a_result_whose_objects_have_gone_is_made_again(lost: str, store: Store, inputs: dict[str, Path]) -> None:
    first = step("split", store, inputs)
    kept = contents(store.uri, first.outputs["splits"])
    splits = first.outputs["splits"]
    remove(store, splits.digest if lost == "the manifest" else splits.files["splits.parquet"].digest)
    again = step("split", open_store(store.uri), inputs)
    assert not again.reused
    assert contents(store.uri, again.outputs["splits"]) == kept


def test_bad_input_is_remembered_and_told_at_once(store: Store, tmp_path: Path) -> None:
    dataset = manifest(store, made.make_dataset(tmp_path / "few", store, patients=4))
    inputs = {"dataset": dataset, "previous": nothing(store)}
    with pytest.raises(ValueError, match="needs at least 3") as first:
        step("split", store, inputs)
    # Without its input the work could not even begin: what is said now was remembered.
    for blob in json.loads(dataset.read_bytes())["files"].values():
        remove(store, blob["digest"])
    with pytest.raises(ValueError, match="needs at least 3") as second:
        step("split", open_store(store.uri), inputs)
    assert str(second.value).startswith(str(first.value))
    assert "not retried until its inputs change" in str(second.value)


def test_what_may_pass_is_tried_again(store: Store, inputs: dict[str, Path]) -> None:
    dataset = manifest(store, inputs["dataset"])
    blob = json.loads(dataset.read_bytes())["files"]["index.parquet"]["digest"]
    kept = store.get(blob)
    remove(store, blob)
    files = {"dataset": dataset, "previous": inputs["previous"]}
    with pytest.raises(FileNotFoundError, match=blob[:12]):
        step("split", open_store(store.uri), files)
    assert not [name for name in store.names("work") if name.endswith("error.json")]
    store.put_bytes(kept)
    assert not step("split", open_store(store.uri), files).reused


def test_the_checkpoints_of_finished_work_are_removed(store: Store, inputs: dict[str, Path]) -> None:
    digests = {"dataset": artifacts.gather(store, inputs["dataset"]).digest, "previous": inputs["previous"].name}
    key = work.prepare("split", digests, {}).key
    kept = work.Work(key, store, {})
    kept.keep("checkpoint", b"half")
    kept.keep("checkpoint", b"more than half")
    assert work.Work(key, open_store(store.uri), {}).kept("checkpoint") == b"more than half"
    assert step("split", store, inputs).key == key
    assert store.names(f"work/{key}") == [f"work/{key}/result.json"]
    assert kept.kept("checkpoint") is None


def test_the_result_says_what_it_was_made_of(store: Store, inputs: dict[str, Path]) -> None:
    done = step("split", store, inputs, seed=3)
    record = decode("result", store.read(f"work/{done.key}/result.json") or b"", "result")
    assert record["stage"] == "split"
    assert record["parameters"] == {
        "seed": 3, "test_fraction": 0.25, "val_fraction": 0.15, "folds": 0, "fold": 0, "withdrawn": []
    }  # fmt: skip
    assert record["inputs"]["dataset"] == artifacts.gather(store, inputs["dataset"]).digest
    assert record["outputs"] == {"splits": done.outputs["splits"].digest}
    assert record["values"] == done.values


def test_what_the_work_took_over_all_its_tries_is_told_again_with_its_result(
    store: Store, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(step_log.VARIABLE, "run")
    first = step("split", store, inputs)
    assert first.spent == {}
    name = f"work/{first.key}/result.json"
    record = decode("result", store.read(name) or b"", name)
    store.write(name, encode("result", {**record, "spent": {"device_seconds": 7200.5}}))
    assert step("split", store, inputs).spent == {"device_seconds": 7200.5}
    made, reused = step_log.steps(store, "run")
    assert "spent" not in made
    assert reused["spent"] == {"device_seconds": 7200.5}


def test_a_wrong_parameter_is_refused_before_the_store_is_touched(store: Store, inputs: dict[str, Path]) -> None:
    files = {"dataset": manifest(store, inputs["dataset"]), "previous": inputs["previous"]}
    with pytest.raises(ValueError, match="Did you mean 'seed'"):
        step("split", store, files, sed=1)
    assert store.names("work") == []


def test_an_input_that_is_no_manifest_is_refused_by_its_name(store: Store, inputs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="dataset contains a 'dataset'; a 'manifest' is expected"):
        step("split", store, {**inputs, "dataset": inputs["dataset"] / "dataset.json"})


def test_a_directory_goes_through_the_store_as_it_is(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "file").write_bytes(b"content")
    (folder / "empty").write_bytes(b"")
    gathered = artifacts.gather(store, folder)
    artifacts.lay_out(store, gathered, tmp_path / "again")
    assert set(gathered.files) == {"deep/er/file", "empty"}
    assert (tmp_path / "again" / "deep" / "er" / "file").read_bytes() == b"content"
    assert artifacts.gather(store, tmp_path / "again") == gathered
    assert store.has(gathered.digest)


def record_of(message: str, **fields: Any) -> logging.LogRecord:
    record = logging.LogRecord("medloop", logging.INFO, "", 0, message, None, None)
    record.fields = fields
    return record


def test_events_are_json_lines_for_programs_and_sentences_for_people() -> None:
    progress = record_of("progress", stage="train", done=2, total=5, note="epochs")
    line = json.loads(events.JsonLines().format(progress))
    assert {name: line[name] for name in ("event", "stage", "done", "total", "note")} == {
        "event": "progress", "stage": "train", "done": 2, "total": 5, "note": "epochs",
    }  # fmt: skip
    assert events.Sentences().format(progress) == "train     2/5 epochs"
    finished = record_of("finished", stage="split", key=A, seconds=0.5, outputs={}, values={"train": 3})
    assert events.Sentences().format(finished) == "split     finished seconds=0.5 train=3"
