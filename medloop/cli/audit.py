"""`medloop audit`: verify and seal the release log."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from components.shared.errors import RefusedError
from medloop.cli.options import AsJson, Reason
from medloop.releases.heads_and_seals import check_heads, put_seal, remember, remembered_heads

app = typer.Typer(name="audit", no_args_is_help=True, rich_markup_mode=None, help="Verify and seal the release log.")


@app.command(short_help="Detect changed, missing, reordered or truncated entries.")
def verify(
    head: Annotated[
        str,
        typer.Option(help="Recorded head (hash of the newest entry at that time), which the log must still contain."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Detect entries of the release log that were changed, removed, reordered or truncated, and decisions, reports,
    models and model cards that are missing or changed.

    Signatures are verified if MEDLOOP_VERIFY_KEYS is set. Truncation is detected by comparison with recorded heads:
    --head, the one in MEDLOOP_HOME and the one on the tracking server. Exit status 1: the log is damaged.

    \b
        medloop audit verify --head 3f9a1c2b7d40e5f6
    """
    from components.shared.ledger import signing
    from components.shared.storage.store import open_store
    from medloop.releases.log_verification import describe, verify_log
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    result, log = verify_log(store, signing.verifier())
    heads = remembered_heads(settings, store, result)
    check_heads(result, log, {**heads, **({"--head": (0, head)} if head else {})})
    if not result.problems:
        try:
            remember(settings, store, log)
        except OSError as error:
            result.notes.append(
                f"The head could not be written to {settings.heads_file} ({error.strerror}). Make that directory "
                "writable, or keep the output of `medloop audit head` elsewhere."
            )
    typer.echo(json.dumps(asdict(result), indent=1) if as_json else describe(result, store))
    if result.problems:
        raise typer.Exit(1)


@app.command(name="head", short_help="Print the hash of the newest entry, to keep elsewhere.")
def show_head(
    accept: Annotated[
        bool, typer.Option("--accept", help="Record this head even though the log lacks the recorded one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the number, date and hash of the newest entry. Keep this line outside the store, to detect later changes
    with `medloop audit verify --head HASH`. Exit status 1: the log lacks the recorded head.
    """
    from components.shared.ledger import release_log
    from components.shared.storage.store import open_store
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    log = release_log.read_chain(store)
    if not log:
        raise RefusedError(f"The release log of {store.uri} has 0 entries, so it has no head. Release a model first.")
    problem = remember(settings, store, log, accept)
    newest = log[-1]
    if as_json:
        record = {"store": store.uri, "entry": newest.number, "at": newest.record["at"], "head": newest.hash}
        typer.echo(json.dumps({**record, "problem": problem}, indent=1))
    else:
        typer.echo(f"entry {newest.number} of {newest.record['at']}, release log of {store.uri}\n{newest.hash}")
    if problem:
        if not as_json:
            typer.echo(problem, err=True)
        raise typer.Exit(1)


@app.command(short_help="Sign all entries up to the head with the signing key.")
def seal(
    head: Annotated[str, typer.Option(help="Newest entry that you reviewed, as printed by `medloop audit head`.")],
    reason: Reason,
) -> None:
    """Add a signed entry that confirms all entries before it.

    Use it if the log began without signatures, or before a signing key is no longer trusted. Review the entries first
    with `medloop models` and `medloop audit verify`.

    \b
        medloop audit seal --head 3f9a1c2b7d40e5f6 --reason "entries are signed from now on; Dr. B read all 14"
    """
    from components.shared.storage.store import open_store
    from medloop.settings import read_settings

    settings = read_settings()
    typer.echo(put_seal(settings, open_store(settings.store), head, reason))
