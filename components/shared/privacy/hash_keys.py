"""The key under which patients' and images' names become hashes: one link, or a chain that grew by rotation."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from components.shared import environment
from components.shared.errors import UnavailableError, UsageError

VARIABLE = "MEDLOOP_HASH_KEY"

SYNTHETIC = "73796e7468657469632d7363616e732d6f6e6c793a206e6f7420612073656372"
"""The public key of synthetic scans, so that their hashes are the same everywhere. Never for real ones."""


@dataclass(frozen=True)
class HashKey:
    """A secret key; only its id may be written down.

    It is a chain of links. Each hashes what the one before it gave, so an id that was made before a link was added
    can be carried on without the name that it stands for.
    """

    links: tuple[bytes, ...] = field(repr=False)

    @property
    def id(self) -> str:
        """What names the key in manifests, without telling it."""
        return hashlib.sha256(b"medloop hash key id\0" + b"".join(self.links)).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The key itself, as it stands in a key file: a secret."""
        return ":".join(link.hex() for link in self.links)

    def hash(self, kind: str, name: str) -> str:
        """The keyed hash of a name; `kind` keeps a patient and an image of the same name apart."""
        return _fold(kind, name, self.links)

    def image(self, name: str, frame: int = -1) -> str:
        """The id of an image: of the file of that name, or of one frame of it."""
        return self.hash("image", name if frame < 0 else f"{name}\0{frame}")

    def rehash(self, kind: str, old: str, before: HashKey) -> str:
        """The hash that this key gives to the name which has the hash `old` under an earlier state of it."""
        if not self.extends(before):
            raise UsageError(
                f"The key {self.id} did not come of the key {before.id} by rotation, so ids made with that one cannot "
                "be carried on. Use the key that was rotated."
            )
        return _fold(kind, old, self.links[len(before.links) :])

    def extends(self, before: HashKey) -> bool:
        """Whether this is that key, or came of it by rotation."""
        return self.links[: len(before.links)] == before.links

    def earlier(self) -> list[HashKey]:
        """The states of this key from the first to the present one."""
        return [HashKey(self.links[:count]) for count in range(1, len(self.links) + 1)]

    def rotated(self) -> HashKey:
        """The key with a new random link at its end."""
        return HashKey((*self.links, secrets.token_bytes(32)))


def _fold(kind: str, name: str, links: tuple[bytes, ...]) -> str:
    for link in links:
        name = hmac.digest(link, f"{kind}\0{name}".encode("utf-8", "surrogateescape"), "sha256").hex()[:32]
    return name


def parse(text: str) -> HashKey:
    """The key that 64 hexadecimal digits give, or several times 64 with colons between: a key that was rotated."""
    links = []
    for part in text.strip().split(":"):
        try:
            link = bytes.fromhex(part)
        except ValueError:
            link = b""
        if len(link) != 32 or len(part) != 64:
            raise UsageError(
                f"{VARIABLE} does not hold a key: it must be 64 hexadecimal digits, not {len(part)} characters "
                "(a rotated key: several times 64, with colons between). "
                "Make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
            )
        links.append(link)
    return HashKey(tuple(links))


def from_environment() -> HashKey:
    """The key in MEDLOOP_HASH_KEY."""
    text = environment.get(VARIABLE)
    if not text:
        raise UnavailableError(
            f"{VARIABLE} is not set. Patients' names are hashed with it: set it to the key that this store was made "
            "with, or for a new store to 64 random hexadecimal digits."
        )
    return parse(text)
