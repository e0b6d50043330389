"""A person's approval of a decision that waits for one: who, why, until when. Each is written once, signed where a key
is set, and believed only with a trusted signature where public keys are set.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from components.shared.contracts import decode, encode
from components.shared.errors import DamagedError, UnavailableError
from components.shared.ledger import signing
from components.shared.storage.store import Store, record_number

FOLDER = "approvals"
AWAITING = "awaiting approval"
DIGITS, RECORD_BYTES = 4, 2**20
"""Digits of the number that names an approval, and the maximum size of one."""
AHEAD = timedelta(hours=1)
"""By how much the clock of who approved may be ahead."""


def approve(store: Store, decision: str, verdict: Mapping[str, Any], by: str, reason: str, days: int) -> dict[str, Any]:
    """Write an approval of this decision, good for so many days; FileExistsError when somebody else was first."""
    now = datetime.now(UTC)
    record = {
        "decision": decision,
        "model": verdict["subject"]["model"],
        "by": by,
        "reason": reason,
        "at": now.isoformat(timespec="seconds"),
        "until": (now + timedelta(days=days)).isoformat(timespec="seconds"),
    }
    known = store.numbered(f"{FOLDER}/{decision}", DIGITS)
    number = record_number(known[-1], f"{FOLDER}/{decision}", DIGITS) + 1 if known else 1
    try:
        store.create(
            f"{FOLDER}/{decision}/{number:0{DIGITS}d}.json", encode("approval", signing.signed("approval", record))
        )
    except FileExistsError:
        raise FileExistsError(
            f"Somebody else approved the decision {decision[:12]} at this moment. Nothing was changed; do it again to "
            "release it."
        ) from None
    return record


def newest(store: Store, decision: str) -> dict[str, Any] | None:
    """The last approval of this decision, or None; one that is damaged is an error."""
    names = store.numbered(f"{FOLDER}/{decision}", DIGITS)
    data = store.read(names[-1], RECORD_BYTES) if names else None
    if data is None:
        return None
    if trusted := signing.verifier():
        signing.check_record(trusted, "approval", data, f"The approval {names[-1]}")
    return {
        name: value for name, value in decode("approval", data, names[-1]).items() if name not in ("kind", "schema")
    }


def expired(approval: Mapping[str, Any]) -> bool:
    """Whether its time is over."""
    return datetime.now(UTC) > moment(approval, "until")


def moment(approval: Mapping[str, Any], name: str) -> datetime:
    """One of its times, or a ValueError where it is none, or does not say in which zone it is."""
    try:
        found = datetime.fromisoformat(approval[name])
    except (KeyError, TypeError, ValueError):
        found = None
    if found is None or found.tzinfo is None:
        raise DamagedError(
            f"The approval by {approval.get('by')} says {approval.get(name)!r} for {name}, which is no time with a "
            "zone: it was changed. Restore it from a copy."
        )
    return found


def granted(store: Store, decision: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The approval by which this decision counts, or a RuntimeError that says why there is none."""
    how = "Approve it with: medloop approve RUN --by NAME --reason TEXT"
    approval = newest(store, decision)
    if approval is None:
        raise UnavailableError(
            f"The decision {decision[:12]} awaits a person's approval, and there is none. Nothing was released. {how}"
        )
    wrong = [name for name in ("by", "reason", "at", "until") if not str(approval.get(name) or "").strip()]
    if wrong:
        raise UnavailableError(f"The approval of {decision[:12]} lacks {', '.join(wrong)}. Nothing was released. {how}")
    if (approval.get("decision"), approval.get("model")) != (decision, verdict["subject"]["model"]):
        raise UnavailableError(
            f"The approval by {approval['by']} is of the decision {str(approval.get('decision'))[:12]} on the model "
            f"{str(approval.get('model'))[:12]}, and this is {decision[:12]} on {verdict['subject']['model'][:12]}. "
            f"Nothing was released. {how}"
        )
    days = verdict.get("policy", {}).get("approval", {}).get("valid_days")
    at, until = moment(approval, "at"), moment(approval, "until")
    if at > datetime.now(UTC) + AHEAD or (days is not None and until - at > timedelta(days=days)):
        raise UnavailableError(
            f"The approval by {approval['by']} holds from {approval['at']} to {approval['until']}, and may begin now "
            f"at the latest and last {days or 3650} days. Nothing was released. {how}"
        )
    if expired(approval):
        raise UnavailableError(
            f"The approval by {approval['by']} ended at {approval['until']}. Nothing was released. {how}"
        )
    return approval
