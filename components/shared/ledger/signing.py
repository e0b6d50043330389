"""Ed25519 signatures of records that must be protected from writers of the store.

The private key comes from the environment and is never stored; its public key and its id are public. The package
`cryptography` is imported only if a key is set.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.shared import contracts, environment
from components.shared.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

VARIABLE = "MEDLOOP_SIGNING_KEY"
"""Environment variable: private key as PEM (PKCS8), or as base64 of its 32 bytes."""
VERIFY = "MEDLOOP_VERIFY_KEYS"
"""Environment variable: trusted public keys as base64, separated by commas or spaces, or as PEM."""

_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----", re.DOTALL)


@dataclass(frozen=True)
class Signer:
    """A private key that signs records; its id is that of its public key."""

    id: str
    public: str
    _key: Ed25519PrivateKey = field(repr=False)

    def sign(self, kind: str, data: bytes) -> str:
        """Return the signature over a record of this kind, as base64."""
        return base64.b64encode(self._key.sign(_message(kind, data))).decode()

    def derive(self, purpose: str) -> bytes:
        """Return 32 secret bytes for a purpose, derived from the private key."""
        return hmac.digest(self._key.private_bytes_raw(), f"medloop:{purpose}".encode(), "sha256")


@dataclass(frozen=True)
class Verifier:
    """Trusted public keys by their ids."""

    keys: dict[str, Ed25519PublicKey] = field(repr=False)

    def check(self, kind: str, data: bytes, signature: str, what: str, signer: str = "") -> None:
        """Raise a PermissionError unless one of the keys has signed a record of this kind with these bytes.

        `signer` is the id of the key that the signature names; an unknown key gets a message of its own.
        """
        from cryptography.exceptions import InvalidSignature

        if not signature:
            raise PermissionError(
                f"{what} is not signed, but {VERIFY} requires signatures. It was written without {VARIABLE}, or "
                "forged: see docs/audit.md."
            )
        if signer and signer not in self.keys:
            raise PermissionError(
                f"{what} is signed with the key {signer}, but {VERIFY} trusts {', '.join(self.keys)}. Add the public "
                "key if it is yours; otherwise this was forged."
            )
        raw = _decode_base64(signature)
        for key in [self.keys[signer]] if signer else self.keys.values():
            try:
                key.verify(raw, _message(kind, data))
                return
            except InvalidSignature:
                continue
        raise PermissionError(
            f"{what} does not match its signature: one of them was changed. Restore it from a copy, or create it again."
        )


def signer() -> Signer | None:
    """Return the signer of this environment, or None; raise UsageError if the trusted keys do not include it."""
    text = environment.get(VARIABLE).strip()
    if not text:
        return None
    ours = from_key(_parse_private(text))
    trusted = verifier()
    if trusted and ours.id not in trusted.keys:
        raise UsageError(
            f"{VARIABLE} holds the key {ours.id}, but {VERIFY} trusts {', '.join(trusted.keys)}: signatures would be "
            f"refused. Add the public key {ours.public} to {VERIFY}."
        )
    return ours


def verifier() -> Verifier | None:
    """Return the trusted public keys of this environment; None if none are set and nothing is verified."""
    text = environment.get(VERIFY)
    if not text:
        return None  # but blanks are an error: they may come from a secret that failed to load
    texts = [*_PEM.findall(text), *re.split(r"[,\s]+", _PEM.sub(" ", text))]
    keys = [_parse_public(key) for key in texts if key]
    if not keys:
        raise UsageError(f"{VERIFY} is set but contains no key. Set it to public keys, or unset it.")
    return Verifier({key_id(key.public_bytes_raw()): key for key in keys})


def trusting(signer: Signer) -> Verifier:
    """Return a verifier that trusts only this signer."""
    return Verifier({signer.id: _parse_public(signer.public)})


def trusting_public(public: str) -> Verifier:
    """Return a verifier that trusts only this public key; raise a PermissionError if it is invalid."""
    try:
        key = _parse_public(public)
    except ValueError:
        raise PermissionError("A signature contains an invalid public key: it was changed.") from None
    return Verifier({key_id(key.public_bytes_raw()): key})


def private_key(raw: bytes) -> Ed25519PrivateKey:
    """Return the private key of these 32 bytes; raise a ValueError for another length."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(raw)


def make() -> tuple[Signer, str]:
    """Create a key; return its signer and the private key as PEM, which is a secret."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return from_key(key), key.private_bytes(form, kind, serialization.NoEncryption()).decode()


def from_key(key: Ed25519PrivateKey) -> Signer:
    """Return the signer with this private key."""
    raw = key.public_key().public_bytes_raw()
    return Signer(key_id(raw), base64.b64encode(raw).decode(), key)


def key_id(public: bytes) -> str:
    """Return the id of a key in records: the first digits of the digest of its public key."""
    return hashlib.sha256(public).hexdigest()[:16]


# Records that contain their signature, and files with a separate signature.


def sign(kind: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with the signer's id and a signature over both; unchanged if no key is set."""
    ours = signer()
    if ours is None:
        return record
    named = {**record, "signer": ours.id}
    return {**named, "signature": ours.sign(kind, contracts.encode(kind, named))}


def check_record(trusted: Verifier, kind: str, data: bytes, what: str) -> None:
    """Raise a PermissionError unless `data` is the canonical form of a record that a trusted key has signed."""
    record = contracts.decode(kind, data, what)
    rest = {name: value for name, value in record.items() if name != "signature"}
    if contracts.encode(kind, record) != data:
        raise PermissionError(f"{what} is not in its canonical form: it was changed after it was signed.")
    signature, by = (str(record.get(name, "")) for name in ("signature", "signer"))
    trusted.check(kind, contracts.encode(kind, rest), signature, what, by)


def sign_file(path: Path, kind: str) -> None:
    """Write the signature of a file beside it, if a key is set: decision.sig for decision.json."""
    if ours := signer():
        record = {"signer": ours.id, "signature": ours.sign(kind, path.read_bytes())}
        contracts.write_record("signature", path.with_suffix(".sig"), record)


def check_file(trusted: Verifier, path: Path, kind: str, what: str) -> None:
    """Raise a PermissionError unless the file has a valid signature by a trusted key beside it."""
    beside = path.with_suffix(".sig")
    if not beside.is_file():
        trusted.check(kind, b"", "", what)
    data = beside.read_bytes()
    record = contracts.decode("signature", data, beside.name)
    if contracts.encode("signature", record) != data or not {"signer", "signature"} <= set(record):
        raise PermissionError(f"The signature of {what} was changed: {beside.name} is not valid.")
    trusted.check(kind, path.read_bytes(), str(record["signature"]), what, str(record["signer"]))


def _message(kind: str, data: bytes) -> bytes:
    # A signature for one kind of record must not serve for another.
    return f"medloop:{kind}:".encode() + data


def _decode_base64(text: str) -> bytes:
    """Return the bytes of a base64 text; b"" if it is not in canonical form."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if base64.b64encode(raw).decode() == text else b""


def _load_key(text: str, load: Callable[[bytes], object], from_raw: Callable[[bytes], object]) -> object:
    """Return the key in PEM, or in base64 of its 32 bytes; None if it is neither."""
    try:
        if _PEM.match(text):
            return load(text.encode())
        raw = _decode_base64(text)
        return from_raw(raw) if len(raw) == 32 else None
    except (ValueError, TypeError):  # an encrypted key is a TypeError
        return None


def _parse_private(text: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _load_key(text, lambda pem: load_pem_private_key(pem, None), Ed25519PrivateKey.from_private_bytes)
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{VARIABLE} does not contain a private key for signatures (its {len(text)} characters are not shown): it "
            "must be Ed25519 as PEM without a password, or base64 of its 32 bytes. Create one with: medloop keys pair"
        )
    return key


def _parse_public(text: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _load_key(text, load_pem_public_key, Ed25519PublicKey.from_public_bytes)
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            f"{VERIFY} contains an entry of {len(text)} characters that is not a public key: each must be Ed25519 as "
            "PEM, or base64 of its 32 bytes, as `medloop keys pair` prints it."
        )
    return key
