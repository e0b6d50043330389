"""Signatures: Ed25519 over what must not be changed by those who can write into the store.

The private key comes from the environment and is never written down; its public key, or the id that names it, may be
known to all. The package `cryptography` is imported only where a key is set.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.shared import contracts, environment
from components.shared.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

VARIABLE = "MEDLOOP_SIGNING_KEY"
"""The environment variable that holds the private key: PEM (PKCS8), or the base64 of its 32 bytes."""
VERIFY = "MEDLOOP_VERIFY_KEYS"
"""The environment variable that holds the trusted public keys: base64, with commas or spaces between, or PEM."""

_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL)


@dataclass(frozen=True)
class Signer:
    """Who signs: a private key, known by the id of its public one."""

    id: str
    public: str
    _key: Ed25519PrivateKey = field(repr=False)

    def sign(self, kind: str, data: bytes) -> str:
        """The signature over these bytes as a record of this kind, in base64."""
        return base64.b64encode(self._key.sign(_message(kind, data))).decode()

    def derived(self, purpose: str) -> bytes:
        """Return 32 secret bytes for a purpose; they follow from the private key and do not lead back to it."""
        from cryptography.hazmat.primitives import serialization

        form, no = serialization.Encoding.Raw, serialization.NoEncryption()
        private = self._key.private_bytes(form, serialization.PrivateFormat.Raw, no)
        return hmac.digest(private, f"medloop:{purpose}".encode(), "sha256")


@dataclass(frozen=True)
class Verifier:
    """Who is trusted: public keys, by their ids."""

    keys: dict[str, Ed25519PublicKey] = field(repr=False)

    def check(self, kind: str, data: bytes, signature: str, what: str, signer: str = "") -> None:
        """A PermissionError that says so, unless one of the keys has signed these bytes as a record of this kind.

        `signer` is the id that the signature claims: with it a foreign key is told apart from a changed content.
        """
        from cryptography.exceptions import InvalidSignature

        if not signature:
            raise PermissionError(
                f"{what} is not signed, and {VERIFY} asks for signatures. It was made without {VARIABLE}, or put there "
                "by somebody else: docs/audit.md says what to do."
            )
        if signer and signer not in self.keys:
            raise PermissionError(
                f"{what} is signed with the key {signer}, and {VERIFY} trusts {', '.join(self.keys)}. Add that public "
                "key if it is yours; if it is not, somebody else put this there."
            )
        raw = _exactly(signature)
        for key in [self.keys[signer]] if signer else self.keys.values():
            try:
                key.verify(raw, _message(kind, data))
                return
            except InvalidSignature:
                continue
        raise PermissionError(
            f"{what} is not what was signed: it was changed afterwards, or its signature was. Restore it from a copy, "
            "or make it again."
        )


def signer() -> Signer | None:
    """The one who signs here, or None where no private key is set; refuses one that the trusted keys leave out."""
    text = environment.get(VARIABLE).strip()
    if not text:
        return None
    found = of(_private(text))
    trusted = verifier()
    if trusted and found.id not in trusted.keys:
        raise UsageError(
            f"{VARIABLE} holds the key {found.id}, and {VERIFY} trusts {', '.join(trusted.keys)}: what is signed here "
            f"would be refused. Add the public key {found.public} to {VERIFY}."
        )
    return found


def verifier() -> Verifier | None:
    """Those who are trusted here, or None where no public key is set, and nothing is verified."""
    text = environment.get(VERIFY)
    if not text:
        return None  # blanks are a secret that went wrong, and no word that nothing is to be verified
    texts = [*_PEM.findall(text), *re.split(r"[,\s]+", _PEM.sub(" ", text))]
    keys = [_public(each) for each in texts if each]
    if not keys:
        raise UsageError(f"{VERIFY} is set and holds no key. Set it to public keys, or take it out of the environment.")
    return Verifier({key_id(_raw(key)): key for key in keys})


def trusting(signer: Signer) -> Verifier:
    """The one who trusts this signer alone."""
    return Verifier({signer.id: _public(signer.public)})


def trusting_public(public: str) -> Verifier:
    """Return the verifier that trusts this public key alone; PermissionError where it is none."""
    try:
        key = _public(public)
    except ValueError:
        raise PermissionError("A signature names a public key that is none: it was changed afterwards.") from None
    return Verifier({key_id(_raw(key)): key})


def private_key(raw: bytes) -> Ed25519PrivateKey:
    """Return the private key of these 32 bytes; ValueError for another number of them."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(raw)


def make() -> tuple[Signer, str]:
    """A new key: who signs with it, and the private key as PEM, which is a secret."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return of(key), key.private_bytes(form, kind, serialization.NoEncryption()).decode()


def of(key: Ed25519PrivateKey) -> Signer:
    """The one who signs with this key."""
    raw = _raw(key.public_key())
    return Signer(key_id(raw), base64.b64encode(raw).decode(), key)


def key_id(public: bytes) -> str:
    """What names a key in records: the beginning of the digest of its public half."""
    return hashlib.sha256(public).hexdigest()[:16]


# Records that carry their own signature, and files that have it beside them.


def signed(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """The record with who signs it and the signature over all the rest; as it is, where no key is set."""
    ours = signer()
    if ours is None:
        return record
    named = {**record, "signer": ours.id}
    return {**named, "signature": ours.sign(kind, contracts.encode(kind, named))}


def check_record(trusted: Verifier, kind: str, data: bytes, what: str) -> None:
    """A PermissionError unless these are the canonical bytes of a record that a trusted key has signed."""
    record = contracts.decode(kind, data, what)
    rest = {name: value for name, value in record.items() if name != "signature"}
    if contracts.encode(kind, record) != data:
        raise PermissionError(f"{what} is not in the one form in which it was signed: it was changed afterwards.")
    signature, by = (str(record.get(name, "")) for name in ("signature", "signer"))
    trusted.check(kind, contracts.encode(kind, rest), signature, what, by)


def sign_file(path: Path, kind: str) -> None:
    """Write the signature of a file beside it, where a key is set: decision.json has it in decision.sig."""
    if ours := signer():
        record = {"signer": ours.id, "signature": ours.sign(kind, path.read_bytes())}
        contracts.write_record("signature", path.with_suffix(".sig"), record)


def check_file(trusted: Verifier, path: Path, kind: str, what: str) -> None:
    """A PermissionError unless the file has the signature of a trusted key beside it."""
    beside = path.with_suffix(".sig")
    if not beside.is_file():
        trusted.check(kind, b"", "", what)
    data = beside.read_bytes()
    record = contracts.decode("signature", data, beside.name)
    if contracts.encode("signature", record) != data or not {"signer", "signature"} <= set(record):
        raise PermissionError(f"The signature of {what} was changed: {beside.name} is not as it was written.")
    trusted.check(kind, path.read_bytes(), str(record["signature"]), what, str(record["signer"]))


def _message(kind: str, data: bytes) -> bytes:
    # A signature for one kind of record must not serve for another.
    return f"medloop:{kind}:".encode() + data


def _exactly(text: str) -> bytes:
    """The bytes of a base64 text that is written in the one way in which it can be; else none."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if base64.b64encode(raw).decode() == text else b""


def _raw(key: Ed25519PublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _private(text: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key: object = None
    try:
        if _PEM.match(text):
            key = serialization.load_pem_private_key(text.encode(), None)
        elif len(raw := _exactly(text)) == 32:
            key = Ed25519PrivateKey.from_private_bytes(raw)
    except (ValueError, TypeError):  # an encrypted key is a TypeError
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{VARIABLE} does not hold a private key for signatures (its {len(text)} characters are not shown): it "
            "must be Ed25519 as PEM without a password, or the base64 of its 32 bytes. Make one with: medloop keys pair"
        )
    return key


def _public(text: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key: object = None
    try:
        if _PEM.match(text):
            key = serialization.load_pem_public_key(text.encode())
        elif len(raw := _exactly(text)) == 32:
            key = Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            f"{VERIFY} holds something of {len(text)} characters that is no public key: each must be Ed25519, as PEM "
            "or as the base64 of its 32 bytes, as `medloop keys pair` prints it."
        )
    return key
