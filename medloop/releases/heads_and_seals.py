"""Heads and seals of the release log: remember the head outside the store, compare it, add a seal."""

from __future__ import annotations

import getpass
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.shared import environment
from components.shared.errors import RefusedError, UnavailableError, UsageError

if TYPE_CHECKING:
    from components.shared.ledger.release_log import Entry
    from components.shared.storage.store import Store
    from medloop.releases.log_verification import AuditResult
    from medloop.settings import Settings

MIN_DIGITS = 16
"""Minimum number of digits of a head's hash."""


def remembered_heads(settings: Settings, store: Store, result: AuditResult) -> dict[str, tuple[int, str]]:
    """Return the heads recorded outside the log, by location: entry number and hash."""
    from components.shared.ledger.model_registry import remembered_head

    heads = {}
    local = _recorded_heads(settings).get(store.uri)
    if local:
        heads[str(settings.heads_file)] = (int(local["entry"]), str(local["head"]))
    if settings.tracking.startswith("sqlite:///") and not Path(settings.tracking.removeprefix("sqlite:///")).exists():
        return heads  # a request would create the database
    environment.set_default("MLFLOW_TRACKING_URI", settings.tracking)
    try:
        remote = remembered_head(store.uri)
    except Exception as error:
        result.notes.append(f"The head on the tracking server could not be read: {str(error).splitlines()[0]}")
        remote = None
    if remote:
        heads["the tracking server"] = remote
    return heads


def parse_head(head: str) -> str:
    """Return the digits of a head entered by a user; raise UsageError if they are invalid."""
    digits = head.strip().lower().rstrip("….")
    if len(digits) < MIN_DIGITS or set(digits) - set("0123456789abcdef"):
        raise UsageError(
            f"The head is {head!r}; it must be {MIN_DIGITS} to 64 hexadecimal digits, as printed by "
            "`medloop audit head`. Copy it again."
        )
    return digits


def check_heads(result: AuditResult, log: list[Entry], heads: dict[str, tuple[int, str]]) -> None:
    """Add a problem for each recorded head that the log no longer contains."""
    for origin, (number, head) in heads.items():
        digits = parse_head(head)
        match = next((entry for entry in log if entry.hash.startswith(digits)), None)
        if match is None:
            last = f"The log ends with entry {log[-1].number}" if log else "The log is empty"
            as_entry = f", entry {number}" if number else ""
            result.problems.append(
                f"The log does not contain the head {digits[:MIN_DIGITS]}… (recorded in {origin}{as_entry}). {last}: "
                "it was truncated, or entries were changed."
            )
        elif number and match.number != number:
            result.problems.append(f"The head recorded in {origin} as entry {number} is now entry {match.number}.")
    if log and not heads:
        result.notes.append(
            "No head was recorded outside the log, so truncation could not be detected. The head is recorded now; "
            "also keep the output of `medloop audit head` elsewhere."
        )


def _recorded_heads(settings: Settings) -> dict[str, Any]:
    from components.shared.contracts import try_decode

    data = settings.heads_file.read_bytes() if settings.heads_file.is_file() else None
    return dict((try_decode("heads", data) or {}).get("heads", {}))


def record_head(settings: Settings, store: Store) -> None:
    """Record the head of the release log in the home; print a warning if the log lacks the recorded one."""
    from components.shared.ledger import release_log

    try:
        problem = remember(settings, store, release_log.read_chain(store))
    except (OSError, ValueError) as error:
        problem = f"The head of the release log was not recorded: {error}"
    if problem:
        sys.stderr.write(f"medloop: {problem}\n")


def remember(settings: Settings, store: Store, log: list[Entry], accept: bool = False) -> str:
    """Record the log's head in the home; return a sentence if the log lacks the recorded one, else ""."""
    from components.shared.contracts import write_record
    from medloop.settings import prepare_home

    heads = _recorded_heads(settings)
    recorded = heads.get(store.uri)
    if recorded and not accept and not any(entry.hash == recorded["head"] for entry in log):
        return (
            f"The release log lacks entry {recorded['entry']} as recorded in {settings.heads_file}: it was truncated, "
            "or entries were changed. Run `medloop audit verify` for details. If you restarted the log yourself: "
            "medloop audit head --accept"
        )
    if log and (not recorded or recorded["head"] != log[-1].hash):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        heads[store.uri] = {"entry": log[-1].number, "head": log[-1].hash, "at": now}
        prepare_home(settings)
        part = settings.heads_file.with_name(f"{settings.heads_file.name}.part")
        write_record("heads", part, {"heads": heads})
        part.replace(settings.heads_file)
    return ""


def put_seal(settings: Settings, store: Store, head: str, reason: str) -> str:
    """Add an entry that confirms all entries up to this head, and return a sentence about it."""
    from components.shared.ledger import release_log, signing

    signer = signing.signer()
    if signer is None:
        raise UnavailableError(
            f"{signing.VARIABLE} is not set, but a seal is a signature. Create a key: medloop keys pair"
        )
    if not reason.strip():
        raise UsageError("A seal needs a reason: who reviewed the entries, and why. Give one with --reason.")
    log = release_log.read_chain(store)
    if not log:
        raise RefusedError(
            "The release log has 0 entries, so there is nothing to seal. Its first entry will be signed."
        )
    if not log[-1].hash.startswith(parse_head(head)):
        raise RefusedError(
            f"The head of the release log is {log[-1].hash}, entry {len(log)}, but --head is {head!r}. Review the "
            "entries after it, and pass the head up to which you reviewed."
        )
    verifier = signing.verifier() or signing.trusting(signer)
    for entry in log:
        if str(entry.record.get("signer", "")) in verifier.keys:
            signing.check_record(verifier, "release", entry.data, f"Entry {entry.number} of the release log")
    by = getpass.getuser()
    sentence = f"{by} confirms entries 1 to {len(log)}."
    release_log.append(store, log, "seal", reason=reason, by=by, run="", sentence=sentence)
    remember(settings, store, release_log.read_log(store))
    return f"Entries 1 to {len(log)} were sealed with the key {signer.id}, by entry {len(log) + 1}."
