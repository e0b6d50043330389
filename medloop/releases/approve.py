"""Approval of a model that awaits it: record the approval, then release the model with a small pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.shared.errors import RefusedError, UsageError
from components.shared.ledger import release_log
from components.shared.ledger.approvals import AWAITING, approve, expired, newest
from components.shared.storage.store import Store
from medloop.runner.explain import decision, decision_digest
from medloop.runner.run import Run, Watcher, start
from medloop.settings import Settings


def write(store: Store, run: Run, by: str, reason: str, days: int) -> dict[str, Any]:
    """Record the approval of the run's model and return it; return an existing one that is still valid.

    It is valid for `days` days; 0 is the policy's limit.
    """
    if not by.strip() or not reason.strip():
        raise UsageError("An approval needs a name and a reason. Give them with --by NAME and --reason TEXT.")
    verdict = decision(store, run)
    if verdict is None:
        raise RefusedError(
            f"The run {run.id} has nothing to approve: it has the outcome {run.record['outcome']!r} and reached no "
            "decision."
        )
    if verdict["outcome"] != AWAITING:
        raise RefusedError(
            f"The run {run.id} does not await approval. {verdict['sentence']}"
            + (
                " A refused model cannot be approved. Fix what failed or change the policy, then run again."
                if verdict["outcome"] == "refused"
                else " The policy did not require an approval."
            )
        )
    limit = int(verdict["policy"]["approval"]["valid_days"])
    if not 0 <= days <= limit:
        raise UsageError(f"--days is {days}; the policy allows 1 to {limit}.")
    log, digest = release_log.read_log(store), decision_digest(run)
    _check_champion(log, verdict)
    entry = release_log.awaited(log, digest)
    if entry is not None and entry.record.get("run") != run.id:
        raise RefusedError(
            f"According to the release log, this decision belongs to the run {entry.record.get('run')}, not to the run "
            f"{run.id}. Nothing was approved. Review that run and approve it by its id."
        )
    if entry is None:
        raise RefusedError(
            f"According to the release log, the decision of the run {run.id} does not await approval: the run did not "
            "finish, its model was refused later, or another model was released in the meantime. Nothing was approved. "
            "Run again."
        )
    release_log.check_writable(log)
    existing = newest(store, digest)
    if existing and not expired(existing):
        return existing
    return approve(store, digest, verdict, by.strip(), reason.strip(), days or limit)


def already_in_service(store: Store, run: Run) -> str:
    """Return a sentence if the model of the run is already in service, or ""."""
    verdict, service = decision(store, run), release_log.in_service(release_log.read_log(store))
    if verdict and service and service.record["model"] == verdict["subject"]["model"]:
        return f"This model is already in service as {service.version}. Nothing was changed."
    return ""


def _check_champion(log: list[release_log.Entry], verdict: Mapping[str, Any]) -> None:
    """Raise RefusedError if the model was compared with another than the one in service."""
    service = release_log.in_service(log)
    current = service.record["model"] if service else ""
    if current != verdict["subject"]["champion"]:
        raise RefusedError(
            f"The decision compares with {verdict['subject']['champion'][:12] or 'no model'}, but the model in service "
            f"is now {current[:12] or 'none'}. Nothing was approved. Run again to compare with the model in service."
        )


def release(
    settings: Settings, store: Store, run: Run, by: str, runner: str, images: Mapping[str, str], watcher: Watcher
) -> Run:
    """Release the approved model and return the run that did it."""
    resolved, verdict = run.last("resolve"), decision(store, run)
    if resolved is None or verdict is None:
        raise RefusedError(f"The steps resolve and gate of the run {run.id} are not recorded. Run again.")
    arguments = {
        "decision": decision_digest(run),
        "model": verdict["subject"]["model"],
        "state": resolved["outputs"]["state"],
        "run": run.id,
    }
    return start(settings, arguments, runner, images, watcher, pipeline="release", by=by)
