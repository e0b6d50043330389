"""Read everything outside the pipeline that can change, once per run."""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING, Any

from components.resolve import initial_weights
from components.shared import contracts
from components.shared.contracts import Manifest, Out
from components.shared.errors import RefusedError
from components.shared.ledger import release_log, signing
from components.shared.privacy import keyed_hash
from components.shared.runtime import code_and_package_versions, events, work
from components.shared.runtime.stage_interface import stages
from components.shared.storage import artifacts
from components.shared.storage import image_source as sources

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

NO_ARTIFACT = Manifest().digest
"""Digest of the empty artifact: no previous split, or no model in service."""


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
    """Read what can change between runs: source, release log, model, hash key.

    Later stages do not read it again. If the newest decision answers the same request, the run gets the same inputs as
    the run of that decision, so that all its work is already done. Evaluations on the locked test set are counted in
    the log.

        source: directory of training images, or s3://bucket/prefix
        weights: path or s3:// or https:// address of initial weights; empty starts from random weights
        asked: the run's parameters; they identify a repeated run
        ingest_options: further parameters of ingest
        merge_options: further parameters of merge
        split_options: further parameters of split
        train_options: further parameters of train
        evaluate_options: further parameters of evaluate
        policy: the gate's policy
        quantize_options: further parameters of quantize
    """
    listing = _listing(source)
    log = release_log.read_log(work.store)
    release_log.check_writable(log)  # fail before training, not after it
    key_id = keyed_hash.from_environment().id
    _require_same_key(log, key_id)
    revision = sources.revision(listing)
    weights_digest = initial_weights.store_weights(weights, work.store) if weights else ""
    code = _code()
    options = [ingest_options, merge_options, split_options, train_options]
    options += [evaluate_options, policy, quantize_options]
    request = contracts.fingerprint([_normalise([asked, options]), revision, key_id, weights_digest, code])
    in_service = release_log.in_service(log)
    store_state = {
        "previous": release_log.newest_split(log),
        "champion": in_service.record["model"] if in_service else "",
        "champion_version": in_service.version if in_service else "",
    }
    is_repetition = _is_repetition(work, log, request)
    if is_repetition:
        store_state = log[-1].record["seen"]
    if store_state["previous"]:
        _lay_out(work, previous, store_state["previous"])
    handed_champion = _lay_out_champion(work, champion, store_state["champion"]) if store_state["champion"] else ""
    looks, spent = _count_evaluations(work, log, request, store_state["champion"])
    record = {
        "revision": revision,
        "files": len(listing),
        "key_id": key_id,
        "head": release_log.head(log),
        "request": request,
        "code": contracts.fingerprint(code),
        "repeats": log[-1].record.get("run", "") if is_repetition else "",
        "seen": store_state,
        "handed": {"previous": store_state["previous"] or NO_ARTIFACT, "champion": handed_champion or NO_ARTIFACT},
        "looks": looks,
        "spent": spent,
    }
    contracts.write_record("resolved", state / "resolved.json", record)
    signing.sign_file(state / "resolved.json", "resolved")
    signer = signing.signer()
    return {
        "revision": revision,
        "key_id": key_id,
        "weights_digest": weights_digest,
        "looks": looks,
        "spent": spent,
        "signer": signer.id if signer else "",
    }


def _listing(address: str) -> list[sources.Entry]:
    listing = sources.entries(address)
    if not any(entry.is_image for entry in listing):
        links = "" if "://" in address else " (links to files outside it are not followed)"
        suffixes = ", ".join(sorted(sources.IMAGE_SUFFIXES))
        raise RefusedError(
            f"The source {address} has no images: no file name ends in {suffixes}{links}. Add a folder of images for "
            "each class."
        )
    return listing


def _is_repetition(work_: Work, log: list[release_log.Entry], request: str) -> bool:
    """Whether the newest entry answers this request, with its work in the store."""
    if not log or log[-1].record.get("request") != request:
        return False
    return work.is_complete(work_.store, log[-1].record["decision"])


def _count_evaluations(
    work_: Work, log: list[release_log.Entry], request: str, current_champion: str
) -> tuple[int, float]:
    """Return the index of this evaluation, from 1, and the error rate spent before.

    Every decision counts as an evaluation, whatever its outcome: with enough attempts any model passes a test by
    chance. A release approved by a person belongs to the evaluation that awaited approval. A repeated run keeps its
    index only if no work is done again: a second training is a second attempt.
    """
    looks: dict[tuple[str, ...], int] = {}
    spent_per_look: list[float] = []
    split, recorded_index = release_log.newest_split(log), 0
    for entry in log:
        if entry.kind in release_log.DECISIONS:
            champion = str(entry.record.get("seen", {}).get("champion", ""))
            asked = str(entry.record.get("request")), champion, str(entry.record.get("model"))
            index = looks.setdefault(asked, len(looks) + 1)
            if index > len(spent_per_look):
                spent_per_look.append(float(entry.record.get("spent", 0.0)))
            if asked[:2] == (request, current_champion):
                is_same = entry.record.get("split", "") == split and work.is_complete(
                    work_.store, entry.record["decision"]
                )
                recorded_index = index if is_same else 0
    index = recorded_index or len(looks) + 1
    return index, sum(spent_per_look[: index - 1])


def _require_same_key(log: list[release_log.Entry], key_id: str) -> None:
    store_key = release_log.key_id(log)
    if store_key not in ("", key_id):
        raise RefusedError(
            f"The id of the hash key is {key_id}, but this store was made with key {store_key}. With another key "
            f"every patient would seem new, and test patients could enter training. Set {keyed_hash.VARIABLE} to the "
            "store's key (after a rotation, the rotated key), or set MEDLOOP_HOME to another directory to start a new "
            "loop."
        )


def _lay_out(work_: Work, folder: Out, digest: str) -> None:
    manifest = Manifest.decode(work_.store.get(digest), digest[:12])
    artifacts.lay_out(work_.store, manifest, folder)


def _lay_out_champion(work_: Work, folder: Out, digest: str) -> str:
    """Lay out the model in service, or a record that the store lost it.

    Return the digest of the artifact.
    """
    try:
        _lay_out(work_, folder, digest)
        return digest
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno != errno.EIO:
            raise
        contracts.write_record("lost", folder / contracts.LOST, {"model": digest, "why": events.sentence(error)})
        return artifacts.gather(work_.store, folder).digest


def _normalise(value: Any) -> Any:
    """Return the value with all numbers as floats."""
    if isinstance(value, dict):
        return {name: _normalise(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_normalise(inner) for inner in value]
    try:  # pipelines turn 7 within a dictionary into 7.0 or '7.0'
        number = float(value)
    except (TypeError, ValueError):
        return value
    return number if math.isfinite(number) else value


def _code() -> dict[str, str]:
    return {stage: code_and_package_versions.code_version(stage) for stage in stages()}
