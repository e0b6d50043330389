"""End a run whose model is not released now: append an entry to the release log and send a notification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.shared import contracts
from components.shared.contracts import In
from components.shared.errors import UnavailableError
from components.shared.ledger import release_log
from components.shared.runtime import verify_inputs
from components.shared.runtime.events import event
from components.shared.runtime.notify import notify

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

ENTRIES = {"refused": "refusal", "awaiting approval": "awaiting"}
"""Kinds of log entries by outcome of the decision."""


def reject(decision: In, state: In, work: Work, *, run: str = "", by: str = "") -> dict[str, Any]:
    """Record that a model was refused or awaits a person's approval. The model in service does not change.

    run: id of the run; the run of this step by default
    by: person or service that started the run
    """
    run = run or work.run
    verdict = contracts.read_record("decision", decision / "decision.json")
    resolved = contracts.read_record("resolved", state / "resolved.json")
    verify_inputs.check_signatures(decision, state, work)
    outcome = verdict["outcome"]
    if outcome not in ENTRIES:
        raise UnavailableError(
            f"The decision is {outcome!r}; this stage records only {' or '.join(map(repr, ENTRIES))}. Use deploy."
        )
    log = release_log.read_log(work.store)
    if release_log.key_id(log) not in ("", resolved["key_id"]):
        raise UnavailableError(
            "The hash key was rotated since this run began, so its split is no longer valid. Nothing was recorded; run "
            "again."
        )
    service = release_log.in_service(log)
    subject = verdict["subject"]
    if outcome != "refused" and service and service.record["model"] == subject["model"]:  # approved earlier
        return {
            "outcome": "unchanged",
            "version": service.version,
            "sentence": f"This model is already in service, as {service.version}.",
        }
    status = f"{service.version} stays in service." if service else "No model is in service."
    newest = log[-1].record if log else {}
    if (newest.get("request"), newest.get("decision")) != (resolved["request"], work.inputs["decision"]):
        # A repeated run with the same decision is not recorded again.
        release_log.append(
            work.store,
            log,
            ENTRIES[outcome],
            model=subject["model"],
            decision=work.inputs["decision"],
            report=verdict["report"],
            dataset=subject["dataset"],
            split=subject["split"],
            spent=verdict["budget"]["error_at_this_look"],
            **release_log.beginning(resolved),
            run=run,
            by=by,
            sentence=verdict["sentence"],
        )
    event(outcome, "reject", sentence=verdict["sentence"])
    notify({"outcome": outcome, "run": run, "sentence": verdict["sentence"]})
    return {
        "outcome": outcome,
        "version": service.version if service else "",
        "sentence": f"{verdict['sentence']} {status}",
    }
