"""`medloop storage`: make a bucket ready."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    pass

from medloop.operations.storage import prepare

app = typer.Typer(name="storage", no_args_is_help=True, rich_markup_mode=None, help="Make the store's bucket ready.")


@app.command(short_help="Make the bucket ready: versions, encryption, life-cycle rules.")
def init(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would change.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Make the bucket that MEDLOOP_STORE names, where it is missing, and set it up: old versions are kept for 90
    days, what lies there is encrypted, uploads that broke off and probes go. What is in use never expires, and rules
    of others stay as they are. Run it as often as you like.

    \b
        MEDLOOP_STORE=s3://models/chest medloop storage init --dry-run
    """
    from rich.console import Console
    from rich.table import Table

    from components.shared.storage.directory import Directory
    from components.shared.storage.store import open_store
    from medloop.settings import read_settings

    store = open_store(read_settings().store)
    if isinstance(store.backend, Directory):
        sentence = f"The store {store.uri} is a directory: it needs no setting up, the first run makes it."
        typer.echo(json.dumps({"store": store.uri, "items": [], "sentence": sentence}) if as_json else sentence)
        return
    items = prepare(store.backend, dry_run=dry_run)  # type: ignore[arg-type]  # it is the other one
    if as_json:
        typer.echo(json.dumps({"store": store.uri, "items": [asdict(item) for item in items]}, indent=1))
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        marks = {
            "is": "[green]✓ is[/]",
            "done": "[green]✓ done[/]",
            "will be": "· will be",
            "cannot": "[red]✗ cannot[/]",
        }
        for item in items:
            table.add_row(marks[item.state], item.part, item.says)
        Console().print(table, highlight=False)
    if any(item.state == "cannot" for item in items):
        raise typer.Exit(1)
