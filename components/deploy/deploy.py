"""Release an approved model: append an entry to the release log, which every server follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from components.deploy import card
from components.shared import contracts
from components.shared.contracts import In, OneOf
from components.shared.errors import UnavailableError
from components.shared.imaging.views import blank_views
from components.shared.inference import Model
from components.shared.ledger import release_log, stage_signing
from components.shared.ledger.approvals import AWAITING, require_approval
from components.shared.ledger.model_registry import project
from components.shared.runtime import verify_inputs
from components.shared.runtime.events import event
from components.shared.runtime.notify import notify

if TYPE_CHECKING:
    from components.shared.runtime.work import Work


def deploy(
    decision: In,
    model: In,
    state: In,
    work: Work,
    *,
    run: str = "",
    by: str = "",
    runtime: Annotated[str, OneOf(("onnxruntime",))] = "onnxruntime",
) -> dict[str, Any]:
    """Release an approved model. Require an approval of this model, compared with the model in service now.

    A decision that awaits a person's approval requires a valid approval. If public keys are set, inputs that are
    unsigned, signed with another key, or changed are refused.

    run: id of the run; the run of this step by default
    by: person or service that started the run
    runtime: runtime that serves the model
    """
    run = run or work.run
    verify_inputs.check_signatures(decision, state, work)
    verdict = contracts.read_record("decision", decision / "decision.json")
    resolved = contracts.read_record("resolved", state / "resolved.json")
    _check_decision(verdict, resolved, work.inputs["model"])
    verify_inputs.check_report(verdict, work, stage_signing.trusted())
    awaited = verdict["outcome"] == AWAITING
    approval = require_approval(work.store, work.inputs["decision"], verdict) if awaited else None
    log = release_log.read_log(work.store)
    service = release_log.in_service(log)
    if service and service.record["model"] == work.inputs["model"]:
        event("unchanged", "deploy", version=service.version)
        project(log, work.store.uri)  # an earlier attempt may have stopped before it updated the registry
        return _values("unchanged", service.version, f"This model is already in service, as {service.version}.")
    if rollback := release_log.withdrawn(log).get(work.inputs["model"]):
        event("withheld", "deploy", entry=rollback.number)
        return _values(
            "withheld",
            service.version if service else "",
            f"Not released: this model was rolled back by {rollback.record['by']} ({rollback.record['reason']}). Only "
            "a person can release it again, with `medloop promote`.",
        )
    if _has_changed(log, resolved["head"], awaited):
        raise UnavailableError(
            f"The release log has changed since this run began: entry {len(log)} was written by another run or person. "
            "Nothing was released; run again to compare with the model that is in service now."
        )
    if awaited and release_log.awaited(log, work.inputs["decision"]) is None:
        raise UnavailableError(
            f"The release log has no entry in which the decision {work.inputs['decision'][:12]} awaits approval: its "
            "run stopped before it ended, or its model was refused later. Nothing was released; run again."
        )
    in_service = service.record["model"] if service else ""
    if verdict["subject"]["champion"] != in_service:
        raise UnavailableError(
            f"The decision compares with {verdict['subject']['champion'][:12] or 'no model'}, but the model in service "
            f"is {in_service[:12] or 'none'}. Nothing was released; run again to compare with the model in service."
        )
    work.store.require_create_once()
    precision = verdict["subject"]["precision"]
    _check_inference(Model(model, precision))
    version = f"v{len(release_log.versions(log)) + 1}"
    sentence = f"{version}: {verdict['sentence']}"
    if approval:
        result = verdict["sentence"].partition(": ")[2] or verdict["sentence"]
        sentence = f"{version}: Approved by {approval['by']} ({approval['reason'].rstrip('.')}): {result}"
    record = {
        "version": version,
        "model": work.inputs["model"],
        "runtime": runtime,
        "precision": precision,
        "decision": work.inputs["decision"],
        "report": verdict["report"],
        "dataset": verdict["subject"]["dataset"],
        "split": verdict["subject"]["split"],
        "policy": verdict["policy_digest"],
        "spent": verdict["budget"]["error_at_this_look"],
        **({"approval": approval} if approval else {}),
        **release_log.beginning(resolved),
        "run": run,
        "by": by,
        "sentence": sentence,
    }
    card_digest = card.store_card(work.store, version, record, verdict, service)
    entry = release_log.append(work.store, log, "release", **record, card=card_digest)
    project(release_log.read_log(work.store), work.store.uri)
    values = _values("released", version, sentence)
    notify({**values, "run": run, "entry": entry.number})
    return values


def _values(outcome: str, version: str, sentence: str) -> dict[str, Any]:
    return {"outcome": outcome, "version": version, "sentence": sentence}


def _check_decision(verdict: dict[str, Any], resolved: dict[str, Any], model: str) -> None:
    if verdict["outcome"] not in ("approved", AWAITING):
        raise UnavailableError(
            f"The decision is {verdict['outcome']!r}, not 'approved'. Only approved models are released."
        )
    if verdict.get("shipped") is not True:
        raise UnavailableError(
            "The decision is on the trained model, not on the graph to ship. Pass the decision on the graph to ship."
        )
    if verdict["subject"]["model"] != model:
        raise UnavailableError(
            f"The decision approves the model {verdict['subject']['model'][:12]}, but this model is {model[:12]}. "
            "Pass the model that was approved."
        )
    if verdict["subject"]["champion"] != resolved["seen"]["champion"]:
        raise UnavailableError(
            "The decision compares with another model than the one in service when this run began. Run again to "
            "compare with the model that is in service now."
        )


def _has_changed(log: list[release_log.Entry], head: str, awaited: bool) -> bool:
    """Return whether the log has relevant entries after the head that the run began with.

    While a model awaits approval, refusals and requests for approval of other models, and seals, are not relevant.
    """
    hashes = ["", *(entry.hash for entry in log)]
    if head not in hashes:
        return True
    since = log[hashes.index(head) :]
    return any(not (awaited and entry.kind in ("refusal", "awaiting", "seal")) for entry in since)


def _check_inference(model: Model) -> None:
    """Run the model once before its release; raise UnavailableError if its output is not finite."""
    shape = blank_views(1, model.preprocess).shape
    views = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    if not np.isfinite(model.probabilities(model(views).logits)).all():
        raise UnavailableError(
            "The model returned probabilities that are not finite for a test image. It was not released."
        )
