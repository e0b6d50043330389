"""The release log is a chain, and a broken chain is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.shared.contracts import digest
from components.shared.ledger import release_log
from components.shared.storage.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def write(store: Store, *events: str) -> list[release_log.Entry]:
    """Append events such as `release v1`, `promotion v1`, `rollback v1` or `refusal`."""
    for event in events:
        what, _, version = event.partition(" ")
        fields = {"version": version} if version else {}
        release_log.append(store, release_log.read_log(store), what, **fields, model=f"model of {version}")
    return release_log.read_log(store)


def entry_file(store: Store, number: int) -> Path:
    path = Path(store.uri) / "releases" / f"{number:08d}.json"
    if path.exists():
        path.chmod(0o644)
    return path


def test_an_empty_log_has_no_head_and_nothing_in_service(store: Store) -> None:
    log = release_log.read_log(store)
    assert log == []
    assert release_log.head(log) == ""
    assert release_log.in_service(log) is None
    assert release_log.versions(log) == {}


def test_each_entry_names_the_hash_of_the_one_before(store: Store) -> None:
    log = write(store, "release v1", "refusal", "release v2")
    assert [entry.number for entry in log] == [1, 2, 3]
    assert [entry.record["before"] for entry in log] == ["", log[0].hash, log[1].hash]
    assert release_log.head(log) == log[2].hash == digest(entry_file(store, 3).read_bytes())


def test_an_appended_entry_is_what_is_read_back(store: Store) -> None:
    appended = release_log.append(store, [], "release", version="v1", model="m")
    assert release_log.read_log(store) == [appended]
    assert (appended.kind, appended.version) == ("release", "v1")


def changed(store: Store) -> None:
    path = entry_file(store, 2)
    path.write_bytes(path.read_bytes().replace(b"model of v2", b"model of v9"))


def removed(store: Store) -> None:
    entry_file(store, 2).unlink()


def first_removed(store: Store) -> None:
    entry_file(store, 1).unlink()


def inserted(store: Store) -> None:
    record = json.loads(entry_file(store, 3).read_bytes())
    entry_file(store, 4).write_text(json.dumps({**record, "number": 4}))


def swapped(store: Store) -> None:
    two, three = (entry_file(store, number).read_bytes() for number in (2, 3))
    entry_file(store, 2).write_bytes(three)
    entry_file(store, 3).write_bytes(two)


def cut(store: Store) -> None:
    path = entry_file(store, 2)
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (changed, "broken at releases/00000003.json"),
        (removed, "broken at releases/00000003.json"),
        (first_removed, "broken at releases/00000002.json"),
        (inserted, "broken at releases/00000004.json"),
        (swapped, "broken at releases/00000002.json"),
        (cut, "releases/00000002.json is not a JSON release"),
    ],
)
def test_a_broken_chain_is_refused(store: Store, break_it: Callable[[Store], None], sentence: str) -> None:
    assert len(write(store, "release v1", "release v2", "release v3")) == 3
    break_it(store)
    with pytest.raises(ValueError, match=sentence):
        release_log.read_log(store)


@pytest.mark.parametrize(
    ("events", "stack"),
    [
        (["release v1"], ["v1"]),
        (["refusal"], []),
        (["release v1", "release v2"], ["v1", "v2"]),
        (["release v1", "release v2", "rollback v1"], ["v1"]),
        (["release v1", "release v2", "rollback v1", "release v3"], ["v1", "v3"]),
        (["release v1", "release v2", "promotion v1"], ["v1", "v2", "v1"]),
        (["release v1", "release v2", "promotion v1", "rollback v2"], ["v1", "v2"]),
        (["release v1", "release v2", "promotion v1", "rollback v2", "rollback v1"], ["v1"]),
        (["release v1", "refusal", "release v2", "refusal", "rollback v1"], ["v1"]),
    ],
)
def test_a_rollback_takes_back_what_came_last(store: Store, events: list[str], stack: list[str]) -> None:
    log = write(store, *events)
    assert [entry.version for entry in release_log.history(log)] == stack
    service = release_log.in_service(log)
    assert (service.version if service else "") == (stack[-1] if stack else "")


def test_versions_are_those_released_each_once(store: Store) -> None:
    log = write(store, "release v1", "release v2", "promotion v1", "refusal", "rollback v2")
    assert {version: entry.number for version, entry in release_log.versions(log).items()} == {"v1": 1, "v2": 2}


def test_the_second_writer_of_a_number_is_refused(store: Store) -> None:
    log = write(store, "release v1")
    release_log.append(store, log, "release", version="v2")
    with pytest.raises(FileExistsError):
        release_log.append(store, log, "release", version="v2 of another")
    assert [entry.version for entry in release_log.read_log(store)] == ["v1", "v2"]


def test_of_many_who_reach_for_a_number_one_gets_it(store: Store) -> None:
    def reach(name: str) -> bool:
        try:
            release_log.append(store, [], "release", version=name)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [name for name, got in zip("abcdefgh", pool.map(reach, "abcdefgh"), strict=True) if got]
    assert [entry.version for entry in release_log.read_log(store)] == won
    assert len(won) == 1
