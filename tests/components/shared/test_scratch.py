"""A store to try things on: reads what is there, writes elsewhere, over a directory and over S3."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.shared.contracts import digest
from components.shared.ledger import release_log
from components.shared.storage.scratch import VARIABLE
from components.shared.storage.store import Store, open_store
from tests.components.shared.servers import BUCKET, rclone


@pytest.fixture(params=["a directory", "S3"])
def under(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store as it is."""
    monkeypatch.setenv("MEDLOOP_CACHE", str(tmp_path / "cache"))
    if request.param == "a directory":
        yield open_store(str(tmp_path / "store"))
        return
    with rclone(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield open_store(f"s3://{BUCKET}/loop")


@pytest.fixture
def store(under: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The same store, tried on."""
    under.write("work/k/result.json", b"then")
    under.write("work/k/checkpoint", b"half")
    under.create("releases/00000001.json", b"first")
    under.put_bytes(b"content")
    before = contents(under)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "aside"))
    yield open_store(under.uri)
    monkeypatch.delenv(VARIABLE)
    assert contents(open_store(under.uri)) == before


def contents(store: Store) -> dict[str, str]:
    found = {name: store.read(name) for name in store.names("")}
    return {name: hashlib.sha256(data or b"").hexdigest() for name, data in found.items() if "partial/" not in name}


def test_what_is_there_is_read(store: Store) -> None:
    assert store.read("work/k/result.json") == b"then"
    assert store.get(digest(b"content")) == b"content"
    assert store.has(digest(b"content"))
    assert store.names("work/k") == ["work/k/checkpoint", "work/k/result.json"]
    assert store.read("work/none") is None


def test_what_is_written_goes_before_what_is_there(store: Store) -> None:
    store.write("work/k/result.json", b"now")
    store.write("work/new/result.json", b"new")
    assert store.read("work/k/result.json") == b"now"
    assert store.names("work") == ["work/k/checkpoint", "work/k/result.json", "work/new/result.json"]
    assert open_store(store.uri).read("work/new/result.json") == b"new"  # another process sees it, too


def test_what_is_deleted_is_gone_and_can_come_again(store: Store) -> None:
    store.delete("work/k/checkpoint")
    assert store.read("work/k/checkpoint") is None
    assert store.names("work/k") == ["work/k/result.json"]
    store.create("work/k/checkpoint", b"again")
    assert store.read("work/k/checkpoint") == b"again"
    assert store.names("work/k") == ["work/k/checkpoint", "work/k/result.json"]
    store.delete("work/k/checkpoint")
    store.delete("work/k/nothing")
    assert store.read("work/k/checkpoint") is None
    assert "work/k/checkpoint" not in store.names("")
    assert not any(name.startswith("gone/") for name in store.names(""))


def test_a_record_is_created_once_wherever_it_was_created(store: Store) -> None:
    with pytest.raises(FileExistsError):
        store.create("releases/00000001.json", b"second")
    store.create("releases/00000002.json", b"second")
    with pytest.raises(FileExistsError):
        store.create("releases/00000002.json", b"third")
    assert [store.read(name) for name in store.names("releases")] == [b"first", b"second"]
    assert store.creates_once()  # also over a server that overwrites: what is tried on is a directory


def test_objects_are_put_aside_once(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"of a file")
    blob = store.put_file(file)
    assert store.put_bytes(b"of a file") == blob
    assert store.get(blob.digest) == b"of a file"
    assert store.put_bytes(b"content").digest == digest(b"content")
    aside = [path.name for path in (tmp_path / "aside" / "written").rglob("*") if path.is_file()]
    assert blob.digest in aside
    assert digest(b"content") not in aside  # it is there already


def test_a_damaged_object_is_still_refused(under: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under.write(f"objects/{'ab' * 32}"[:10] + f"/{'ab' * 32}", b"something else")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "aside"))
    with pytest.raises(OSError, match="is damaged"):
        open_store(under.uri).get("ab" * 32)


def test_a_release_that_is_tried_on_is_no_release(
    under: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"version": "v1", "model": "a" * 64, "runtime": "onnxruntime", "precision": "float32", "run": "r"}
    monkeypatch.setenv(VARIABLE, str(tmp_path / "aside"))
    tried = open_store(under.uri)
    release_log.append(tried, [], "release", **fields)
    assert [entry.version for entry in release_log.read_log(tried)] == ["v1"]
    monkeypatch.delenv(VARIABLE)
    assert release_log.read_log(open_store(under.uri)) == []
