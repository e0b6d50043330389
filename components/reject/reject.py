"""Ends a run whose model was refused: an entry in the log that says why, and a word to those who wait."""

from __future__ import annotations

from typing import Any

from components.shared import contracts, releases, signing
from components.shared.contracts import In
from components.shared.notify import notify
from components.shared.work import Work, event


def reject(decision: In, state: In, work: Work, *, run: str = "", by: str = "") -> dict[str, Any]:
    """Write down that a model was refused, and why. What is in service stays as it is.

    run: the run that asked; the one that the step belongs to by default
    by: who started it
    """
    run = run or work.run
    verdict = contracts.read_record("decision", decision / "decision.json")
    resolved = contracts.read_record("resolved", state / "resolved.json")
    if verdict["outcome"] == "approved":
        raise RuntimeError("The decision is an approval; it is for deploy, not for reject.")
    if trusted := signing.verifier():
        signing.check_file(trusted, decision / "decision.json", "decision", "The decision")
        signing.check_file(trusted, state / "resolved.json", "resolved", "What resolve found")
    log = releases.read_log(work.store)
    if releases.key_id(log) not in ("", resolved["key_id"]):
        raise RuntimeError(
            "The hash key was rotated since this run began, so its split no longer counts. Nothing was written down; "
            "run again."
        )
    service = releases.in_service(log)
    stays = f"{service.version} stays in service." if service else "Nothing is in service."
    if not (log and log[-1].record.get("request") == resolved["request"]):  # a repetition is not a second refusal
        subject = verdict["subject"]
        releases.append(
            work.store,
            log,
            "refusal",
            model=subject["model"],
            decision=work.inputs["decision"],
            report=verdict["report"],
            dataset=subject["dataset"],
            split=subject["split"],
            **releases.beginning(resolved),
            run=run,
            by=by,
            sentence=verdict["sentence"],
        )
    event("refused", "reject", sentence=verdict["sentence"])
    notify({"outcome": "refused", "run": run, "sentence": verdict["sentence"]})
    return {"version": service.version if service else "", "sentence": f"{verdict['sentence']} {stays}"}
