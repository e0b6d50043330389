"""Names become hashes under a key whose id, and nothing else of it, may be known."""

from __future__ import annotations

import time

import pytest

from components.shared.privacy import keyed_hash


def test_a_name_has_one_hash_a_key_and_kind() -> None:
    key, other = keyed_hash.parse("ab" * 32), keyed_hash.parse("cd" * 32)
    hashes = [
        key.hash("patient", "p1"),
        key.hash("patient", "p2"),
        key.hash("image", "p1"),
        other.hash("patient", "p1"),
    ]
    assert len(set(hashes)) == 4
    assert key.hash("patient", "p1") == hashes[0]
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in hashes)


def test_a_file_name_that_is_no_unicode_has_a_hash_too() -> None:
    assert keyed_hash.parse("ab" * 32).hash("image", b"caf\xe9.png".decode("utf-8", "surrogateescape"))


def test_the_id_does_not_tell_the_key() -> None:
    key = keyed_hash.parse("ab" * 32)
    assert len(key.id) == 16
    assert key.id not in key.text
    assert keyed_hash.parse("ac" * 32).id != key.id


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "ab" * 33])
def test_what_is_no_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match=f"must be 64 hexadecimal digits, not {len(text)} characters") as refused:
        keyed_hash.parse(text)
    assert len(text) < 3 or text not in str(refused.value)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keyed_hash.VARIABLE, "ab" * 32 + "\n")
    assert keyed_hash.from_environment() == keyed_hash.parse("ab" * 32)
    monkeypatch.delenv(keyed_hash.VARIABLE)
    with pytest.raises(RuntimeError, match="MEDLOOP_HASH_KEY is not set"):
        keyed_hash.from_environment()


def test_a_key_does_not_show_itself() -> None:
    key = keyed_hash.parse("ab" * 32)
    assert "ab" * 8 not in repr(key)
    assert str(key.links[0]) not in repr(key)


def test_a_chain_carries_old_ids_on_without_the_names() -> None:
    first = keyed_hash.parse("ab" * 32)
    second = first.rotated()
    third = second.rotated()
    for kind in ("patient", "image"):
        old = first.hash(kind, "p1")
        assert second.rehash(kind, old, first) == second.hash(kind, "p1") != old
        assert third.rehash(kind, old, first) == third.hash(kind, "p1")
        assert third.rehash(kind, second.hash(kind, "p1"), second) == third.hash(kind, "p1")
    assert keyed_hash.parse(third.text) == third
    assert third.earlier_states() == [first, second, third]
    assert len({first.id, second.id, third.id}) == 3
    assert first.rotated() != second


def test_only_a_key_that_came_of_the_other_carries_its_ids_on() -> None:
    key, other = keyed_hash.parse("ab" * 32), keyed_hash.parse("cd" * 32).rotated()
    with pytest.raises(ValueError, match=f"{other.id} is not a rotation of the key {key.id}"):
        other.rehash("patient", key.hash("patient", "p1"), key)


@pytest.mark.parametrize("text", ["ab" * 32 + ":", ":" + "ab" * 32, "ab" * 32 + ":" + "zz" * 32, "ab " * 32])
def test_a_chain_with_a_bad_link_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="must be 64 hexadecimal digits") as refused:
        keyed_hash.parse(text)
    assert "ab" * 8 not in str(refused.value)


def test_a_frame_has_an_id_of_its_own() -> None:
    key = keyed_hash.parse("ab" * 32)
    assert key.image("a.dcm") == key.hash("image", "a.dcm")
    assert len({key.image("a.dcm"), key.image("a.dcm", 0), key.image("a.dcm", 1)}) == 3


@pytest.mark.slow
def test_many_names_are_hashed_in_no_time() -> None:
    key = keyed_hash.parse("ab" * 32)
    begun = time.process_time()
    for number in range(200_000):
        key.hash("image", f"NORMAL/person{number}.png")
    assert time.process_time() - begun < 2.5  # half a second where nothing else runs
