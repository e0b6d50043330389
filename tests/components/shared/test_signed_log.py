"""The release log with keys set: what is unsigned, changed or foreign is refused; a seal covers what came before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.shared.contracts import digest, encode
from components.shared.ledger import release_log
from components.shared.storage.store import Store, open_store
from tests.components.shared.signers import Pair, use


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def write(store: Store, *events: str) -> None:
    for event in events:
        what, _, version = event.partition(" ")
        fields = {"version": version, "model": f"model of {version}"} if version else {}
        release_log.append(store, release_log.read_chain(store), what, **fields)


def forge(store: Store, number: int, again: bool = True, **changes: str) -> None:
    """Change an entry, and make the chain whole again behind it, as one would who may write into the store."""
    before = ""
    for n, name in enumerate(store.names("releases"), 1):
        record = json.loads(store.read(name) or b"")
        if n == number:
            record |= changes
        if again:
            record["before"] = before
        data = encode("release", record)
        store.write(name, data)
        before = digest(data)


def test_every_entry_is_signed_and_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Pair()
    use(monkeypatch, ours, ours)
    write(store, "release v1", "refusal", "promotion v1", "rollback", "rotation")
    log = release_log.read_log(store)
    assert {entry.record["signer"] for entry in log} == {ours.id}
    assert all(len(entry.record["signature"]) == 88 for entry in log)
    use(monkeypatch, None)
    assert release_log.read_log(store) == log


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_changed_entry_is_refused_though_the_chain_was_made_whole(
    store: Store, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Pair()
    use(monkeypatch, ours, ours)
    write(store, "release v1", "release v2", "release v3")
    forge(store, number, model="another")
    use(monkeypatch, None)
    assert len(release_log.read_log(store)) == 3, "without public keys nobody can tell"
    use(monkeypatch, None, ours)
    with pytest.raises(PermissionError, match="of the release log does not match its signature"):
        release_log.read_log(store)


def test_an_entry_written_otherwise_but_meaning_the_same_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Pair()
    use(monkeypatch, ours, ours)
    write(store, "release v1")
    store.write("releases/00000001.json", (store.read("releases/00000001.json") or b"").replace(b"\n", b" "))
    with pytest.raises(PermissionError, match="not in its canonical form"):
        release_log.read_log(store)


def test_an_unsigned_log_is_refused_where_keys_are_verified(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Pair()
    write(store, "release v1", "refusal")
    use(monkeypatch, None, ours)
    with pytest.raises(PermissionError, match="Entry 2 of the release log is not signed"):
        release_log.read_log(store)


def test_the_log_of_a_foreign_key_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = Pair(), Pair()
    use(monkeypatch, other)
    write(store, "release v1")
    use(monkeypatch, None, ours)
    with pytest.raises(PermissionError, match=f"signed with the key {other.id}, but MEDLOOP_VERIFY_KEYS trusts"):
        release_log.read_log(store)


def test_entries_before_a_seal_are_covered_by_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Pair()
    write(store, "release v1", "refusal")
    use(monkeypatch, ours, ours)
    with pytest.raises(RuntimeError, match=r"2 entries has no signature.*medloop audit seal"):
        write(store, "release v2")
    write(store, "seal", "release v2")
    assert len(release_log.read_log(store)) == 4
    forge(store, 1, model="another")
    with pytest.raises(PermissionError, match="Entry 4 of the release log does not match its signature"):
        release_log.read_log(store)


def test_an_unsigned_entry_behind_a_seal_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Pair()
    use(monkeypatch, ours, ours)
    write(store, "seal")
    record = {
        "number": 2,
        "before": release_log.read_log(store)[0].hash,
        "what": "release",
        "at": "now",
        "version": "v9",
    }
    store.create("releases/00000002.json", encode("release", record))
    with pytest.raises(PermissionError, match="Entry 2 of the release log is not signed"):
        release_log.read_log(store)


def test_a_seal_without_a_trusted_signature_covers_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = Pair(), Pair()
    write(store, "release v1")
    use(monkeypatch, other)
    write(store, "seal")
    use(monkeypatch, None, ours)
    with pytest.raises(PermissionError, match=f"Entry 2 of the release log is signed with the key {other.id}"):
        release_log.read_log(store)


def test_keys_are_rotated_with_both_trusted_or_with_a_seal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Pair(), Pair()
    use(monkeypatch, old, old)
    write(store, "release v1")
    use(monkeypatch, new, old, new)
    write(store, "release v2")
    assert len(release_log.read_log(store)) == 2
    use(monkeypatch, new, new)
    with pytest.raises(PermissionError, match=f"Entry 1 of the release log is signed with the key {old.id}"):
        release_log.read_log(store)
    write(store, "seal")  # the new key's word for all that came before
    assert len(release_log.read_log(store)) == 3
    use(monkeypatch, old)  # whoever found the old key writes in vain
    write(store, "release v9")
    use(monkeypatch, None, new)
    with pytest.raises(PermissionError, match="Entry 4 of the release log"):
        release_log.read_log(store)


def test_an_entry_of_a_trusted_key_that_does_not_hold_is_refused_even_before_a_seal(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Pair()
    use(monkeypatch, ours)
    write(store, "release v1")
    forge(store, 1, model="another")
    write(store, "seal")
    use(monkeypatch, None, ours)
    with pytest.raises(PermissionError, match="Entry 1 of the release log does not match its signature"):
        release_log.read_log(store)


def test_no_entry_is_written_that_would_be_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Pair()
    use(monkeypatch, None, ours)
    with pytest.raises(RuntimeError, match="MEDLOOP_SIGNING_KEY is not set: an unsigned entry would make"):
        write(store, "release v1")
    use(monkeypatch, ours, ours)
    write(store, "release v1")
    use(monkeypatch, None)
    with pytest.raises(RuntimeError, match="an unsigned entry must not follow a signed one"):
        write(store, "release v2")
    with pytest.raises(RuntimeError, match="an unsigned entry must not follow a signed one"):
        release_log.check_writable(release_log.read_chain(store))
    assert len(release_log.read_chain(store)) == 1
