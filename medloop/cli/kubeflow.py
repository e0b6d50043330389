"""The commands for a Kubeflow Pipelines server: compile, submit, schedule, runs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from components.shared import environment
from medloop.cli.options import (
    AsJson,
    ImageOptions,
    Policy,
    RunOptions,
    WithParameters,
    exit_on_value_error,
    refuse,
    with_options,
)

app = typer.Typer()


@dataclass(frozen=True)
class PackageOptions(ImageOptions):
    """The images and the placement of the stages on a cluster."""

    cluster: Annotated[
        Path | None, typer.Option("--cluster", help="YAML file with the resources and placement of each stage.")
    ] = None
    no_pin: Annotated[bool, typer.Option("--no-pin", help="Keep image tags instead of pinning digests.")] = False

    def placements(self) -> Any:
        """Return the placement of each stage; exit with a message if the cluster file is invalid."""
        from medloop.kubeflow.cluster_file import read_cluster
        from medloop.settings import read_settings

        with exit_on_value_error():
            return read_cluster(self.cluster or read_settings().cluster_file)

    def pinned(self) -> dict[str, str]:
        """Return the image of each stage by digest; local images keep their names."""
        from workflows.container_registry import pin

        images = self.choose()
        if self.no_pin:
            return images
        remote = {stage: name for stage, name in images.items() if "/" in name}
        if local := sorted({name for name in images.values() if "/" not in name}):
            typer.echo(
                f"medloop: {len(local)} image{'s' if len(local) > 1 else ''} "
                f"({local[0]}{', …' if len(local) > 1 else ''}) without a registry cannot be pinned by digest. A "
                "cluster can run them only if they were loaded onto its nodes. Otherwise name the registry with "
                "--images registry/prefix:tag.",
                err=True,
            )
        return {**images, **pin(remote)}


@dataclass(frozen=True)
class ServerOptions(RunOptions):
    """The source, the parameters and the store of a run on a server."""

    store: Annotated[str, typer.Option("--store", help="Store of the loop: s3://bucket/prefix.")] = ""


@app.command(name="compile", short_help="Compile the pipeline to a Kubeflow package.")
@with_options
def compile_(
    *,
    pipeline: Annotated[str, typer.Argument(metavar="[PIPELINE]", help="Pipeline: retrain or release.")] = "retrain",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output file; PIPELINE.yaml by default.")] = (
        None
    ),
    package: PackageOptions,
    policy: Policy = "",
) -> None:
    """Compile a pipeline to a package for a Kubeflow Pipelines server, with images pinned by digest.

    --policy sets the default policy of the package.

    \b
        medloop compile --images registry.example/medloop:0.1.0
        medloop compile --images registry.example/medloop:0.1.0 --cluster cluster.yaml --output team.yaml
        medloop compile --image train=registry.example/ours/train:2
    """
    from workflows.package import check, compile_package
    from workflows.parameters import check_policy, read_policy

    path = output or Path(f"{pipeline}.yaml")
    with exit_on_value_error():
        check(pipeline, path)
        defaults = {"policy": check_policy(read_policy(policy), [])} if policy else {}
    placements = package.placements()
    compile_package(pipeline, package.pinned(), placements, path, defaults)
    typer.echo(f"{path}: {path.stat().st_size:,} bytes")


Experiment = Annotated[str, typer.Option(help="Experiment of the run; created if it does not exist.")]
Account = Annotated[str, typer.Option("--service-account", help="Kubernetes service account of the stages.")]


@app.command(cls=WithParameters, short_help="Start a run on a Kubeflow Pipelines server.")
@with_options
def submit(
    *,
    options: ServerOptions,
    package: PackageOptions,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end of the run; exit status 1 if it failed.")
    ] = False,
    timeout: Annotated[str, typer.Option(help="Maximum waiting time for --wait, such as 90m or 12h.")] = "",
    poll: Annotated[float, typer.Option(min=0.05, max=3600, help="Seconds between status requests.")] = 5.0,
    name: Annotated[str, typer.Option(help="Display name of the run.")] = "medloop retrain",
    experiment: Experiment = "medloop",
    account: Account = "",
    as_json: AsJson = False,
) -> None:
    """Start a run on a Kubeflow Pipelines server, with the stages' container images pinned by their current digests.

    The server is the one in KF_PIPELINES_ENDPOINT, if set. Otherwise it is the one in the cluster of the pod in which
    this command runs, or in the cluster that KUBECONFIG names.

    \b
        medloop submit --source /scans --store s3://medloop/chest --images registry.example/medloop:0.1.0 --wait
    """
    from rich.console import Console

    from medloop.kubeflow.submit import submit as start
    from workflows.placement import seconds

    try:
        limit = float(seconds(timeout)) if timeout else None
    except ValueError as error:
        refuse(f"--timeout: {error}")
    if timeout and not wait:
        refuse(f"--timeout is {timeout!r}, and has an effect only with --wait. Add --wait, or leave it out.")
    request = _run_request(options, package, name, experiment, account)
    server = _server()
    run_id = start(server, request)
    link = server.link(f"runs/details/{run_id}")
    console = Console(stderr=as_json)
    console.print(f"{run_id}  {link}", highlight=False, soft_wrap=True)
    if not wait:
        if as_json:
            typer.echo(json.dumps({"run": run_id, "link": link, "state": "submitted"}))
        return
    _watch(server, request, run_id, link, console, poll, limit, as_json)


def _watch(
    server: Any, request: Any, run_id: str, link: str, console: Any, poll: float, limit: float | None, as_json: bool
) -> None:
    from medloop.kubeflow.follow import NO_REASON, follow
    from medloop.runner.progress_display import watcher

    def show(text: str) -> None:
        console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    try:
        with watcher(console) as display:
            outcome = follow(server, run_id, display, show, poll, limit, cluster=request.cluster)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped watching; the run continues. Stop it at {link}", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise type(error)(f"{error} The run continues unwatched: {link}") from None
    record: dict[str, Any] = {"run": run_id, "link": link, "state": outcome.state.lower(), **outcome.ending}
    if failed := outcome.failed:
        why = "The run was terminated externally." if outcome.stopped else failed.why or NO_REASON
        record |= {"failed_stage": failed.name, "why": why, "last_lines": list(failed.last_lines)}
    if as_json:
        typer.echo(json.dumps(record))
    console.print()
    if failed:
        console.print(f"The stage {failed.name} failed. {why}", style="bold", highlight=False, markup=False)
        for line in failed.last_lines:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"\nRepeat it here on the same inputs: medloop replay {run_id} {failed.name}", highlight=False)
    else:
        state = "was terminated externally" if outcome.stopped else outcome.state.lower()
        sentence = record.get("sentence") or f"The run {state}."
        console.print(sentence, style="bold", highlight=False, markup=False)
    console.print(link, highlight=False, soft_wrap=True)
    if outcome.state not in ("SUCCEEDED", "SKIPPED"):
        raise typer.Exit(1)


@app.command(cls=WithParameters, short_help="Schedule the loop on a Kubeflow Pipelines server.")
@with_options
def schedule(
    *,
    cron: Annotated[
        str, typer.Option(help="Cron expression: minute, hour, day, month, weekday, such as '0 3 * * MON'.")
    ] = "",
    timezone: Annotated[str, typer.Option(help="Time zone of the cron expression, such as Europe/Berlin.")] = "UTC",
    options: ServerOptions,
    package: PackageOptions,
    name: Annotated[str, typer.Option(help="Name of the schedule; replaces a schedule of the same name.")] = (
        "medloop-retrain"
    ),
    experiment: Experiment = "medloop",
    account: Account = "",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the schedule of this name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Schedule the loop on the server.

    All runs of the schedule use the pipeline as this command compiles it now. They never overlap each other, and
    missed runs are not started later.

    \b
        medloop schedule --cron "0 3 * * MON" --timezone Europe/Berlin --source /scans --store s3://medloop/chest
        medloop schedule --remove

    Kubeflow uses one time zone for all schedules: UTC, or the one in MEDLOOP_KFP_TIMEZONE. If --timezone has daylight
    saving time, the server gets several schedules, one for each period between the clock changes of the next five
    years. There is no run in a skipped hour, and one run in a repeated hour (two if Kubeflow's time zone repeats the
    same hour).
    """
    from datetime import UTC, datetime

    from medloop.kubeflow import cron as times
    from medloop.kubeflow.schedules import schedule as create
    from medloop.kubeflow.schedules import unschedule
    from medloop.settings import read_settings

    _check_name("--name", name)
    if remove:
        parts = unschedule(_server(), name)
        if as_json:
            typer.echo(json.dumps({"removed": name, "parts": parts}))
            return
        typer.echo(f"{name} was removed ({parts} part{'s' if parts > 1 else ''}). Active runs continue.")
        return
    if not cron:
        refuse("No time was given. Set it with --cron, such as --cron '0 3 * * MON'.")
    with exit_on_value_error():
        due, zone, server_zone = times.read(cron), times.zone(timezone), times.zone(read_settings().kubeflow.timezone)
        spans = times.spans(due, zone, server_zone, datetime.now(UTC))
    request = _run_request(options, package, name, experiment, account)
    server = _server()
    _print_schedule(server, create(server, request, spans), due, zone, as_json)


def _print_schedule(server: Any, parts: list[dict[str, Any]], due: Any, zone: Any, as_json: bool) -> None:
    from datetime import UTC, datetime
    from itertools import islice

    following = [
        f"{moment:%a %Y-%m-%d %H:%M %Z}" for moment in islice(due.after(datetime.now(UTC).astimezone(zone)), 3)
    ]
    if as_json:
        typer.echo(json.dumps({"schedules": parts, "next": following}, default=str))
        return
    for part in parts:
        typer.echo(f"{part['name']}  {server.link('recurringrun/details/' + part['id'])}")
    typer.echo(f"Next: {', '.join(following)}")
    if last := parts[-1]["start"]:
        typer.echo(f"Clock changes are covered until {last:%Y-%m-%d}. Renew the schedule within a year after that day.")


@app.command(short_help="List the runs of the Kubeflow server if one is set, else of this store.")
def runs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of runs, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs of the Kubeflow Pipelines server, or those of this store if KF_PIPELINES_ENDPOINT is not set.

    \b
        medloop runs --limit 5
    """
    from itertools import islice

    from rich.console import Console
    from rich.table import Table

    from medloop.runner.explain import run_row
    from medloop.settings import read_settings

    settings = read_settings()
    if settings.kubeflow.endpoint:
        rows = [run_row(run) for run in islice(_server().runs(), limit)]
    else:
        from components.shared.storage.store import open_store
        from medloop.runner.run import recent

        rows = [run_row(run) for run in recent(open_store(settings.store), limit, releases=True)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo("There is no run yet.")
        return
    width = None if sys.stdout.isatty() or environment.get("COLUMNS") else 400  # a pipe has no width
    console, table = Console(width=width), Table(box=None, pad_edge=False, header_style="dim")
    remaining = console.width
    for column in ("run", "began", "took", "state"):
        widest = max(len(column), *(len(row[column]) for row in rows))
        remaining -= widest + 1
        table.add_column(column, justify="right" if column == "took" else "left", no_wrap=True, min_width=widest)
    table.add_column("what", no_wrap=True, overflow="ellipsis", max_width=max(remaining, 4))
    for row in rows:
        table.add_row(*(row[column] for column in ("run", "began", "took", "state", "what")))
    with console.capture() as printed:
        console.print(table, highlight=False, soft_wrap=remaining < 4)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def _run_request(options: ServerOptions, package: PackageOptions, name: str, experiment: str, account: str) -> Any:
    """Return the run for the server; exit with a message if it cannot run there."""
    from medloop.kubeflow.submit import RunRequest
    from medloop.settings import read_settings
    from workflows.package import defaults_on

    if account:
        _check_name("--service-account", account)
    for option, text in (("--name", name), ("--experiment", experiment)):
        if not 0 < len(text.strip()) <= 128:
            refuse(f"{option} is {text!r}; it must have 1 to 128 characters.")
    placements = package.placements()
    parameters = options.settle(defaults_on(placements))
    store = options.store or read_settings().store
    if not options.store and "://" not in store:
        refuse(
            f"The store is {store}, a directory of this machine, which a cluster cannot access. Set MEDLOOP_STORE or "
            "--store to s3://bucket/prefix, or --store to the path of a volume that every stage mounts."
        )
    arguments = {**parameters, "store": store}
    return RunRequest("retrain", package.pinned(), placements, arguments, experiment, name, account)


def _check_name(option: str, value: str) -> None:
    from medloop.kubeflow.cluster_file import kubernetes_name

    try:
        kubernetes_name(value)
    except ValueError as error:
        refuse(f"{option} is {value!r}; it is used as a Kubernetes name: {error}")


def _server() -> Any:
    from medloop.kubeflow.login import connect
    from medloop.settings import read_settings

    return connect(read_settings().kubeflow)
