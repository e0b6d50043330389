"""Verify the inputs of deploy and reject: the decision's signature, its report, and the steps behind it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.errors import RefusedError, UnavailableError
from components.shared.ledger import lineage, signing, stage_signing
from components.shared.ledger.signing import Verifier
from components.shared.parsing.json_documents import read_json

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

SIGNED = {
    "decision": {"decision.json", "decision.sig", "page.html", lineage.FILE},
    "state": {"resolved.json", "resolved.sig"},
}
"""All files of each signed artifact."""


def check_signatures(decision: Path, state: Path, work: Work) -> None:
    """Raise an exception unless gate and resolve signed their outputs, these contain nothing else, and signed steps
    lead from the state that resolve read to the decision. Without keys, verify nothing.
    """
    trusted = stage_signing.trusted()
    if trusted is None:
        return
    signing.check_file(trusted, decision / "decision.json", "decision", "The decision")
    signing.check_file(trusted, state / "resolved.json", "resolved", "The state that resolve read")
    verdict = contracts.read_record("decision", decision / "decision.json")
    if verdict.get("page") != contracts.file_digest(decision / "page.html"):
        raise PermissionError("The decision's page was changed after it was signed. Run again to recreate it.")
    _check_steps(
        trusted, decision / lineage.FILE, verdict, contracts.read_record("resolved", state / "resolved.json"), work
    )
    for name, files in SIGNED.items():
        _check_files(work, name, files)
    if "model" in work.inputs:
        _check_files(work, "model", None)


def _check_steps(trusted: Verifier, file: Path, verdict: dict[str, Any], resolved: dict[str, Any], work: Work) -> None:
    """Raise a PermissionError unless signed steps lead from the state that resolve read to the decision, with the same
    count of evaluations on the locked test set.
    """
    if not verdict.get("lineage") or not file.is_file():
        raise PermissionError(
            "The decision does not contain the signed results of the steps behind it: it was written by a version of "
            "medloop that did not sign them, or they were removed. Run again to recreate it."
        )
    data = file.read_bytes()
    if contracts.digest(data) != verdict["lineage"]:
        raise PermissionError(
            "The results of the steps behind the decision were changed after they were signed. Run again."
        )
    lineage.check_begin(lineage.check(work.store, trusted, data, verdict), resolved)
    budget = verdict["budget"]
    before = budget["spent"] - budget["error_at_this_look"]
    if budget["look"] != resolved["looks"] or not math.isclose(before, resolved["spent"], abs_tol=1e-9):
        raise PermissionError(
            f"The decision is evaluation {budget['look']} on the locked test set, but its run began with evaluation "
            f"{resolved['looks']}. Nothing was released; run again."
        )


def check_report(verdict: dict[str, Any], work: Work, trusted: Verifier | None) -> None:
    """Raise an exception unless the decision's report is in the store, unchanged, and has the same subject."""
    manifest = Manifest.decode(work.store.get(verdict["report"]), "the report")
    work.store.fetch_all(blob.digest for blob in manifest.files.values())
    if "metrics.json" not in manifest.files:
        raise RefusedError("The decision's report contains no metrics.json. Evaluate the model again.")
    metrics = read_json(work.store.get(manifest.files["metrics.json"].digest), "metrics.json")
    subject = metrics.get("subject") or {}
    differing = [name for name, value in verdict["subject"].items() if subject.get(name) != value]
    if differing or (trusted and _sizes_differ(work, manifest)):
        raise UnavailableError(
            f"The decision's report differs from the one it was made on, in: {', '.join(differing) or 'size'}. "
            "Nothing was released; run again."
        )


def _check_files(work: Work, name: str, files: set[str] | None) -> None:
    """Raise an exception unless an input consists of these files only, in the sizes that its manifest names."""
    manifest = Manifest.decode(work.store.get(work.inputs[name]), name)
    if (files is not None and set(manifest.files) != files) or _sizes_differ(work, manifest):
        raise PermissionError(
            f"The artifact {name} was changed: a file was added, removed, or has another size. Run again."
        )


def _sizes_differ(work: Work, manifest: Manifest) -> bool:
    blobs = list(manifest.files.values())
    paths = work.store.fetch_all(blob.digest for blob in blobs)
    return any(path.stat().st_size != blob.size for path, blob in zip(paths, blobs, strict=True))
