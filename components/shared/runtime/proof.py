"""What a release rests on, proven before it is done: whose decision it is, on which report, about which model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.errors import RefusedError, UnavailableError
from components.shared.ledger import lineage, signing, stage_keys
from components.shared.ledger.signing import Verifier
from components.shared.parsing.json_documents import read_json

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

SIGNED = {
    "decision": {"decision.json", "decision.sig", "page.html", lineage.FILE},
    "state": {"resolved.json", "resolved.sig"},
}
"""Of the signed artifacts, all the files that they consist of."""


def signed_and_whole(decision: Path, state: Path, work: Work) -> None:
    """Where signatures count: an exception unless gate and resolve signed what they handed on, nothing else is in it,
    and signed steps lead from what resolve saw to what gate decided. Without keys nobody's word is asked for.
    """
    trusted = stage_keys.trusted()
    if trusted is None:
        return
    signing.check_file(trusted, decision / "decision.json", "decision", "The decision")
    signing.check_file(trusted, state / "resolved.json", "resolved", "What resolve found")
    verdict = contracts.read_record("decision", decision / "decision.json")
    if verdict.get("page") != contracts.file_digest(decision / "page.html"):
        raise PermissionError("The decision's page is not the one that was signed with it. Run again to make it anew.")
    _check_steps(
        trusted, decision / lineage.FILE, verdict, contracts.read_record("resolved", state / "resolved.json"), work
    )
    for name, files in SIGNED.items():
        _as_kept(work, name, files)
    if "model" in work.inputs:
        _as_kept(work, "model", None)


def _check_steps(trusted: Verifier, file: Path, verdict: dict[str, Any], resolved: dict[str, Any], work: Work) -> None:
    """Raise a PermissionError unless signed steps lead from what resolve saw to what was decided, at the look that
    resolve counted.
    """
    if not verdict.get("lineage") or not file.is_file():
        raise PermissionError(
            "The decision does not hold the signed results of the steps that it rests on: it was made by a version of "
            "medloop that did not sign them, or they were taken out. Run again to make it anew."
        )
    data = file.read_bytes()
    if contracts.digest(data) != verdict["lineage"]:
        raise PermissionError("The steps beside the decision are not those that were signed with it. Run again.")
    lineage.check_begin(lineage.check(work.store, trusted, data, verdict), resolved)
    budget = verdict["budget"]
    before = budget["spent"] - budget["error_at_this_look"]
    if budget["look"] != resolved["looks"] or not math.isclose(before, resolved["spent"], abs_tol=1e-9):
        raise PermissionError(
            f"The decision counts look {budget['look']} at the locked test, and its run began with look "
            f"{resolved['looks']}. Nothing was released; run again."
        )


def same_report(verdict: dict[str, Any], work: Work, trusted: Verifier | None) -> None:
    """An exception unless the report that the decision names is in the store, unchanged, and about the same things."""
    manifest = Manifest.decode(work.store.get(verdict["report"]), "the report")
    work.store.fetch_all(blob.digest for blob in manifest.files.values())
    if "metrics.json" not in manifest.files:
        raise RefusedError("The report that the decision names holds no metrics.json. Evaluate the model again.")
    metrics = read_json(work.store.get(manifest.files["metrics.json"].digest), "metrics.json")
    judged = metrics.get("subject") or {}
    differing = [name for name, value in verdict["subject"].items() if judged.get(name) != value]
    if differing or (trusted and _sizes_differ(work, manifest)):
        raise UnavailableError(
            f"The report that the decision names is another one than it was made on: {', '.join(differing) or 'size'} "
            "differs. Nothing was released; run again."
        )


def _as_kept(work: Work, name: str, files: set[str] | None) -> None:
    """An exception unless an input is what the store holds under its digest, of these files alone."""
    manifest = Manifest.decode(work.store.get(work.inputs[name]), name)
    if (files is not None and set(manifest.files) != files) or _sizes_differ(work, manifest):
        raise PermissionError(
            f"The artifact {name} is not as it was written: a file was put in, taken out, or has another size. Run "
            "again."
        )


def _sizes_differ(work: Work, manifest: Manifest) -> bool:
    blobs = list(manifest.files.values())
    paths = work.store.fetch_all(blob.digest for blob in blobs)
    return any(path.stat().st_size != blob.size for path, blob in zip(paths, blobs, strict=True))
