"""The commands for what was decided and released: look at it, approve it, put it into service again or back."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from medloop.cli.options import AsJson, By, ImageOptions, ImagesAt, Reason, Runner, check_runner, refusal
from medloop.releases.audit import write_down_head

app = typer.Typer()


@app.command(short_help="Approve what a run left waiting, and release it.")
def approve(
    name: Annotated[str, typer.Argument(metavar="RUN", help="The run's id or its beginning.")],
    by: By,
    reason: Reason,
    days: Annotated[
        int, typer.Option(min=0, max=36500, help="Days for which it holds; 0: as many as the policy says.")
    ] = 0,
    runner: Runner = "subprocess",
    where: ImagesAt = "",
    as_json: AsJson = False,
) -> None:
    """Approve, as a named person, what a run left waiting, and release it by deploy alone.

    The approval is written once, with name, reason and its end. If the release fails, the same command tries it again.

    \b
        medloop approve 20261121 --by "Dr. Weber" --reason "read 40 of its cases"
    """
    from rich.console import Console

    from components.shared.storage.store import open_store
    from medloop.releases import approve as approvals
    from medloop.runner import explain
    from medloop.runner.progress_display import watcher
    from medloop.runner.run import only
    from medloop.settings import read_settings

    check_runner(runner)
    settings = read_settings()
    store = open_store(settings.store)
    with refusal():
        found = only(store, name)
        written = approvals.write(store, found, by, reason, days)
    console = Console(stderr=as_json)
    console.print(f"Approved by {written['by']} until {written['until']}.", highlight=False, markup=False)
    with watcher(console) as shown:
        done = approvals.release(settings, store, found, written["by"], runner, ImageOptions(where).choose(), shown)
    explain.summarise(console, settings, store, done)
    if as_json:
        typer.echo(explain.as_json(store, done))
    if done.record["outcome"] == "failed":
        raise typer.Exit(1)


@app.command(short_help="Apply a policy to past runs, without training.")
def gate(
    replay: Annotated[str, typer.Option("--replay", metavar="POLICY", help="A YAML file, or a shipped policy's name.")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many runs, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Apply a policy to past runs of this store, without training: what would have been released?

    \b
        medloop gate --replay workflows/policies/screening.yaml
        medloop gate --replay old-threshold --json
    """
    from dataclasses import asdict

    from components.shared.storage.store import open_store
    from medloop.releases.rejudge import judged_again, told
    from medloop.runner.run import recent
    from medloop.settings import read_settings
    from workflows.parameters import read_policy

    store = open_store(read_settings().store)
    with refusal():
        verdicts = judged_again(store, recent(store, limit), read_policy(replay))
    if as_json:
        typer.echo(json.dumps([asdict(verdict) for verdict in verdicts], indent=1, ensure_ascii=False))
        return
    if not verdicts:
        typer.echo("No run has come to a decision yet.")
        return
    typer.echo(told(verdicts))
    typer.echo(
        "\nEach run is held against the model that was in service then. After the first line that differs another one "
        "might have been."
    )


@app.command(short_help="List what was released, and what is in service.")
def models(
    card: Annotated[str, typer.Option(metavar="VERSION", help="Print the card of this version instead.")] = "",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Draw MLflow's registry anew from the log.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what was released, refused, promoted and rolled back, when the key was rotated, and what is in service; with
    each version's figures. Where MEDLOOP_VERIFY_KEYS is set, a log whose signatures do not hold is refused.

    \b
        medloop models --card v2             what v2 is for, its figures, its limits, what changed
        medloop models --rebuild             MLflow's versions and aliases as the log says they are
    """
    from components.shared.ledger import release_log
    from components.shared.storage.store import open_store
    from medloop.releases import versions
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    if card:
        typer.echo(versions.card(store, card))
        return
    if rebuild:
        typer.echo(versions.rebuild(settings, store))
        return
    log = release_log.read_log(store)
    service = release_log.in_service(log)
    if as_json:
        entries = [entry.record for entry in log]
        figures = {name: versions.figures(store, entry) for name, entry in release_log.versions(log).items()}
        about = {"in_service": service.version if service else None, "versions": figures, "log": entries}
        typer.echo(json.dumps(about, indent=1))
        return
    if not log:
        typer.echo("Nothing was released yet. Start with: medloop run --source DIR")
        return
    for entry in log:
        typer.echo(versions.line(entry, service))
        if entry.kind in ("release", "awaiting") and (said := versions.told(versions.figures(store, entry))):
            typer.echo(f"        {said}")
    typer.echo(f"\nIn service: {service.version if service else 'nothing'}")


@app.command(short_help="Put a released version into service again.")
def promote(
    version: Annotated[str, typer.Argument(help="A released version, as `medloop models` names it.")], reason: Reason
) -> None:
    """Put a version that was released before into service again.

    \b
        medloop promote v1 --reason "v2 is slow on the ward's machine"
    """
    from components.shared.storage.store import open_store
    from medloop.releases.versions import promote as put
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    typer.echo(put(settings, store, version, reason))
    write_down_head(settings, store)


@app.command(short_help="Go back to what was in service before.")
def rollback(reason: Reason) -> None:
    """Go back to what was in service before the present version.

    \b
        medloop rollback --reason "complaints from radiology"
    """
    from components.shared.storage.store import open_store
    from medloop.releases.versions import rollback as back
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    typer.echo(back(settings, store, reason))
    write_down_head(settings, store)
