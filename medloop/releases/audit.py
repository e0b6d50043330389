"""The audit's commands: examine the release log, keep its head where the log is not, seal it."""

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
    from medloop.releases.examination import Found
    from medloop.settings import Settings

LEAST = 16
"""So many digits of a hash are enough to name a head."""


def heads(settings: Settings, store: Store, found: Found) -> dict[str, tuple[int, str]]:
    """The heads that were written down where the log is not, by who remembers them: number (or 0) and hash."""
    from components.shared.ledger.model_registry import remembered_head

    kept = {}
    here = _kept(settings).get(store.uri)
    if here:
        kept[f"{settings.heads_file} remembers"] = (int(here["entry"]), str(here["head"]))
    if settings.tracking.startswith("sqlite:///") and not Path(settings.tracking.removeprefix("sqlite:///")).exists():
        return kept  # asked, it would be made
    environment.set_default("MLFLOW_TRACKING_URI", settings.tracking)
    try:
        there = remembered_head(store.uri)
    except Exception as error:
        found.notes.append(f"The tracking server was not asked for the head it remembers: {str(error).splitlines()[0]}")
        there = None
    if there:
        kept["the tracking server remembers"] = there
    return kept


def named(head: str) -> str:
    """The digits of a head as somebody wrote it, or a ValueError: a slip of the pen is no sign of a changed log."""
    digits = head.strip().lower().rstrip("….")
    if len(digits) < LEAST or set(digits) - set("0123456789abcdef"):
        raise UsageError(
            f"The head is {head!r}, and must be {LEAST} to 64 digits, 0 to 9 and a to f, as `medloop audit head` "
            "prints them. Copy it again."
        )
    return digits


def check_heads(found: Found, log: list[Entry], kept: dict[str, tuple[int, str]]) -> None:
    """Add a problem for each head that the log does not hold any more."""
    for who, (number, wanted) in kept.items():
        short = named(wanted)
        at = next((entry for entry in log if entry.hash.startswith(short)), None)
        if at is None:
            last = f"The log now ends with entry {log[-1].number}" if log else "The log is empty now"
            as_entry = f" as entry {number}" if number else ""
            found.problems.append(
                f"The log does not hold the head {short[:LEAST]}… that {who}{as_entry}. {last}: entries at its end "
                "were cut off, or some were changed."
            )
        elif number and at.number != number:
            found.problems.append(f"The head that {who} as entry {number} is entry {at.number} now.")
    if log and not kept:
        found.notes.append(
            "No head was written down elsewhere, so nobody could tell whether entries at the end were cut off. It is "
            "now; keep what `medloop audit head` prints, too."
        )


def _kept(settings: Settings) -> dict[str, Any]:
    from components.shared.contracts import try_decode

    data = settings.heads_file.read_bytes() if settings.heads_file.is_file() else None
    return dict((try_decode("heads", data) or {}).get("heads", {}))


def write_down_head(settings: Settings, store: Store) -> None:
    """Write down the head of the release log where the log is not; say so where it has lost the one of before."""
    from components.shared.ledger import release_log

    try:
        lost = remember(settings, store, release_log.read_chain(store))
    except (OSError, ValueError) as error:
        lost = f"The head of the release log was not written down: {error}"
    if lost:
        sys.stderr.write(f"medloop: {lost}\n")


def remember(settings: Settings, store: Store, log: list[Entry], accept: bool = False) -> str:
    """Write the log's head down in this home; gives a sentence where the log has lost the one that stands there."""
    from components.shared.contracts import write_record
    from medloop.settings import prepare_home

    kept = _kept(settings)
    before = kept.get(store.uri)
    if before and not accept and not any(entry.hash == before["head"] for entry in log):
        return (
            f"The release log no longer holds entry {before['entry']} as this home remembers it: entries were changed "
            "or cut off. `medloop audit verify` tells more; if you began it anew yourself: medloop audit head --accept"
        )
    if log and (not before or before["head"] != log[-1].hash):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        kept[store.uri] = {"entry": log[-1].number, "head": log[-1].hash, "at": now}
        prepare_home(settings)
        part = settings.heads_file.with_name(f"{settings.heads_file.name}.part")
        write_record("heads", part, {"heads": kept})
        part.replace(settings.heads_file)
    return ""


def put_seal(settings: Settings, store: Store, head: str, reason: str) -> str:
    """Vouch for the log as it stands at this head; gives the sentence that says so."""
    from components.shared.ledger import release_log, signing

    ours = signing.signer()
    if ours is None:
        raise UnavailableError(f"{signing.VARIABLE} is not set, and a seal is a signature. Make one: medloop keys pair")
    if not reason.strip():
        raise UsageError("A seal needs a reason: who has looked at the entries, and why. Give one with --reason.")
    log = release_log.read_chain(store)
    if not log:
        raise RefusedError("The release log has 0 entries: there is nothing to seal. Its first entry will be signed.")
    if not log[-1].hash.startswith(named(head)):
        raise RefusedError(
            f"The head of the release log is {log[-1].hash}, entry {len(log)}, and you name {head!r}. Look at the "
            "entries since then, and name the head up to which you looked."
        )
    own = signing.verifier() or signing.trusting(ours)
    for entry in log:
        if str(entry.record.get("signer", "")) in own.keys:
            signing.check_record(own, "release", entry.data, f"Entry {entry.number} of the release log")
    by = getpass.getuser()
    sentence = f"{by} vouches for entries 1 to {len(log)}."
    release_log.append(store, log, "seal", reason=reason, by=by, run="", sentence=sentence)
    remember(settings, store, release_log.read_log(store))
    return f"Entries 1 to {len(log)} are sealed with the key {ours.id}, by entry {len(log) + 1}."
