"""Names become hashes under a key whose id, and nothing else of it, may be known."""

from __future__ import annotations

import pytest

from components.shared import keys


def test_a_name_has_one_hash_a_key_and_kind() -> None:
    key, other = keys.parse("ab" * 32), keys.parse("cd" * 32)
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
    assert keys.parse("ab" * 32).hash("image", b"caf\xe9.png".decode("utf-8", "surrogateescape"))


def test_the_id_does_not_tell_the_key() -> None:
    key = keys.parse("ab" * 32)
    assert len(key.id) == 16
    assert key.id not in key.secret.hex()
    assert keys.parse("ac" * 32).id != key.id


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, "ab" * 33])
def test_what_is_no_key_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match=f"must be 64 hexadecimal digits, not {len(text)} characters") as refused:
        keys.parse(text)
    assert len(text) < 3 or text not in str(refused.value)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.VARIABLE, "ab" * 32 + "\n")
    assert keys.from_environment() == keys.parse("ab" * 32)
    monkeypatch.delenv(keys.VARIABLE)
    with pytest.raises(RuntimeError, match="MEDLOOP_HASH_KEY is not set"):
        keys.from_environment()
