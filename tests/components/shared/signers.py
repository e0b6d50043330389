"""Key pairs for tests, set as a user sets them."""

from __future__ import annotations

import pytest

from components.shared.ledger import signing
from components.shared.ledger.signing import Signer


class Pair:
    """A new private key and its public one."""

    def __init__(self) -> None:
        self.signer, self.private = signing.make()

    @property
    def id(self) -> str:
        return self.signer.id

    @property
    def public(self) -> str:
        return self.signer.public


def use(patch: pytest.MonkeyPatch, signs: Pair | None, *trusted: Pair | Signer) -> None:
    """From now on this key signs (or none does), and these are trusted (or nothing is verified)."""
    for name, value in (
        (signing.VARIABLE, signs.private if signs else ""),
        (signing.VERIFY, ",".join(pair.public for pair in trusted)),
    ):
        if value:
            patch.setenv(name, value)
        else:
            patch.delenv(name, raising=False)
