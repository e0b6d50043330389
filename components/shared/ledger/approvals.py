"""Approvals of decisions by a person. Each approval is written once and signed if a signing key is set; if public keys
are set, only signed approvals are valid.
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
"""Digits in the file name of an approval, and its maximum size."""
MAX_CLOCK_SKEW = timedelta(hours=1)
"""How far the clock of the approving person's machine may be ahead."""


def approve(store: Store, decision: str, verdict: Mapping[str, Any], by: str, reason: str, days: int) -> dict[str, Any]:
    """Write an approval of this decision for so many days; raise FileExistsError if another person was faster."""
    now = datetime.now(UTC)
    record = {
        "decision": decision,
        "model": verdict["subject"]["model"],
        "by": by,
        "reason": reason,
        "at": now.isoformat(timespec="seconds"),
        "until": (now + timedelta(days=days)).isoformat(timespec="seconds"),
    }
    folder = f"{FOLDER}/{decision}"
    names = store.numbered(folder, DIGITS)
    number = record_number(names[-1], folder, DIGITS) + 1 if names else 1
    try:
        store.create(f"{folder}/{number:0{DIGITS}d}.json", encode("approval", signing.sign("approval", record)))
    except FileExistsError:
        raise FileExistsError(
            f"Another person approved the decision {decision[:12]} at the same time. Nothing was changed; repeat the "
            "command to release it."
        ) from None
    return record


def newest(store: Store, decision: str) -> dict[str, Any] | None:
    """Return the newest approval of this decision, or None; raise an error if it is damaged."""
    names = store.numbered(f"{FOLDER}/{decision}", DIGITS)
    data = store.read(names[-1], RECORD_BYTES) if names else None
    if data is None:
        return None
    if trusted := signing.verifier():
        signing.check_record(trusted, "approval", data, f"The approval {names[-1]}")
    record = decode("approval", data, names[-1])
    return {name: value for name, value in record.items() if name not in ("kind", "schema")}


def expired(approval: Mapping[str, Any]) -> bool:
    """Return whether an approval has expired."""
    return datetime.now(UTC) > read_time(approval, "until")


def read_time(approval: Mapping[str, Any], name: str) -> datetime:
    """Return a time of an approval; raise DamagedError if it is not a time with a time zone."""
    try:
        time = datetime.fromisoformat(approval[name])
    except (KeyError, TypeError, ValueError):
        time = None
    if time is None or time.tzinfo is None:
        raise DamagedError(
            f"In the approval by {approval.get('by')}, {name} is {approval.get(name)!r}; it must be a time with a time "
            "zone. The approval was changed: restore it from a copy."
        )
    return time


def require_approval(store: Store, decision: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the valid approval of this decision; raise UnavailableError if there is none."""
    remedy = "Nothing was released. Approve it with: medloop approve RUN --by NAME --reason TEXT"
    approval = newest(store, decision)
    if approval is None:
        raise UnavailableError(f"The decision {decision[:12]} awaits a person's approval, but there is none. {remedy}")
    missing = [name for name in ("by", "reason", "at", "until") if not str(approval.get(name) or "").strip()]
    if missing:
        raise UnavailableError(f"The approval of {decision[:12]} lacks {', '.join(missing)}. {remedy}")
    if (approval.get("decision"), approval.get("model")) != (decision, verdict["subject"]["model"]):
        raise UnavailableError(
            f"The approval by {approval['by']} is of the decision {str(approval.get('decision'))[:12]} on the model "
            f"{str(approval.get('model'))[:12]}, not of {decision[:12]} on {verdict['subject']['model'][:12]}. {remedy}"
        )
    days = verdict.get("policy", {}).get("approval", {}).get("valid_days")
    at, until = read_time(approval, "at"), read_time(approval, "until")
    if at > datetime.now(UTC) + MAX_CLOCK_SKEW or (days is not None and until - at > timedelta(days=days)):
        raise UnavailableError(
            f"The approval by {approval['by']} is valid from {approval['at']} to {approval['until']}; it must not "
            f"begin in the future, nor be valid for more than {days or 3650} days. {remedy}"
        )
    if expired(approval):
        raise UnavailableError(f"The approval by {approval['by']} expired at {approval['until']}. {remedy}")
    return approval
