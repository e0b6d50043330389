"""A signature holds for the very bytes, the kind and the key that it was made with, and for nothing else."""

from __future__ import annotations

import base64
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

from components.shared import contracts
from components.shared.ledger import signing
from components.shared.ledger.signing import VARIABLE, VERIFY
from tests.components.shared.signers import Pair, use

FORM = serialization.Encoding
PLAIN = serialization.NoEncryption()
# RFC 8032, 7.1, test 2: secret key, public key, message, signature
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def test_without_keys_nothing_is_signed_or_verified() -> None:
    assert signing.signer() is None
    assert signing.verifier() is None
    assert signing.sign("release", {"a": 1}) == {"a": 1}


def test_without_keys_cryptography_is_not_imported() -> None:
    script = (
        "import sys; from components.shared.ledger import release_log, signing\n"
        "from components.shared.storage.store import open_store\n"
        "signing.signer(); signing.verifier(); release_log.read_log(open_store('nowhere'))\n"
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_key_is_read_as_base64_and_as_pem_and_has_the_public_half_of_the_standard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(SECRET)
    pem = key.private_bytes(FORM.PEM, serialization.PrivateFormat.PKCS8, PLAIN).decode()
    for form in (text(SECRET), pem, f"\n{pem}\n"):
        monkeypatch.setenv(VARIABLE, form)
        ours = signing.signer()
        assert ours is not None
        assert ours.public == text(PUBLIC)
        assert ours.id == contracts.digest(PUBLIC)[:16]
        assert text(SECRET) not in repr(ours)


def test_what_was_signed_is_verified_by_another_implementation_of_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text(SECRET))
    ours = signing.signer()
    assert ours
    raw = base64.b64decode(ours.sign("decision", b"bytes"))
    ed25519.Ed25519PublicKey.from_public_bytes(PUBLIC).verify(raw, b"medloop:decision:bytes")


def test_public_keys_are_read_in_every_form_and_several_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Pair() for _ in range(3)]
    raw = base64.b64decode(pairs[2].public)
    key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
    pem = key.public_bytes(FORM.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    monkeypatch.setenv(VERIFY, f"{pairs[0].public},\n{pairs[1].public}\n{pem}")
    trusted = signing.verifier()
    assert trusted is not None
    assert set(trusted.keys) == {pair.id for pair in pairs}
    for pair in pairs:
        trusted.check("decision", b"x", pair.signer.sign("decision", b"x"), "It", pair.id)
        trusted.check("decision", b"x", pair.signer.sign("decision", b"x"), "It")


@pytest.mark.parametrize("wrong", ["short", text(b"x" * 31), text(b"x" * 33), "-----BEGIN PRIVATE KEY-----\nAA==\n"])
def test_a_key_that_is_none_is_refused_without_being_shown(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, wrong)
    with pytest.raises(ValueError, match=f"{VARIABLE} does not contain a private key") as told:
        signing.signer()
    assert wrong not in str(told.value)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv(VERIFY, wrong)
    with pytest.raises(ValueError, match=f"{VERIFY} contains an entry"):
        signing.verifier()


def test_a_key_of_another_kind_or_with_a_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = x25519.X25519PrivateKey.generate().private_bytes(FORM.PEM, serialization.PrivateFormat.PKCS8, PLAIN)
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        FORM.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )
    for pem in (other, locked):
        monkeypatch.setenv(VARIABLE, pem.decode())
        with pytest.raises(ValueError, match="must be Ed25519 as PEM without a password"):
            signing.signer()


@pytest.mark.parametrize("text", [" , ,", "\n", " "])
def test_verify_keys_that_hold_no_key_are_no_way_to_switch_verifying_off(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VERIFY, text)
    with pytest.raises(ValueError, match="is set but contains no key"):
        signing.verifier()


def test_who_signs_must_be_trusted_where_keys_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = Pair(), Pair()
    use(monkeypatch, ours, other)
    with pytest.raises(ValueError, match=f"holds the key {ours.id}, but {VERIFY} trusts {other.id}"):
        signing.signer()


def test_unsigned_foreign_and_changed_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = Pair(), Pair()
    use(monkeypatch, ours, ours)
    trusted = signing.verifier()
    assert trusted
    good = ours.signer.sign("decision", b"yes")
    trusted.check("decision", b"yes", good, "The decision", ours.id)
    foreign = other.signer.sign("decision", b"yes")
    for arguments, words in (
        (("decision", b"yes", "", "The decision"), "The decision is not signed"),
        (("decision", b"yes", foreign, "The decision", other.id), f"signed with the key {other.id}, but .* trusts"),
        (("decision", b"yes", foreign, "The decision", ours.id), "does not match its signature"),
        (("decision", b"yes", foreign, "The decision"), "does not match its signature"),
        (("decision", b"no", good, "The decision", ours.id), "does not match its signature"),
        (("approval", b"yes", good, "The approval", ours.id), "does not match its signature"),
        (("decision", b"yes", good[:-4], "The decision", ours.id), "does not match its signature"),
        (("decision", b"yes", "ü" * 88, "The decision", ours.id), "does not match its signature"),
    ):
        with pytest.raises(PermissionError, match=words):
            trusted.check(*arguments)


def test_a_signature_is_written_in_one_way_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last digit of base64 has bits that decode to nothing: changed there, it would still be the same signature."""
    ours = Pair()
    use(monkeypatch, ours, ours)
    trusted = signing.verifier()
    assert trusted
    good = ours.signer.sign("decision", b"yes")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    sibling = alphabet[alphabet.index(good[85]) ^ 1]
    changed = good[:85] + sibling + good[86:]
    assert base64.b64decode(changed) == base64.b64decode(good)
    for text in (changed, f"{good}\n", f" {good}"):
        with pytest.raises(PermissionError, match="does not match its signature"):
            trusted.check("decision", b"yes", text, "The decision", ours.id)


def test_no_byte_of_a_signed_record_or_file_can_be_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = Pair()
    use(monkeypatch, ours, ours)
    trusted = signing.verifier()
    assert trusted
    record = contracts.encode("release", signing.sign("release", {"number": 1, "sentence": "It is Dr. Ü’s."}))
    signing.check_record(trusted, "release", record, "The entry")
    path = tmp_path / "decision.json"
    contracts.write_record("decision", path, {"outcome": "approved"})
    signing.sign_file(path, "decision")
    signing.check_file(trusted, path, "decision", "The decision")
    draw = random.Random(1)
    for place in range(len(record)):
        changed = bytearray(record)
        changed[place] ^= draw.randrange(1, 256)
        with pytest.raises((PermissionError, ValueError)):
            signing.check_record(trusted, "release", bytes(changed), "The entry")
    for file in (path, path.with_suffix(".sig")):
        sound = file.read_bytes()
        for place in range(len(sound)):
            changed = bytearray(sound)
            changed[place] ^= draw.randrange(1, 256)
            file.write_bytes(changed)
            with pytest.raises((PermissionError, ValueError)):
                signing.check_file(trusted, path, "decision", "The decision")
        file.write_bytes(sound)
    path.with_suffix(".sig").unlink()
    with pytest.raises(PermissionError, match="The decision is not signed"):
        signing.check_file(trusted, path, "decision", "The decision")
