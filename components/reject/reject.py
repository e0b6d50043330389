"""Ends a run whose model does not go into service now: an entry in the log that says why, and a notification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.shared import contracts
from components.shared.contracts import In
from components.shared.errors import UnavailableError
from components.shared.ledger import release_log
from components.shared.runtime import proof
from components.shared.runtime.events import event
from components.shared.runtime.notify import notify

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

ENTRIES = {"refused": "refusal", "awaiting approval": "awaiting"}
"""What the log calls the outcomes that end a run here."""


def reject(decision: In, state: In, work: Work, *, run: str = "", by: str = "") -> dict[str, Any]:
    """Write down that a model was refused, or that it waits for a person's approval, and why.

    What is in service stays as it is.

    run: the run that asked; the one that the step belongs to by default
    by: who started it
    """
    run = run or work.run
    verdict = contracts.read_record("decision", decision / "decision.json")
    resolved = contracts.read_record("resolved", state / "resolved.json")
    proof.signed_and_whole(decision, state, work)
    outcome = verdict["outcome"]
    if outcome not in ENTRIES:
        raise UnavailableError(
            f"The decision is {outcome!r}, and only what is {' or '.join(ENTRIES)} ends here. The rest is for deploy."
        )
    log = release_log.read_log(work.store)
    if release_log.key_id(log) not in ("", resolved["key_id"]):
        raise UnavailableError(
            "The hash key was rotated since this run began, so its split no longer counts. Nothing was written down; "
            "run again."
        )
    service = release_log.in_service(log)
    subject = verdict["subject"]
    if outcome != "refused" and service and service.record["model"] == subject["model"]:  # approved, and asked again
        return {
            "outcome": "unchanged",
            "version": service.version,
            "sentence": f"This very model is in service already, as {service.version}.",
        }
    stays = f"{service.version} stays in service." if service else "Nothing is in service."
    newest = log[-1].record if log else {}
    if (newest.get("request"), newest.get("decision")) != (resolved["request"], work.inputs["decision"]):
        # A repetition is no second decision; what came out otherwise, because the work had to be done anew, is one.
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
        "sentence": f"{verdict['sentence']} {stays}",
    }
