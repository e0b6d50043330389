"""Keys of single stages. A stage's key signs results of this stage only, and cannot release a model.

A stage's key is derived from the signing key and has a certificate: the signing key's signature over the stage's name
and the stage's public key. So anyone who trusts the signing key can verify which stage signed, and a stage's key cannot
sign for another stage or reveal the signing key.
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
"""Environment variable: key of the stage that runs here, as written by `medloop keys stages`."""
RELEASING = ("resolve", "gate", "deploy", "reject")
"""Stages that sign with the signing key itself: they write decisions and the release log."""

_SEALED = b"medloop sealed\n"
_CERTIFICATE = "stage key"


@dataclass(frozen=True)
class StageKey:
    """A stage's private key, with its certificate."""

    stage: str
    root: str
    """Public key of the signing key, as text."""
    certificate: str
    key: Ed25519PrivateKey = field(repr=False)

    @property
    def signer(self) -> str:
        return signing.key_id(base64.b64decode(self.root))

    @property
    def text(self) -> str:
        """The key as text for the environment; a secret."""
        private = base64.b64encode(self.key.private_bytes_raw()).decode()
        return ":".join((self.stage, self.root, private, self.certificate))

    def sign(self, kind: str, record: dict[str, Any]) -> dict[str, Any]:
        """Return the record with this key's signature, public key and certificate."""
        ours = signing.from_key(self.key)
        about = {"stage": self.stage, "public": ours.public, "certificate": self.certificate}
        named = {**record, "signer": self.signer, "stage_key": about}
        return {**named, "signature": ours.sign(kind, contracts.encode(kind, named))}


def derive(signer: signing.Signer, stage: str) -> StageKey:
    """Derive the key of a stage from the signing key."""
    key = signing.private_key(signer.derive(f"stage key of {stage}"))
    certificate = signer.sign(_CERTIFICATE, _certified(stage, signing.from_key(key).public))
    return StageKey(stage, signer.public, certificate, key)


def for_stages(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return for each stage the environment variables with the only keys it may have; empty without a signing key.

    The values are secrets.
    """
    ours = signing.signer()
    if ours is None:
        return {}
    whole = {signing.VARIABLE: environment.get(signing.VARIABLE)}
    return {name: whole if name in RELEASING else {VARIABLE: derive(ours, name).text} for name in names}


def held(stage: str = "") -> StageKey | None:
    """Return the key that signs the results of `stage` in this process, or None.

    Raise UsageError if the environment contains another stage's key. Without `stage`, return any stage's key.
    """
    text = environment.get(VARIABLE).strip()
    if text:
        key = parse(text)
        if stage and key.stage != stage:
            raise UsageError(
                f"{VARIABLE} contains the key of the stage {key.stage}, but this is {stage}. Set each stage's own key: "
                "`medloop keys stages` writes them."
            )
        return key
    ours = signing.signer()
    return derive(ours, stage or "any") if ours else None


def trusted() -> signing.Verifier | None:
    """Return the keys whose signatures on steps are trusted: the public keys that are set, or else the key of this
    process. None if there is neither; then nothing is verified.
    """
    if public := signing.verifier():
        return public
    key = held()
    return signing.trusting_public(key.root) if key else None


def require(stage: str) -> None:
    """Raise an error if public keys are set and this stage has no key that they certify."""
    key, verifier = held(stage), signing.verifier()
    if key and verifier:
        verifier.check(
            _CERTIFICATE,
            _certified(stage, signing.from_key(key.key).public),
            key.certificate,
            f"The key in {VARIABLE}",
            key.signer,
        )
    if verifier and key is None:
        raise UnavailableError(
            f"{signing.VERIFY} requires signatures, but the step {stage} has no key to sign its result. Set {VARIABLE} "
            "to the key of this stage, as written by `medloop keys stages`."
        )


def parse(text: str) -> StageKey:
    """Return the key that `text` contains; raise UsageError if it is invalid."""
    parts = text.split(":")
    try:
        stage, root, private, certificate = parts
        signing.trusting_public(root)
        return StageKey(stage, root, certificate, signing.private_key(base64.b64decode(private, validate=True)))
    except (ValueError, PermissionError):
        raise UsageError(
            f"{VARIABLE} does not contain the key of a stage (its {len(text)} characters are not shown). Write the "
            "keys with `medloop keys stages`, and set the one of this stage."
        ) from None


def check(trusted: signing.Verifier, kind: str, data: bytes, what: str) -> dict[str, Any]:
    """Return the record in `data`, or raise a PermissionError unless a stage's key, certified by a trusted key, signed
    it. The stage that signed is `record["stage_key"]["stage"]`.
    """
    record = contracts.decode(kind, data, what)
    about = record.get("stage_key")
    if not isinstance(about, dict) or not {"stage", "public", "certificate"} <= set(about):
        raise PermissionError(
            f"{what} is not signed with a stage's key, but {signing.VERIFY} requires signatures. It was written "
            f"without {VARIABLE}, or forged."
        )
    if contracts.encode(kind, record) != data:
        raise PermissionError(f"{what} is not in its canonical form: it was changed after it was signed.")
    stage, public, certificate = (str(about[name]) for name in ("stage", "public", "certificate"))
    certified = _certified(stage, public)
    trusted.check(_CERTIFICATE, certified, certificate, f"The stage key of {what}", str(record.get("signer", "")))
    rest = {name: value for name, value in record.items() if name != "signature"}
    owner = signing.trusting_public(public)
    owner.check(kind, contracts.encode(kind, rest), str(record.get("signature", "")), what)
    return record


def _certified(stage: str, public: str) -> bytes:
    return json.dumps({"stage": stage, "public": public}, sort_keys=True).encode()


# Data other than JSON records: checkpoints, and ingest's records of files.


def seal(key: StageKey | None, name: str, data: bytes) -> bytes:
    """Return the data with a preceding signature over its name and content; unchanged if there is no key."""
    if key is None:
        return data
    record = key.sign("sealed", {"name": name, "content": hashlib.sha256(data).hexdigest()})
    head = contracts.encode("sealed", record)
    return b"%s%08x%s%s" % (_SEALED, len(head), head, data)


def unseal(name: str, data: bytes, stages: tuple[str, ...] = ()) -> bytes | None:
    """Return the data without its seal; None if keys are set and none of these stages sealed it under this name."""
    verifier = trusted()
    if not data.startswith(_SEALED):
        return None if verifier else data
    try:
        start = len(_SEALED) + 8
        end = start + int(data[start - 8 : start], 16)
        content = data[end:]
        if verifier:
            record = check(verifier, "sealed", data[start:end], name)
            expected = not stages or record["stage_key"]["stage"] in stages
            digest = hashlib.sha256(content).hexdigest()
            if not expected or (record.get("name"), record.get("content")) != (name, digest):
                return None
    except (ValueError, PermissionError):
        return None
    return content
