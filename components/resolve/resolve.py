"""Reads, once a run, everything that can change from outside."""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING, Any

from components.resolve import weights as kept_weights
from components.shared import contracts
from components.shared.contracts import Manifest, Out
from components.shared.errors import RefusedError
from components.shared.ledger import release_log, signing
from components.shared.privacy import hash_keys
from components.shared.runtime import events, stage_code, work
from components.shared.runtime.interface import stages
from components.shared.storage import artifacts
from components.shared.storage import source as sources

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

NOTHING = Manifest().digest
"""What names an artifact that is not there: no split before, no model in service."""


def resolve(
    state: Out,
    previous: Out,
    champion: Out,
    work: Work,
    *,
    source: str,
    weights: str = "",
    asked: dict[str, Any] = {},
    ingest_options: dict[str, Any] = {},
    merge_options: dict[str, Any] = {},
    split_options: dict[str, Any] = {},
    train_options: dict[str, Any] = {},
    evaluate_options: dict[str, Any] = {},
    policy: dict[str, Any] = {},
    quantize_options: dict[str, Any] = {},
) -> dict[str, Any]:
    """Read what can change from outside: the source's listing, the release log, the model in service, the hash key.

    Later stages read none of it again. A run that asks for what the newest decision already answered is handed what
    that run was handed, so that all of its work is found done. The looks at the locked test are counted in the log.

        source: the directory of images to learn from, or s3://bucket/prefix
        weights: where the weights lie that training is to begin with: a path, an s3:// or https:// address; or nowhere
        asked: the run's parameters, by which a repetition is recognised
        ingest_options: what ingest was asked beyond them
        merge_options: what merge was asked beyond them
        split_options: what split was asked beyond them
        train_options: what train was asked beyond them
        evaluate_options: what evaluate was asked beyond them
        policy: what gate was asked
        quantize_options: what quantize was asked beyond them
    """
    listing = _listing(source)
    log = release_log.read_log(work.store)
    release_log.check_writable(log)  # now, and not at the end of a day's training
    key_id = hash_keys.from_environment().id
    _same_key(log, key_id)
    revision = sources.revision(listing)
    begins_with = kept_weights.keep(weights, work.store) if weights else ""
    code = _code()
    options = [ingest_options, merge_options, split_options, train_options]
    options += [evaluate_options, policy, quantize_options]
    request = contracts.fingerprint([_plain([asked, options]), revision, key_id, begins_with, code])
    service = release_log.in_service(log)
    seen = {
        "previous": release_log.newest_split(log),
        "champion": service.record["model"] if service else "",
        "champion_version": service.version if service else "",
    }
    repeats = _repeats(work, log, request)
    if repeats:
        seen = log[-1].record["seen"]
    if seen["previous"]:
        _fill(work, previous, seen["previous"])
    handed = _fill_or_tell(work, champion, seen["champion"]) if seen["champion"] else ""
    looks, spent = _look(work, log, request, seen["champion"])
    record = {
        "revision": revision,
        "files": len(listing),
        "key_id": key_id,
        "head": release_log.head(log),
        "request": request,
        "code": contracts.fingerprint(code),
        "repeats": log[-1].record.get("run", "") if repeats else "",
        "seen": seen,
        "handed": {"previous": seen["previous"] or NOTHING, "champion": handed or NOTHING},
        "looks": looks,
        "spent": spent,
    }
    contracts.write_record("resolved", state / "resolved.json", record)
    signing.sign_file(state / "resolved.json", "resolved")
    ours = signing.signer()
    signer = ours.id if ours else ""
    found = {"revision": revision, "key_id": key_id, "weights_digest": begins_with}
    return {**found, "looks": looks, "spent": spent, "signer": signer}


def _listing(address: str) -> list[sources.Entry]:
    listing = sources.entries(address)
    if not any(entry.is_image for entry in listing):
        links = "" if "://" in address else " (links that lead out of it are not followed)"
        known = ", ".join(sorted(sources.IMAGE_SUFFIXES))
        raise RefusedError(
            f"The source {address} holds no images: no file ends in {known}{links}. "
            "Put a folder of images for each class into it."
        )
    return listing


def _repeats(work_: Work, log: list[release_log.Entry], request: str) -> bool:
    """Whether the newest entry answers this very request, with all of its work still there to be found done."""
    if not log or log[-1].record.get("request") != request:
        return False
    return work.is_complete(work_.store, log[-1].record["decision"])


def _look(work_: Work, log: list[release_log.Entry], request: str, champion_now: str) -> tuple[int, float]:
    """The number that this run's look at the locked test has, from 1, and the error rate that those before it spent.

    Every decision is a look, whatever it came to: who tries often enough passes any test once. A release that a person
    approved belongs to the look that waited for it. A run that asks the same again has its own look, but only where
    nothing is done anew: what is trained a second time has a second chance.
    """
    looks: dict[tuple[str, ...], int] = {}
    costs: list[float] = []
    split, known = release_log.newest_split(log), 0
    for entry in log:
        if entry.kind in release_log.DECISIONS:
            champion = str(entry.record.get("seen", {}).get("champion", ""))
            asked = str(entry.record.get("request")), champion, str(entry.record.get("model"))
            number = looks.setdefault(asked, len(looks) + 1)
            if number > len(costs):
                costs.append(float(entry.record.get("spent", 0.0)))
            if asked[:2] == (request, champion_now):
                same = entry.record.get("split", "") == split and work.is_complete(
                    work_.store, entry.record["decision"]
                )
                known = number if same else 0
    number = known or len(looks) + 1
    return number, sum(costs[: number - 1])


def _same_key(log: list[release_log.Entry], key_id: str) -> None:
    known = release_log.key_id(log)
    if known not in ("", key_id):
        raise RefusedError(
            f"The hash key at hand has the id {key_id}, and this store was made with key {known}. With another key "
            f"every patient would look new, and test patients would leak into training. Set {hash_keys.VARIABLE} to "
            "the store's key (if it was rotated, the one since then), or set MEDLOOP_HOME to another directory to "
            "begin a new loop."
        )


def _fill(work_: Work, folder: Out, digest: str) -> None:
    manifest = Manifest.decode(work_.store.get(digest), digest[:12])
    artifacts.lay_out(work_.store, manifest, folder)


def _fill_or_tell(work_: Work, folder: Out, digest: str) -> str:
    """Lay out the model in service, or say that the store has lost it: the gate decides what that means.

    Return the digest of what is handed on.
    """
    try:
        _fill(work_, folder, digest)
        return digest
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno != errno.EIO:
            raise
        contracts.write_record("lost", folder / contracts.LOST, {"model": digest, "why": events.sentence(error)})
        return artifacts.gather(work_.store, folder).digest


def _plain(value: Any) -> Any:
    """The value with every number in one form: pipelines hand on 7, inside a dictionary, as 7.0 or as '7.0'."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return number if math.isfinite(number) else value


def _code() -> dict[str, str]:
    return {stage: stage_code.code_version(stage) for stage in stages()}
