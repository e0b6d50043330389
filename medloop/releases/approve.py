"""A person's approval of what a run left waiting: written down first, then released by a small pipeline of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.shared.errors import RefusedError, UsageError
from components.shared.ledger import release_log
from components.shared.ledger.approvals import AWAITING, approve, expired, newest
from components.shared.storage.store import Store
from medloop.runner.explain import decided, decision
from medloop.runner.run import Run, Watcher, start
from medloop.settings import Settings


def write(store: Store, run: Run, by: str, reason: str, days: int) -> dict[str, Any]:
    """Write the approval of what this run left waiting, or take the one that still holds; gives its record.

    It holds for `days` days, or for as many as the policy says with 0.
    """
    if not by.strip() or not reason.strip():
        raise UsageError("An approval needs a name and a reason. Give them with --by NAME and --reason TEXT.")
    verdict = decision(store, run)
    if verdict is None:
        raise RefusedError(
            f"The run {run.id} {run.record['outcome']} before a decision, so there is nothing to approve."
        )
    if verdict["outcome"] != AWAITING:
        raise RefusedError(
            f"The run {run.id} awaits no approval. {verdict['sentence']}"
            + (
                " What was refused cannot be approved: mend what failed, or change the policy, and run again."
                if verdict["outcome"] == "refused"
                else " The policy asked for none."
            )
        )
    limit = int(verdict["policy"]["approval"]["valid_days"])
    if not 0 <= days <= limit:
        raise UsageError(f"--days is {days}, and must be from 1 to {limit}, which the policy allows.")
    log, digest = release_log.read_log(store), decided(run)
    _still_fits(log, verdict)
    entry = release_log.awaited(log, digest)
    if entry is not None and entry.record.get("run") != run.id:
        raise RefusedError(
            f"The release log says that this decision waits for the run {entry.record.get('run')}, and not for the run "
            f"{run.id}. Nothing was approved; look at that run, and approve it by its id."
        )
    if entry is None:
        raise RefusedError(
            f"The release log does not say that the decision of the run {run.id} waits for approval: the run broke off "
            "before it ended, its model was refused since, or something else came into service meanwhile. Nothing was "
            "approved; run again."
        )
    release_log.check_writable(log)
    before = newest(store, digest)
    if before and not expired(before):
        return before
    return approve(store, digest, verdict, by.strip(), reason.strip(), days or limit)


def _still_fits(log: list[release_log.Entry], verdict: Mapping[str, Any]) -> None:
    """Refuse where what was judged is in service already, or was compared with another model than the one there."""
    service = release_log.in_service(log)
    now = service.record["model"] if service else ""
    if service and now == verdict["subject"]["model"]:
        raise RefusedError(f"This very model is in service already, as {service.version}. Nothing was changed.")
    if now != verdict["subject"]["champion"]:
        raise RefusedError(
            f"The decision compares with {verdict['subject']['champion'][:12] or 'no model'}, and in service is now "
            f"{now[:12] or 'none'}. Nothing was approved; run again to be judged against what is in service."
        )


def release(
    settings: Settings, store: Store, run: Run, by: str, runner: str, images: Mapping[str, str], watcher: Watcher
) -> Run:
    """Release what was approved, by deploy alone; gives that run."""
    resolved, verdict = run.last("resolve"), decision(store, run)
    if resolved is None or verdict is None:
        raise RefusedError(f"The run {run.id} does not say what it resolved and decided. Run again.")
    arguments = {
        "decision": decided(run),
        "model": verdict["subject"]["model"],
        "state": resolved["outputs"]["state"],
        "run": run.id,
    }
    return start(settings, arguments, runner, images, watcher, pipeline="release", by=by)
