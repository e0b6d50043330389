"""Keys of single stages. Each signs what its own stage did, and nothing that could release a model.

A stage's key follows from the signing key, and comes with a certificate: the signing key's signature over the stage's
name and the public half. So whoever trusts the signing key's public half can tell which stage signed, and who has a
stage's key can neither sign for another stage nor find the signing key.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.shared import contracts, environment
from components.shared.errors import UnavailableError, UsageError
from components.shared.ledger import signing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VARIABLE = "MEDLOOP_STAGE_KEY"
"""The environment variable that holds the key of the stage that runs there, as `medloop keys stages` writes it."""
RELEASING = ("resolve", "gate", "deploy", "reject")
"""Stages that sign with the signing key itself: they write decisions and the release log."""

_SEALED = b"medloop sealed\n"
_CERTIFICATE = "stage key"


@dataclass(frozen=True)
class StageKey:
    """A stage's private key, with the certificate by the signing key that it follows from."""

    stage: str
    root: str
    """The public half of the signing key, as text."""
    certificate: str
    key: Ed25519PrivateKey = field(repr=False)

    @property
    def signer(self) -> str:
        """Return the id of the signing key."""
        return signing.key_id(base64.b64decode(self.root))

    @property
    def text(self) -> str:
        """Return the key as the environment holds it: a secret."""
        from cryptography.hazmat.primitives import serialization

        form, no = serialization.Encoding.Raw, serialization.NoEncryption()
        private = base64.b64encode(self.key.private_bytes(form, serialization.PrivateFormat.Raw, no)).decode()
        return ":".join((self.stage, self.root, private, self.certificate))

    def sign(self, kind: str, record: dict[str, Any]) -> dict[str, Any]:
        """Return the record with this key's signature, and with what it takes to check that."""
        ours = signing.of(self.key)
        about = {"stage": self.stage, "public": ours.public, "certificate": self.certificate}
        named = {**record, "signer": self.signer, "stage_key": about}
        return {**named, "signature": ours.sign(kind, contracts.encode(kind, named))}


def derive(signer: signing.Signer, stage: str) -> StageKey:
    """Return the key of a stage, which follows from the signing key and cannot be traced back to it."""
    key = signing.private_key(signer.derived(f"stage key of {stage}"))
    return StageKey(stage, signer.public, signer.sign(_CERTIFICATE, _certified(stage, signing.of(key).public)), key)


def for_stages(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return, for each stage, the variables with the key that it may hold: all else must be kept from it.

    They are secrets. Without a signing key at hand there are none.
    """
    ours = signing.signer()
    if ours is None:
        return {}
    whole = {signing.VARIABLE: environment.get(signing.VARIABLE)}
    return {name: whole if name in RELEASING else {VARIABLE: derive(ours, name).text} for name in names}


def held(stage: str = "") -> StageKey | None:
    """Return the key by which this process signs what `stage` does, or None where it has none.

    Raise a ValueError where the environment holds another stage's key. Without a stage, any stage's key is returned.
    """
    text = environment.get(VARIABLE).strip()
    if text:
        found = parse(text)
        if stage and found.stage != stage:
            raise UsageError(
                f"{VARIABLE} holds the key of the stage {found.stage}, and this is {stage}. Give each stage its own: "
                "`medloop keys stages` writes them."
            )
        return found
    ours = signing.signer()
    return derive(ours, stage or "any") if ours else None


def trusted() -> signing.Verifier | None:
    """Return those whose signatures on steps count: the public keys that are set, or else the key that signs here.

    None where there is neither; then nothing is verified.
    """
    if public := signing.verifier():
        return public
    key = held()
    return signing.trusting_public(key.root) if key else None


def require(stage: str) -> None:
    """Raise a RuntimeError where what this stage does would not be signed so that it counts."""
    key, verifier = held(stage), signing.verifier()
    if key and verifier:
        verifier.check(
            _CERTIFICATE,
            _certified(stage, signing.of(key.key).public),
            key.certificate,
            f"The key in {VARIABLE}",
            key.signer,
        )
    if verifier and key is None:
        raise UnavailableError(
            f"{signing.VERIFY} asks for signatures, and the step {stage} has no key to sign its result with. Set "
            f"{VARIABLE} to the key of this stage, which `medloop keys stages` writes; it signs for {stage} alone."
        )


def parse(text: str) -> StageKey:
    """Return the key in the form that `text` gives it; ValueError otherwise."""
    parts = text.split(":")
    try:
        stage, root, private, certificate = parts
        signing.trusting_public(root)
        return StageKey(stage, root, certificate, signing.private_key(base64.b64decode(private, validate=True)))
    except (ValueError, PermissionError):
        raise UsageError(
            f"{VARIABLE} does not hold the key of a stage (its {len(text)} characters are not shown). Write the keys "
            "with `medloop keys stages` and set the one of this stage."
        ) from None


def check(trusted: signing.Verifier, kind: str, data: bytes, what: str) -> dict[str, Any]:
    """Return the record in `data`, or raise a PermissionError unless a stage's key, certified by a trusted key, signed
    it. The stage that signed is `record["stage_key"]["stage"]`.
    """
    record = contracts.decode(kind, data, what)
    about = record.get("stage_key")
    if not isinstance(about, dict) or not {"stage", "public", "certificate"} <= set(about):
        raise PermissionError(
            f"{what} is not signed by a stage's key, and {signing.VERIFY} asks for signatures. It was made without "
            f"{VARIABLE}, or put there by somebody else."
        )
    if contracts.encode(kind, record) != data:
        raise PermissionError(f"{what} is not in the one form in which it was signed: it was changed afterwards.")
    stage, public, certificate = (str(about[name]) for name in ("stage", "public", "certificate"))
    certified = _certified(stage, public)
    trusted.check(_CERTIFICATE, certified, certificate, f"The stage key of {what}", str(record.get("signer", "")))
    rest = {name: value for name, value in record.items() if name != "signature"}
    owner = signing.trusting_public(public)
    owner.check(kind, contracts.encode(kind, rest), str(record.get("signature", "")), what)
    return record


def _certified(stage: str, public: str) -> bytes:
    return json.dumps({"stage": stage, "public": public}, sort_keys=True).encode()


# Data that is no JSON record: checkpoints, what ingest knows of files.


def seal(key: StageKey | None, name: str, data: bytes) -> bytes:
    """Return the data behind a signature over its content and its name; as it is, where there is no key."""
    if key is None:
        return data
    record = key.sign("sealed", {"name": name, "content": hashlib.sha256(data).hexdigest()})
    head = contracts.encode("sealed", record)
    return b"%s%08x%s%s" % (_SEALED, len(head), head, data)


def unseal(name: str, data: bytes, stages: tuple[str, ...] = ()) -> bytes | None:
    """Return the data behind a seal; None where signatures count and none of these stages sealed it by this name."""
    verifier = trusted()
    if not data.startswith(_SEALED):
        return None if verifier else data
    try:
        start = len(_SEALED) + 8
        end = start + int(data[start - 8 : start], 16)
        content = data[end:]
        if verifier:
            record = check(verifier, "sealed", data[start:end], name)
            known = not stages or record["stage_key"]["stage"] in stages
            digest = hashlib.sha256(content).hexdigest()
            if not known or (record.get("name"), record.get("content")) != (name, digest):
                return None
    except (ValueError, PermissionError):
        return None
    return content
