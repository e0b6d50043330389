"""`medloop storage`: set up the bucket of a store."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from medloop.cli.options import AsJson
from medloop.operations.bucket_setup import prepare

app = typer.Typer(name="storage", no_args_is_help=True, rich_markup_mode=None, help="Set up the bucket of the store.")


@app.command(short_help="Set up the bucket: versioning, encryption, life-cycle rules.")
def init(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create the bucket in MEDLOOP_STORE if it does not exist, and set it up.

    Old versions are kept for 90 days, objects are encrypted, and incomplete uploads and leftover test objects are
    removed. Objects in use never expire, and rules of other applications stay unchanged. The command can be
    repeated. Exit status 1: the server or the access rights do not allow one of the settings.

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
        sentence = f"The store {store.uri} is a directory and needs no setup; the first run creates it."
        typer.echo(json.dumps({"store": store.uri, "items": [], "sentence": sentence}) if as_json else sentence)
        return
    items = prepare(store.backend, dry_run=dry_run)  # type: ignore[arg-type]  # the only other backend is S3
    if as_json:
        typer.echo(json.dumps({"store": store.uri, "items": [asdict(item) for item in items]}, indent=1))
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        marks = {
            "is": "[green]✓ set[/]",
            "done": "[green]✓ changed[/]",
            "will be": "· would change",
            "cannot": "[red]✗ failed[/]",
        }
        for item in items:
            table.add_row(marks[item.state], item.part, item.says)
        Console().print(table, highlight=False)
    if any(item.state == "cannot" for item in items):
        raise typer.Exit(1)
