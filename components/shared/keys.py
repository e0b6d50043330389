"""The key under which patients' and images' names become hashes."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass

VARIABLE = "MEDLOOP_HASH_KEY"

SYNTHETIC = "73796e7468657469632d7363616e732d6f6e6c793a206e6f7420612073656372"
"""The public key of synthetic scans, so that their hashes are the same everywhere. Never for real ones."""


@dataclass(frozen=True)
class HashKey:
    """A secret key; only its id may be written down."""

    secret: bytes

    @property
    def id(self) -> str:
        """What names the key in manifests, without telling it."""
        return hashlib.sha256(b"medloop hash key id\0" + self.secret).hexdigest()[:16]

    def hash(self, kind: str, name: str) -> str:
        """The keyed hash of a name; `kind` keeps a patient and an image of the same name apart."""
        return hmac.new(self.secret, f"{kind}\0{name}".encode("utf-8", "surrogateescape"), "sha256").hexdigest()[:32]


def parse(text: str) -> HashKey:
    """The key that 64 hexadecimal digits give."""
    try:
        secret = bytes.fromhex(text.strip())
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ValueError(
            f"{VARIABLE} does not hold a key: it must be 64 hexadecimal digits, not {len(text.strip())} characters. "
            "Make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return HashKey(secret)


def from_environment() -> HashKey:
    """The key in MEDLOOP_HASH_KEY."""
    text = os.environ.get(VARIABLE)
    if not text:
        raise RuntimeError(
            f"{VARIABLE} is not set. Patients' names are hashed with it: set it to the key that this store was made "
            "with, or for a new store to 64 random hexadecimal digits."
        )
    return parse(text)
