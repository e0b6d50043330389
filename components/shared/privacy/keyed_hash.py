"""The secret key for hashing the names of patients and images: one link, or several after rotations."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from components.shared import environment
from components.shared.errors import UnavailableError, UsageError

VARIABLE = "MEDLOOP_HASH_KEY"

SYNTHETIC = "73796e7468657469632d7363616e732d6f6e6c793a206e6f7420612073656372"
"""Public key for synthetic scans, whose hashes are the same everywhere. Never use it for real patients."""


@dataclass(frozen=True)
class HashKey:
    """A secret key, of which only the id may be stored.

    It is a chain of links, each of which hashes the previous one's result. So hashes made before a link was added can
    be converted without the names behind them.
    """

    links: tuple[bytes, ...] = field(repr=False)

    @property
    def id(self) -> str:
        """Identifier of the key in manifests, from which the key cannot be derived."""
        return hashlib.sha256(b"medloop hash key id\0" + b"".join(self.links)).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The secret key in the format of a key file."""
        return ":".join(link.hex() for link in self.links)

    def hash(self, kind: str, name: str) -> str:
        """Return the keyed hash of a name; `kind` separates patients from images."""
        return _hash_with(kind, name, self.links)

    def image(self, name: str, frame: int = -1) -> str:
        """Return the id of the image in a file with this name, or of one of its frames."""
        return self.hash("image", name if frame < 0 else f"{name}\0{frame}")

    def rehash(self, kind: str, old_hash: str, earlier_key: HashKey) -> str:
        """Convert the hash `old` made with an earlier state of this key."""
        if not self.extends(earlier_key):
            raise UsageError(
                f"The key {self.id} is not a rotation of the key {earlier_key.id}, so ids made with that one cannot be "
                "converted. Use the rotated key."
            )
        return _hash_with(kind, old_hash, self.links[len(earlier_key.links) :])

    def extends(self, earlier_key: HashKey) -> bool:
        """Whether this is that key or a rotation of it."""
        return self.links[: len(earlier_key.links)] == earlier_key.links

    def earlier_states(self) -> list[HashKey]:
        """Return the states of this key from the first to the current one."""
        return [HashKey(self.links[:count]) for count in range(1, len(self.links) + 1)]

    def rotated(self) -> HashKey:
        """Return the key with a new random link at its end."""
        return HashKey((*self.links, secrets.token_bytes(32)))


def _hash_with(kind: str, name: str, links: tuple[bytes, ...]) -> str:
    for link in links:
        name = hmac.digest(link, f"{kind}\0{name}".encode("utf-8", "surrogateescape"), "sha256").hex()[:32]
    return name


def parse(text: str) -> HashKey:
    """Parse 64 hexadecimal digits, or several such links separated by colons."""
    links = []
    for part in text.strip().split(":"):
        try:
            link = bytes.fromhex(part)
        except ValueError:
            link = b""
        if len(link) != 32 or len(part) != 64:
            raise UsageError(
                f"{VARIABLE} is not a valid key: it must be 64 hexadecimal digits, not {len(part)} characters "
                "(a rotated key: several times 64, separated by colons). "
                "Make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
            )
        links.append(link)
    return HashKey(tuple(links))


def from_environment() -> HashKey:
    """Return the key in MEDLOOP_HASH_KEY; raise UnavailableError if it is not set."""
    text = environment.get(VARIABLE)
    if not text:
        raise UnavailableError(
            f"{VARIABLE} is not set, but patients' names are hashed with it. Set it to the key of this store, or for a "
            "new store to 64 random hexadecimal digits."
        )
    return parse(text)
