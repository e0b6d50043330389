"""The commands for a Kubeflow Pipelines server: compile, submit, schedule, runs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from components.shared import environment
from medloop.cli.options import AsJson, ImageOptions, Policy, RunOptions, WithParameters, refusal, refuse, with_options

app = typer.Typer()


@dataclass(frozen=True)
class PackageOptions(ImageOptions):
    """The images and the places of the stages on a cluster."""

    cluster: Annotated[Path | None, typer.Option("--cluster", help="YAML file that says where and how stages run.")] = (
        None
    )
    no_pin: Annotated[bool, typer.Option("--no-pin", help="Leave images at their tags, whatever these will name.")] = (
        False
    )

    def places(self) -> Any:
        """Return where and how stages run; exit with a sentence if the cluster file is invalid."""
        from medloop.kubeflow.cluster import read_cluster
        from medloop.settings import read_settings

        with refusal():
            return read_cluster(self.cluster or read_settings().cluster_file)

    def pinned(self) -> dict[str, str]:
        """Return the image of each stage, by digest; local images, which no registry has, keep their names."""
        from workflows.container_registry import pin

        chosen = self.choose()
        if self.no_pin:
            return chosen
        far = {stage: name for stage, name in chosen.items() if "/" in name}
        if here := sorted({name for name in chosen.values() if "/" not in name}):
            typer.echo(
                f"medloop: {len(here)} image{'s' if len(here) > 1 else ''} ({here[0]}{', …' if len(here) > 1 else ''}) "
                "have names of this machine and no digest to pin: a cluster has them only if they were loaded onto its "
                "nodes. --images registry/prefix:tag says where the nodes find them.",
                err=True,
            )
        return {**chosen, **pin(far)}


@dataclass(frozen=True)
class ServerOptions(RunOptions):
    """The source, the parameters and the store of a run on a server."""

    store: Annotated[str, typer.Option("--store", help="Where the loop keeps its state: s3://bucket/prefix.")] = ""


@app.command(name="compile", short_help="Write the pipeline as a Kubeflow package.")
@with_options
def compile_(
    *,
    pipeline: Annotated[str, typer.Argument(metavar="[PIPELINE]", help="Which one: retrain, or release.")] = "retrain",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; PIPELINE.yaml by default.")] = None,
    package: PackageOptions,
    policy: Policy = "",
) -> None:
    """Write a pipeline as a package for a Kubeflow Pipelines server, its images pinned by digest.

    A policy given here becomes the package's default.

    \b
        medloop compile --images registry.example/medloop:0.1.0
        medloop compile --images registry.example/medloop:0.1.0 --cluster cluster.yaml --output team.yaml
        medloop compile --image train=registry.example/ours/train:2
    """
    from workflows.package import check, compile_package
    from workflows.parameters import check_policy, read_policy

    path = output or Path(f"{pipeline}.yaml")
    with refusal():
        check(pipeline, path)
        defaults = {"policy": check_policy(read_policy(policy), [])} if policy else {}
    places = package.places()
    compile_package(pipeline, package.pinned(), places, path, defaults)
    typer.echo(f"{path}: {path.stat().st_size:,} bytes")


Experiment = Annotated[str, typer.Option(help="The experiment it belongs to; made if it is not there.")]
Account = Annotated[str, typer.Option("--service-account", help="The Kubernetes account the stages run as.")]


@app.command(cls=WithParameters, short_help="Start a run on a Kubeflow Pipelines server.")
@with_options
def submit(
    *,
    options: ServerOptions,
    package: PackageOptions,
    wait: Annotated[
        bool, typer.Option("--wait", help="Watch it to its end; the exit status says how it ended.")
    ] = False,
    timeout: Annotated[str, typer.Option(help="With --wait: watch no longer than that, such as 90m or 12h.")] = "",
    poll: Annotated[float, typer.Option(min=0.05, max=3600, help="Seconds between looks.")] = 5.0,
    name: Annotated[str, typer.Option(help="The run's name in the server.")] = "medloop retrain",
    experiment: Experiment = "medloop",
    account: Account = "",
    as_json: AsJson = False,
) -> None:
    """Start a run on a Kubeflow Pipelines server, with the images pinned as they are now.

    The server is named by KF_PIPELINES_ENDPOINT; else it is that of the cluster this pod is in, or of KUBECONFIG's.

    \b
        medloop submit --source /scans --store s3://medloop/chest --images registry.example/medloop:0.1.0 --wait
    """
    from rich.console import Console

    from medloop.kubeflow.submit import submit as start
    from workflows.placement import seconds

    try:
        patience = float(seconds(timeout)) if timeout else None
    except ValueError as error:
        refuse(f"--timeout: {error}")
    if timeout and not wait:
        refuse(f"--timeout is {timeout!r}, and limits how long --wait watches. Add --wait, or leave it out.")
    order = _order(options, package, name, experiment, account)
    server = _server()
    run_id = start(server, order)
    link = server.link(f"runs/details/{run_id}")
    console = Console(stderr=as_json)
    console.print(f"{run_id}  {link}", highlight=False, soft_wrap=True)
    if not wait:
        if as_json:
            typer.echo(json.dumps({"run": run_id, "link": link, "state": "submitted"}))
        return
    _watch(server, order, run_id, link, console, poll, patience, as_json)


def _watch(
    server: Any, order: Any, run_id: str, link: str, console: Any, poll: float, patience: float | None, as_json: bool
) -> None:
    from medloop.kubeflow.follow import UNSAID, follow
    from medloop.runner.progress_display import watcher

    def say(text: str) -> None:
        console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    try:
        with watcher(console) as shown:
            done = follow(server, run_id, shown, say, poll, patience, cluster=order.cluster)
    except KeyboardInterrupt:
        typer.echo(f"\nNo longer watched; the run goes on. End it at {link}", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise type(error)(f"{error} The run goes on without being watched: {link}") from None
    told: dict[str, Any] = {"run": run_id, "link": link, "state": done.state.lower(), **done.ending}
    if broken := done.failed:
        why = "The run was ended from outside." if done.stopped else broken.why or UNSAID
        told |= {"failed_stage": broken.name, "why": why, "last_lines": list(broken.last_lines)}
    if as_json:
        typer.echo(json.dumps(told))
    console.print()
    if broken:
        console.print(f"The stage {broken.name} failed. {why}", style="bold", highlight=False, markup=False)
        for line in broken.last_lines:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"\nDo it again here, on its own inputs: medloop replay {run_id} {broken.name}", highlight=False)
    else:
        ended = "was ended from outside" if done.stopped else done.state.lower()
        sentence = told.get("sentence") or f"The run {ended}."
        console.print(sentence, style="bold", highlight=False, markup=False)
    console.print(link, highlight=False, soft_wrap=True)
    if done.state not in ("SUCCEEDED", "SKIPPED"):
        raise typer.Exit(1)


@app.command(cls=WithParameters, short_help="Let the loop run at set times on a Kubeflow Pipelines server.")
@with_options
def schedule(
    *,
    cron: Annotated[str, typer.Option(help="When: minute, hour, day, month, weekday, such as '0 3 * * MON'.")] = "",
    timezone: Annotated[str, typer.Option(help="The time zone of these times, such as Europe/Berlin.")] = "UTC",
    options: ServerOptions,
    package: PackageOptions,
    name: Annotated[str, typer.Option(help="The schedule's name; one of that name is replaced.")] = "medloop-retrain",
    experiment: Experiment = "medloop",
    account: Account = "",
    remove: Annotated[bool, typer.Option("--remove", help="End the schedule of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let the loop run at set times: this very package, never two at once, nothing caught up after a pause.

    \b
        medloop schedule --cron "0 3 * * MON" --timezone Europe/Berlin --source /scans --store s3://medloop/chest
        medloop schedule --remove

    Kubeflow has one time zone for all schedules (UTC; MEDLOOP_KFP_TIMEZONE says which, if yours has another). Where
    --timezone changes its clocks, the schedule is laid out in parts, from one change to the next, for five years. An
    hour that is skipped when clocks go forward has no run; one that comes twice has one (where Kubeflow's own clock
    shows it twice, too, it has two).
    """
    from datetime import UTC, datetime

    from medloop.kubeflow import cron as times
    from medloop.kubeflow.submit import schedule as begin
    from medloop.kubeflow.submit import unschedule
    from medloop.settings import read_settings

    _check_name("--name", name)
    if remove:
        parts = unschedule(_server(), name)
        if as_json:
            typer.echo(json.dumps({"removed": name, "parts": parts}))
            return
        typer.echo(f"{name} has ended ({parts} part{'s' if parts > 1 else ''}). Runs that go on are left alone.")
        return
    if not cron:
        refuse("No time was given. Say when with --cron, such as --cron '0 3 * * MON'.")
    with refusal():
        due, here, there = times.read(cron), times.zone(timezone), times.zone(read_settings().kubeflow.timezone)
        spans = times.spans(due, here, there, datetime.now(UTC))
    order = _order(options, package, name, experiment, account)
    server = _server()
    made = begin(server, order, spans)
    _tell_schedule(server, made, due, here, as_json)


def _tell_schedule(server: Any, made: list[dict[str, Any]], due: Any, here: Any, as_json: bool) -> None:
    from datetime import UTC, datetime
    from itertools import islice

    following = [
        f"{moment:%a %Y-%m-%d %H:%M %Z}" for moment in islice(due.after(datetime.now(UTC).astimezone(here)), 3)
    ]
    if as_json:
        typer.echo(json.dumps({"schedules": made, "next": following}, default=str))
        return
    for part in made:
        typer.echo(f"{part['name']}  {server.link('recurringrun/details/' + part['id'])}")
    typer.echo(f"Next: {', '.join(following)}")
    if last := made[-1]["start"]:
        typer.echo(f"Clock changes are laid out until {last:%Y-%m-%d}. Schedule it again within a year after that day.")


@app.command(short_help="List runs: those of the server, or of this store.")
def runs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs that the Kubeflow Pipelines server knows; without KF_PIPELINES_ENDPOINT, those of this store.

    \b
        medloop runs --limit 5
    """
    from itertools import islice

    from rich.console import Console
    from rich.table import Table

    from medloop.runner.explain import there_and_here
    from medloop.settings import read_settings

    settings = read_settings()
    if settings.kubeflow.endpoint:
        listed = [there_and_here(run) for run in islice(_server().runs(), limit)]
    else:
        from components.shared.storage.store import open_store
        from medloop.runner.run import recent

        listed = [there_and_here(run) for run in recent(open_store(settings.store), limit, releases=True)]
    if as_json:
        typer.echo(json.dumps(listed))
        return
    if not listed:
        typer.echo("There is no run yet.")
        return
    wide = None if sys.stdout.isatty() or environment.get("COLUMNS") else 400  # a pipe has no edge
    console, table = Console(width=wide), Table(box=None, pad_edge=False, header_style="dim")
    left = console.width
    for column in ("run", "began", "took", "state"):
        widest = max(len(column), *(len(run[column]) for run in listed))
        left -= widest + 1
        table.add_column(column, justify="right" if column == "took" else "left", no_wrap=True, min_width=widest)
    table.add_column("what", no_wrap=True, overflow="ellipsis", max_width=max(left, 4))
    for run in listed:
        table.add_row(*(run[column] for column in ("run", "began", "took", "state", "what")))
    console.print(table, highlight=False, soft_wrap=left < 4)


def _order(options: ServerOptions, package: PackageOptions, name: str, experiment: str, account: str) -> Any:
    """Return what is to be run on the server; exit with a sentence if it cannot run there."""
    from medloop.kubeflow.submit import Order
    from medloop.settings import read_settings
    from workflows.package import defaults_on

    if account:
        _check_name("--service-account", account)
    for option, text in (("--name", name), ("--experiment", experiment)):
        if not 0 < len(text.strip()) <= 128:
            refuse(f"{option} is {text!r}, and must have 1 to 128 characters. Give it such a name.")
    places = package.places()
    asked = options.settle(defaults_on(places))
    kept = options.store or read_settings().store
    if not options.store and "://" not in kept:
        refuse(
            f"The store is {kept}, a directory of this machine, which a cluster does not see. Name one that it sees "
            "with --store s3://bucket/prefix, or MEDLOOP_STORE (or --store /path of a volume that every stage mounts)."
        )
    return Order("retrain", package.pinned(), places, {**asked, "store": kept}, experiment, name, account)


def _check_name(option: str, value: str) -> None:
    from medloop.kubeflow.cluster import kubernetes_name

    try:
        kubernetes_name(value)
    except ValueError as error:
        refuse(f"{option} is {value!r}, and it becomes a name in Kubernetes: {error}")


def _server() -> Any:
    from medloop.kubeflow.login import connect
    from medloop.settings import read_settings

    return connect(read_settings().kubeflow)
