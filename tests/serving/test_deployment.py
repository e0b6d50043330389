"""What is in service: taken up while requests go on, kept when what comes next is not sound."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.inference import PRECISIONS
from components.shared.ledger import release_log
from components.shared.storage.store import Store, open_store
from serving import deployment as deployments
from serving.deployment import Deployment
from tests import made
from tests.components.shared.signers import Pair, use
from tests.serving.conftest import POLL, image, png, running, until

IMAGE = png(image())


def version(client: httpx.Client) -> Any:
    return client.get("/health").json()["model_version"]


def predict(client: httpx.Client) -> dict[str, Any]:
    reply = client.post("/predict", files={"file": ("x.png", IMAGE)})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def release(store: Store, folder: Path, gain: float = 12.0, **options: str) -> release_log.Entry:
    return made.release_bundle(store, made.make_bundle(folder, gain=gain), **options)


def object_of(store: Store, entry: release_log.Entry) -> Path:
    """The file in the store that holds the graph of a released model."""
    manifest = Manifest.decode(store.get(entry.record["model"]), "model")
    digest = manifest.files[PRECISIONS["float32"]].digest
    return Path(store.uri) / "objects" / digest[:2] / digest


def change(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.slow
def test_a_release_is_taken_up_while_requests_go_on_and_none_fails(store: Store, tmp_path: Path) -> None:
    release(store, tmp_path / "one")
    seen: list[tuple[str, float]] = []
    done = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=address, timeout=30) as own:
            while not done.is_set():
                found = predict(own)
                seen.append((found["model_version"], found["probabilities"]["PNEUMONIA"]))

    with running(store) as client:
        address = str(client.base_url)
        threads = [threading.Thread(target=keep_asking) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(seen) > 20)
        release(store, tmp_path / "two", gain=3.0)
        until(lambda: version(client) == "v2")
        after = len(seen)
        until(lambda: len(seen) > after + 20)
        done.set()
        for thread in threads:
            thread.join()
        info = client.get("/model/info").json()
    versions = [name for name, _ in seen]
    assert {"v1", "v2"} == set(versions)
    assert versions[0] == "v1"
    assert set(versions[-10:]) == {"v2"}
    assert len(set(seen)) == 2, "each version has its own answer, and none mixes two models"
    assert info["release"] == 2


@pytest.mark.slow
def test_a_rollback_and_a_promotion(store: Store, tmp_path: Path) -> None:
    first = release(store, tmp_path / "one")
    with running(store) as client:
        before = predict(client)["probabilities"]
        release(store, tmp_path / "two", gain=3.0)
        until(lambda: version(client) == "v2")
        release_log.append(store, release_log.read_log(store), "rollback", why="test")
        until(lambda: version(client) == "v1")
        assert predict(client)["probabilities"] == before
        release_log.append(store, release_log.read_log(store), "refusal", why="test")
        fields = {key: first.record[key] for key in ("version", "model", "runtime", "precision", "run")}
        release_log.append(store, release_log.read_log(store), "promotion", **fields)
        until(lambda: client.get("/model/info").json()["release"] == 5)
        assert version(client) == "v1"


@pytest.mark.slow
def test_the_last_release_taken_back_leaves_no_model(store: Store, tmp_path: Path) -> None:
    release(store, tmp_path / "one")
    with running(store) as client:
        release_log.append(store, release_log.read_log(store), "rollback", why="test")
        until(lambda: client.get("/health").status_code == 503)
        assert "rolled back" in client.get("/health").json()["detail"]


@pytest.mark.slow
def test_the_first_release_is_taken_up_by_a_service_that_waits_for_it(store: Store, tmp_path: Path) -> None:
    with running(store) as client:
        assert client.get("/health").status_code == 503
        release(store, tmp_path / "one")
        until(lambda: client.get("/health").status_code == 200)
        assert predict(client)["model_version"] == "v1"


@pytest.mark.slow
def test_a_damaged_model_keeps_the_one_in_service_until_it_is_mended(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release(store, tmp_path / "one")
    with running(store) as client, caplog.at_level(logging.INFO, "medloop"):
        bundle = made.make_bundle(tmp_path / "two", gain=3.0)
        sound = (bundle / PRECISIONS["float32"]).read_bytes()
        damaged = Path(store.uri) / "objects" / (name := contracts.digest(sound))[:2] / name
        store.put_bytes(sound)
        change(damaged, sound[:-7] + b"damaged")  # of the same size: one cut short is written anew
        made.release_bundle(store, bundle)
        until(lambda: "warning" in client.get("/health").json())
        health = client.get("/health")
        assert health.status_code == 200
        assert health.json()["status"] == "healthy"
        assert health.json()["model_version"] == "v1"
        assert "Version v2 (entry 2 of the release log) cannot be loaded" in health.json()["warning"]
        assert health.json()["warning"].endswith("Version v1 stays in service.")
        assert predict(client)["model_version"] == "v1"
        assert "cannot be loaded" in client.get("/").text
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1, "said once, though it is tried again and again"
        change(damaged, sound)
        until(lambda: version(client) == "v2")
        assert "warning" not in client.get("/health").json()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"runtime": "openvino"}, "this service supports onnxruntime"),
        ({"precision": "int8"}, "This model has no int8 graph"),
        ({"model": "0" * 64}, "is not in"),
        ({"model": None}, "cannot be loaded"),
    ],
    ids=["runtime", "precision", "gone", "no digest"],
)
def test_an_entry_that_cannot_be_served_keeps_the_one_in_service(
    store: Store, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    first = release(store, tmp_path / "one")
    known = {key: first.record[key] for key in ("model", "runtime", "precision")}
    with running(store) as client:
        release_log.append(store, release_log.read_log(store), "release", **{**known, "version": "v2", **fields})
        until(lambda: "warning" in client.get("/health").json())
        assert words in client.get("/health").json()["warning"]
        assert predict(client)["model_version"] == "v1"
        release(store, tmp_path / "three", gain=3.0)
        until(lambda: version(client) == "v3")


def test_a_graph_that_is_no_model_is_not_taken_up(store: Store, tmp_path: Path) -> None:
    bundle = made.make_bundle(tmp_path / "one")
    (bundle / PRECISIONS["float32"]).write_bytes(b"not a graph")
    made.release_bundle(store, bundle)
    with running(store) as client:
        health = client.get("/health")
    assert health.status_code == 503
    assert "Version v1 (entry 1 of the release log) cannot be loaded" in health.json()["detail"]


def entry_file(store: Store, number: int) -> Path:
    return Path(store.uri) / release_log.FOLDER / f"{number:08d}.json"


@pytest.mark.slow
def test_a_broken_log_keeps_the_model_and_is_told(store: Store, tmp_path: Path) -> None:
    release(store, tmp_path / "one")
    with running(store) as client:
        forged = {"number": 2, "before": "f" * 64, "what": "release", "at": "now", "version": "v9"}
        store.create("releases/00000002.json", contracts.encode("release", forged))
        until(lambda: "warning" in client.get("/health").json())
        assert "The release log is broken at releases/00000002.json" in client.get("/health").json()["warning"]
        assert predict(client)["model_version"] == "v1"
        store.delete("releases/00000002.json")
        until(lambda: "warning" not in client.get("/health").json())


def test_a_log_that_lost_or_changed_an_entry_keeps_the_model(store: Store, tmp_path: Path) -> None:
    release(store, tmp_path / "one")
    release(store, tmp_path / "two", gain=3.0)
    with running(store) as client:
        assert version(client) == "v2"
        last = entry_file(store, 2).read_bytes()
        store.delete("releases/00000002.json")
        until(lambda: "warning" in client.get("/health").json())
        assert "Entry 2 of the release log was removed or changed" in client.get("/health").json()["warning"]
        assert version(client) == "v2"
        store.create("releases/00000002.json", last)
        until(lambda: "warning" not in client.get("/health").json())


def test_a_log_that_takes_back_more_than_was_released(store: Store) -> None:
    release_log.append(store, [], "rollback", why="test")
    with running(store) as client:
        assert "more rollbacks than releases" in client.get("/health").json()["detail"]


def test_nothing_is_read_while_the_log_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    release(store, tmp_path / "one")
    with Deployment(store, POLL) as deployment:
        first = deployment.state
        change(entry_file(store, 1), b"no longer a record: reading it again would be a problem to tell")
        time.sleep(6 * POLL)
        assert deployment.state is first
    assert first.serving is not None


def test_the_same_model_under_a_new_entry_is_not_loaded_again(store: Store, tmp_path: Path) -> None:
    first = release(store, tmp_path / "one")
    with Deployment(store, POLL) as deployment:
        loaded = deployment.state.serving
        object_of(store, first).unlink()
        fields = {key: first.record[key] for key in ("version", "model", "runtime", "precision")}
        second = release_log.append(store, release_log.read_log(store), "promotion", **fields)
        until(lambda: deployment.state.serving is not loaded)
        serving = deployment.state.serving
    assert loaded
    assert serving
    assert serving.entry == second
    assert serving.model is loaded.model


def test_start_waits_no_longer_once_hurried(store: Store) -> None:
    deployment = Deployment(store, POLL)
    deployment.hurry()
    with deployment:
        assert deployment.state.problem in (deployments.STARTING, deployments.NOTHING_RELEASED)


@pytest.mark.slow
def test_a_log_under_trusted_signatures_is_taken_up_and_one_that_is_forged_is_not(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Pair()
    use(monkeypatch, ours, ours)
    first = release(store, tmp_path / "one")
    with running(store) as client, caplog.at_level(logging.INFO, "medloop"):
        assert client.get("/health").json()["signatures"] == "verified"
        forged = {**first.record, "number": 2, "before": first.hash, "version": "v2"}
        store.create("releases/00000002.json", contracts.encode("release", forged))
        until(lambda: client.get("/health").json()["signatures"] == "refused")
        health = client.get("/health")
        assert health.status_code == 200
        assert "Entry 2 of the release log does not match its signature" in health.json()["warning"]
        assert health.json()["warning"].endswith("Version v1 stays in service.")
        assert predict(client)["model_version"] == "v1"
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
        store.delete("releases/00000002.json")
        release(store, tmp_path / "two", gain=3.0)
        until(lambda: version(client) == "v2")
        assert client.get("/health").json()["signatures"] == "verified"
        assert "warning" not in client.get("/health").json()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["changed", "removed", "a FIFO"])
def test_a_broken_chain_is_refused_in_a_running_and_in_a_fresh_service_alike(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    ours = Pair()
    use(monkeypatch, ours, ours)
    for number, gain in ((1, 12.0), (2, 3.0), (3, 5.0)):
        release(store, tmp_path / str(number), gain=gain)
    sound = entry_file(store, 2).read_bytes()
    with running(store) as client:
        assert client.get("/health").json()["signatures"] == "verified"
        release(store, tmp_path / "4", gain=7.0)
        until(lambda: version(client) == "v4")
        if damage == "changed":
            change(entry_file(store, 2), sound.replace(b'"version": "v2"', b'"version": "v7"'))
        else:
            entry_file(store, 2).unlink()
        if damage == "a FIFO":
            os.mkfifo(entry_file(store, 2))
        release_after(store, tmp_path / "5", sound)
        until(lambda: client.get("/health").json()["signatures"] == "refused")
        assert client.get("/health").status_code == 200
        assert predict(client)["model_version"] == "v4"
    with running(store) as fresh:
        health = fresh.get("/health")
        assert (health.status_code, health.json()["signatures"]) == (503, "refused")
        assert "The release log is broken" in health.json()["detail"]
    entry_file(store, 2).unlink(missing_ok=True)
    store.create("releases/00000002.json", sound)
    with running(store) as mended:
        assert mended.get("/health").json()["signatures"] == "verified"


def release_after(store: Store, folder: Path, sound: bytes) -> None:
    """Add an entry behind one that is damaged."""
    where = open_store(str(folder.parent / "copy"))
    for number in (1, 2, 3, 4):
        data = sound if number == 2 else entry_file(store, number).read_bytes()
        where.write(f"releases/{number:08d}.json", data)
    log = release_log.read_log(where)
    entry = release_log.append(where, log, "seal", reason="a test", by="someone")
    store.create(f"releases/{entry.number:08d}.json", entry.data)


@pytest.mark.slow
def test_foreign_files_beside_the_log_stop_no_service(store: Store, tmp_path: Path) -> None:
    release(store, tmp_path / "one")
    for name in (".DS_Store", ".nfs01", "00000001.json~", "zzz"):
        entry_file(store, 1).with_name(name).write_text("not an entry")
    with running(store) as client:
        assert client.get("/health").json()["model_version"] == "v1"
        assert "warning" not in client.get("/health").json()
        release(store, tmp_path / "two", gain=3.0)
        until(lambda: version(client) == "v2")


@pytest.mark.slow
def test_damage_in_place_is_told_at_each_change_and_now_and_then(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = release(store, tmp_path / "one")
    graph = object_of(store, first)
    sound = graph.read_bytes()
    with running(store) as client, caplog.at_level(logging.INFO, "medloop"):
        change(graph, sound[:-7] + b"damaged")
        release_log.append(store, release_log.read_log(store), "seal", reason="a change of the log", by="someone")
        until(lambda: "warning" in client.get("/health").json())
        assert (
            "The stored files of version v1 have changed since it was loaded" in client.get("/health").json()["warning"]
        )
        assert predict(client)["model_version"] == "v1"
    monkeypatch.setattr(deployments, "RECHECK", POLL)
    change(graph, sound)
    caplog.clear()
    with running(store) as client, caplog.at_level(logging.INFO, "medloop"):
        assert "warning" not in client.get("/health").json()
        change(graph, sound[:-7] + b"damaged")
        until(lambda: "warning" in client.get("/health").json())
        assert predict(client)["model_version"] == "v1"
        time.sleep(6 * POLL)
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
        change(graph, sound)
        until(lambda: "warning" not in client.get("/health").json())
        change(entry_file(store, 1), b"no longer a record")
        until(lambda: "is not a JSON release" in client.get("/health").json().get("warning", ""))


@pytest.mark.slow
def test_a_service_that_begins_with_a_log_that_nobody_signed_serves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(store, tmp_path / "one")
    use(monkeypatch, None, Pair())
    with running(store) as client:
        health = client.get("/health")
        assert health.status_code == 503
        assert health.json()["signatures"] == "refused"
        assert "Entry 1 of the release log is not signed" in health.json()["detail"]
