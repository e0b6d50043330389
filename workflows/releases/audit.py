"""The audit's commands: examine the release log, keep its head where the log is not, seal it."""

from __future__ import annotations

import getpass
import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflows.options import AsJson, Reason

if TYPE_CHECKING:
    from components.shared.releases import Entry
    from components.shared.store import Store
    from workflows.releases.examination import Found
    from workflows.settings import Settings

app = typer.Typer(
    name="audit",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check that the release log is as it was written.",
)

LEAST = 16
"""So many digits of a hash are enough to name a head."""


@app.command(short_help="Look for changed, missing, reordered or cut-off entries.")
def verify(
    head: Annotated[str, typer.Option(help="A head that was written down: the log must still hold it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Look for entries of the release log that were changed, removed, put in another order or cut off at its end, and
    for decisions, reports, models and cards that they name and the store has no more, or not as they were.

    Signatures are checked where MEDLOOP_VERIFY_KEYS is set. A cut-off end is found by the heads that were written down:
    the one given, that of this home, and that of the tracking server. Exit status 1: something is wrong.

    \b
        medloop audit verify --head 3f9a1c2b7d40e5f6
    """
    from components.shared import signing
    from components.shared.store import open_store
    from workflows.releases.examination import examine, told
    from workflows.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    found, log = examine(store, signing.verifier())
    check_heads(found, log, {**heads(settings, store, found), **({"you name": (0, head)} if head else {})})
    if not found.problems:
        try:
            remember(settings, store, log)
        except OSError as error:
            found.notes.append(
                f"The head was not written down in {settings.heads_file} ({error.strerror}). Keep what `medloop audit "
                "head` prints elsewhere, or make that directory writable."
            )
    typer.echo(json.dumps(asdict(found), indent=1) if as_json else told(found, store))
    if found.problems:
        raise typer.Exit(1)


@app.command(name="head", short_help="Print the hash of the newest entry, to be kept elsewhere.")
def show_head(
    accept: Annotated[
        bool, typer.Option("--accept", help="Remember this head, though the log has lost the one remembered.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the number, date and hash of the newest entry. Who keeps that line can tell later whether anything before
    it was changed, or anything up to it was cut off: `medloop audit verify --head HASH`.
    """
    from components.shared import releases
    from components.shared.store import open_store
    from workflows.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    log = releases.read_chain(store)
    if not log:
        raise ValueError(f"The release log of {store.uri} has 0 entries, so it has no head. Release something first.")
    lost = remember(settings, store, log, accept)
    newest = log[-1]
    if as_json:
        about = {"store": store.uri, "entry": newest.number, "at": newest.record["at"], "head": newest.hash}
        typer.echo(json.dumps({**about, "problem": lost}, indent=1))
    else:
        typer.echo(f"entry {newest.number} of {newest.record['at']}, release log of {store.uri}\n{newest.hash}")
    if lost:
        if not as_json:
            typer.echo(lost, err=True)
        raise typer.Exit(1)


@app.command(short_help="Vouch for all entries up to the head with the signing key.")
def seal(
    head: Annotated[str, typer.Option(help="The head up to which you looked at the log: `medloop audit head`.")],
    reason: Reason,
) -> None:
    """Add a signed entry that vouches for all entries before it: for a log that began before entries were signed, or
    before a signing key is trusted no more. Look at the entries first: `medloop models`, `medloop audit verify`.

    \b
        medloop audit seal --head 3f9a1c2b7d40e5f6 --reason "entries are signed from now on; Dr. B read all 14"
    """
    from components.shared.store import open_store
    from workflows.settings import read_settings

    settings = read_settings()
    typer.echo(put_seal(settings, open_store(settings.store), head, reason))


def heads(settings: Settings, store: Store, found: Found) -> dict[str, tuple[int, str]]:
    """The heads that were written down where the log is not, by who remembers them: number (or 0) and hash."""
    from components.deploy.registry import remembered

    kept = {}
    here = _kept(settings).get(store.uri)
    if here:
        kept[f"{settings.heads_file} remembers"] = (int(here["entry"]), str(here["head"]))
    if settings.tracking.startswith("sqlite:///") and not Path(settings.tracking.removeprefix("sqlite:///")).exists():
        return kept  # asked, it would be made
    os.environ.setdefault("MLFLOW_TRACKING_URI", settings.tracking)
    try:
        there = remembered(store.uri)
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
        raise ValueError(
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
    from components.shared import releases

    try:
        lost = remember(settings, store, releases.read_chain(store))
    except (OSError, ValueError) as error:
        lost = f"The head of the release log was not written down: {error}"
    if lost:
        sys.stderr.write(f"medloop: {lost}\n")


def remember(settings: Settings, store: Store, log: list[Entry], accept: bool = False) -> str:
    """Write the log's head down in this home; gives a sentence where the log has lost the one that stands there."""
    from components.shared.contracts import write_record
    from workflows.settings import prepare_home

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
    from components.shared import releases, signing

    ours = signing.signer()
    if ours is None:
        raise RuntimeError(f"{signing.VARIABLE} is not set, and a seal is a signature. Make one: medloop keys pair")
    if not reason.strip():
        raise ValueError("A seal needs a reason: who has looked at the entries, and why. Give one with --reason.")
    log = releases.read_chain(store)
    if not log:
        raise ValueError("The release log has 0 entries: there is nothing to seal. Its first entry will be signed.")
    if not log[-1].hash.startswith(named(head)):
        raise ValueError(
            f"The head of the release log is {log[-1].hash}, entry {len(log)}, and you name {head!r}. Look at the "
            "entries since then, and name the head up to which you looked."
        )
    own = signing.verifier() or signing.trusting(ours)
    for entry in log:
        if str(entry.record.get("signer", "")) in own.keys:
            signing.check_record(own, "release", entry.data, f"Entry {entry.number} of the release log")
    by = getpass.getuser()
    sentence = f"{by} vouches for entries 1 to {len(log)}."
    releases.append(store, log, "seal", reason=reason, by=by, run="", sentence=sentence)
    remember(settings, store, releases.read_log(store))
    return f"Entries 1 to {len(log)} are sealed with the key {ours.id}, by entry {len(log) + 1}."
