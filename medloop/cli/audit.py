"""`medloop audit`: check, remember and vouch for the release log."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from components.shared.errors import RefusedError
from medloop.cli.options import AsJson, Reason

if TYPE_CHECKING:
    pass

from medloop.releases.audit import check_heads, heads, put_seal, remember

app = typer.Typer(
    name="audit",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check that the release log is as it was written.",
)


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
    from components.shared.ledger import signing
    from components.shared.storage.store import open_store
    from medloop.releases.examination import examine, told
    from medloop.settings import read_settings

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
    from components.shared.ledger import release_log
    from components.shared.storage.store import open_store
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    log = release_log.read_chain(store)
    if not log:
        raise RefusedError(f"The release log of {store.uri} has 0 entries, so it has no head. Release something first.")
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
    from components.shared.storage.store import open_store
    from medloop.settings import read_settings

    settings = read_settings()
    typer.echo(put_seal(settings, open_store(settings.store), head, reason))
