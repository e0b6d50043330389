"""The commands for decisions and releases: approve, gate, models, promote, rollback."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from medloop.cli.options import (
    AsJson,
    By,
    ImageOptions,
    Reason,
    Registry,
    Runner,
    check_runner,
    exit_on_value_error,
)
from medloop.releases.heads_and_seals import record_head

app = typer.Typer()


@app.command(short_help="Approve and release the model of a run.")
def approve(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Run id or its first characters.")],
    by: By,
    reason: Reason,
    days: Annotated[
        int, typer.Option(min=0, max=36500, help="Days for which the approval is valid; 0 is the policy's limit.")
    ] = 0,
    runner: Runner = "subprocess",
    registry: Registry = "",
    as_json: AsJson = False,
) -> None:
    """Approve the model of a run that awaits approval, as a named person, and release it.

    The approval is recorded once, with name, reason and expiry. If the release fails, run the same command again.
    Exit status 1: the release failed.

    \b
        medloop approve 20261121 --by "Dr. Weber" --reason "reviewed 40 test images and their predictions"
    """
    from rich.console import Console

    from components.shared.storage.store import open_store
    from medloop.releases import approve as approvals
    from medloop.runner import explain
    from medloop.runner.progress_display import watcher
    from medloop.runner.run import find_unique
    from medloop.settings import read_settings

    check_runner(runner)
    settings = read_settings()
    store = open_store(settings.store)
    with exit_on_value_error():
        run = find_unique(store, name)
        if done := approvals.already_in_service(store, run):
            typer.echo(explain.as_json(store, run) if as_json else done)
            return
        approval = approvals.write(store, run, by, reason, days)
    console = Console(stderr=as_json)
    console.print(f"Approved by {approval['by']} until {approval['until']}.", highlight=False, markup=False)
    images = ImageOptions(registry).choose()
    with watcher(console) as display:
        finished = approvals.release(settings, store, run, approval["by"], runner, images, display)
    explain.summarise(console, settings, store, finished)
    if as_json:
        typer.echo(explain.as_json(store, finished))
    if finished.record["outcome"] == "failed":
        raise typer.Exit(1)


@app.command(short_help="Apply a policy to past runs, without training.")
def gate(
    replay: Annotated[
        str, typer.Option("--replay", metavar="POLICY", help="A YAML file or the name of a built-in policy.")
    ],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of runs, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show which past runs of this store a policy would have released, without training.

    \b
        medloop gate --replay workflows/policies/screening.yaml
        medloop gate --replay old-threshold --json
    """
    from dataclasses import asdict

    from components.shared.storage.store import open_store
    from medloop.releases.policy_replay import describe, replay_policy
    from medloop.runner.run import recent
    from medloop.settings import read_settings
    from workflows.parameters import read_policy

    store = open_store(read_settings().store)
    with exit_on_value_error():
        verdicts = replay_policy(store, recent(store, limit), read_policy(replay))
    if as_json:
        typer.echo(json.dumps([asdict(verdict) for verdict in verdicts], indent=1, ensure_ascii=False))
        return
    if not verdicts:
        typer.echo("No run has reached a decision yet.")
        return
    typer.echo(describe(verdicts))
    typer.echo(
        "\nEach run is compared with the model that was in service at the time. After the first difference, another "
        "model might have been in service."
    )


@app.command(short_help="List the release log and the model in service.")
def models(
    card: Annotated[str, typer.Option(metavar="VERSION", help="Print the model card of this version instead.")] = "",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Rebuild the MLflow model registry from the release log.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the entries of the release log (releases, refusals, promotions, rollbacks, key rotations), the figures of
    each version, and the model in service. If MEDLOOP_VERIFY_KEYS is set, a log with invalid signatures is refused.

    \b
        medloop models --card v2             intended use, figures, limits and changes of v2
        medloop models --rebuild             recreate MLflow's versions and aliases from the log
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
        record = {"in_service": service.version if service else None, "versions": figures, "log": entries}
        typer.echo(json.dumps(record, indent=1))
        return
    if not log:
        typer.echo("No model was released yet. Start with: medloop run --source DIR")
        return
    brought = [entry.number for entry in log if service and entry.kind in ("release", "promotion", "rollback")][-1:]
    for entry in log:
        typer.echo(versions.describe_entry(entry, entry.number in brought))
        if entry.kind in ("release", "awaiting") and (
            line := versions.describe_figures(versions.figures(store, entry))
        ):
            typer.echo(f"        {line}")
    typer.echo(f"\nIn service: {service.version if service else 'nothing'}")


@app.command(short_help="Put an earlier version back into service.")
def promote(
    version: Annotated[str, typer.Argument(help="Released version, as listed by `medloop models`.")], reason: Reason
) -> None:
    """Put an earlier released version back into service.

    \b
        medloop promote v1 --reason "v2 is slow on the ward's machine"
    """
    from components.shared.storage.store import open_store
    from medloop.releases import versions
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    typer.echo(versions.promote(settings, store, version, reason))
    record_head(settings, store)


@app.command(short_help="Put the previous version back into service.")
def rollback(reason: Reason) -> None:
    """Put the version that was in service before the current one back into service.

    \b
        medloop rollback --reason "complaints from radiology"
    """
    from components.shared.storage.store import open_store
    from medloop.releases import versions
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    typer.echo(versions.rollback(settings, store, reason))
    record_head(settings, store)
