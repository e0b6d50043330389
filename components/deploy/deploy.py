"""Puts an approved model into service: one entry in the release log, which every server follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from components.deploy import card
from components.shared import contracts
from components.shared.contracts import In, OneOf
from components.shared.errors import UnavailableError
from components.shared.imaging.views import blank_views
from components.shared.inference import Model
from components.shared.ledger import release_log, stage_keys
from components.shared.ledger.approvals import AWAITING, granted
from components.shared.ledger.model_registry import project
from components.shared.runtime import proof
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
    """Release an approved model. Refuses a decision that is not an approval of this very model, in these conditions.

    A decision that awaits a person's approval counts with that approval, while it lasts. Where public keys are set, it
    refuses what is unsigned, signed by somebody else, or changed since.

    run: the run that asks; the one that the step belongs to by default
    by: who started it
    runtime: what runs the model in service
    """
    run = run or work.run
    proof.signed_and_whole(decision, state, work)
    verdict = contracts.read_record("decision", decision / "decision.json")
    resolved = contracts.read_record("resolved", state / "resolved.json")
    _verify(verdict, resolved, work.inputs["model"])
    proof.same_report(verdict, work, stage_keys.trusted())
    awaited = verdict["outcome"] == AWAITING
    approval = granted(work.store, work.inputs["decision"], verdict) if awaited else None
    log = release_log.read_log(work.store)
    service = release_log.in_service(log)
    if service and service.record["model"] == work.inputs["model"]:
        event("unchanged", "deploy", version=service.version)
        project(log, work.store.uri)  # an earlier try may have ended between the log and its picture
        return {
            "outcome": "unchanged",
            "version": service.version,
            "sentence": f"This very model is in service already, as {service.version}.",
        }
    if rollback := release_log.withdrawn(log).get(work.inputs["model"]):
        event("withheld", "deploy", entry=rollback.number)
        return {
            "outcome": "withheld",
            "version": service.version if service else "",
            "sentence": f"Not released: this very model was taken out of service by {rollback.record['by']} "
            f"({rollback.record['reason']}). Only a person can put it back, with `medloop promote`.",
        }
    if _moved_on(log, resolved["head"], awaited):
        raise UnavailableError(
            f"The release log has moved on since this run began: entry {len(log)} was written by somebody else. "
            "Nothing was released; run again to be judged against what is in service now."
        )
    if awaited and release_log.awaited(log, work.inputs["decision"]) is None:
        raise UnavailableError(
            f"The release log does not say that the decision {work.inputs['decision'][:12]} waits for approval: its "
            "run broke off before it ended, or its model was refused since. Nothing was released; run again."
        )
    in_service = service.record["model"] if service else ""
    if verdict["subject"]["champion"] != in_service:
        raise UnavailableError(
            f"The decision compares with {verdict['subject']['champion'][:12] or 'no model'}, and in service is "
            f"{in_service[:12] or 'none'}. Nothing was released; run again to be judged against what is in service."
        )
    work.store.require_create_once()
    precision = verdict["subject"]["precision"]
    _try_out(Model(model, precision))
    version = f"v{len(release_log.versions(log)) + 1}"
    sentence = f"{version}: {verdict['sentence']}"
    if approval:
        shown = verdict["sentence"].partition(": ")[2] or verdict["sentence"]
        sentence = f"{version}: Approved by {approval['by']} ({approval['reason'].rstrip('.')}): {shown}"
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
    kept = card.keep(work.store, version, record, verdict, service)
    entry = release_log.append(work.store, log, "release", **record, card=kept)
    project(release_log.read_log(work.store), work.store.uri)
    notify({"outcome": "released", "version": version, "run": run, "sentence": sentence, "entry": entry.number})
    return {"outcome": "released", "version": version, "sentence": sentence}


def _verify(verdict: dict[str, Any], resolved: dict[str, Any], model: str) -> None:
    if verdict["outcome"] not in ("approved", AWAITING):
        raise UnavailableError(
            f"The decision is {verdict['outcome']!r}, not 'approved'. Only approved models are released."
        )
    if verdict.get("shipped") is not True:
        raise UnavailableError(
            "The decision is on a model as it was trained, and what would be shipped was not judged by it. Hand in the "
            "decision on the shipped graph."
        )
    if verdict["subject"]["model"] != model:
        raise UnavailableError(
            f"The decision approves the model {verdict['subject']['model'][:12]}, and this one is {model[:12]}. "
            "Hand in the model that was judged."
        )
    if verdict["subject"]["champion"] != resolved["seen"]["champion"]:
        raise UnavailableError(
            "The decision compares with another model in service than the one this run found. Run again to be judged "
            "against what is in service now."
        )


def _moved_on(log: list[release_log.Entry], head: str, awaited: bool) -> bool:
    """Whether the log has other entries than those that were there when the run began.

    While a model waits for a person, others may be refused or begin to wait, and the log may be sealed: that changes
    nothing for this one.
    """
    hashes = ["", *(entry.hash for entry in log)]
    if head not in hashes:
        return True
    since = log[hashes.index(head) :]
    return any(not (awaited and entry.kind in ("refusal", "awaiting", "seal")) for entry in since)


def _try_out(model: Model) -> None:
    """Run the model once before anyone depends on it."""
    shape = blank_views(1, model.preprocess).shape
    views = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    if not np.isfinite(model.probabilities(model(views).logits)).all():
        raise UnavailableError("The model gives no finite probabilities for a test image. It was not released.")
