"""The command `medloop`. Heavy packages are imported inside the commands, so that help appears at once."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from components.shared import environment
from components.shared.errors import exit_code, is_foreseen
from components.shared.privacy.secret_redaction import protect_process
from medloop.cli.audit import app as audit
from medloop.cli.data import app as data
from medloop.cli.keys import app as keys
from medloop.cli.kubeflow import app as cluster_app
from medloop.cli.options import (
    AsJson,
    ImageOptions,
    RunName,
    Runner,
    RunOptions,
    WithParameters,
    check_runner,
    exit_on_value_error,
    install_hint,
    print_error,
    refuse,
    with_options,
)
from medloop.cli.releases import app as releases_app
from medloop.cli.storage import app as storage
from medloop.releases.heads_and_seals import record_head

TAKE_OVER = "Take over the lock that another run holds on the store. Use only if that run has stopped."

app = typer.Typer(
    name="medloop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="""A retraining loop for medical-image classifiers.

Trains a model on new scans, and releases it or refuses it with a reason.

\b
    medloop synth scans                  create synthetic scans
    medloop run --source scans           run the whole loop
    medloop explain                      explain the result of the last run
    medloop serve                        serve the released model over HTTP

State is kept in `.medloop/`: the store (data, models, release log), run logs and reports, the tracking database
and the hash key.

\b
Environment variables:
    MEDLOOP_HOME           another directory for this state
    MEDLOOP_STORE          another store: a directory or s3://bucket/prefix
    MEDLOOP_HASH_KEY       secret key with which names of patients and files are hashed
    MEDLOOP_SIGNING_KEY    private key that signs decisions and releases
    MEDLOOP_VERIFY_KEYS    public keys that verify them
    MLFLOW_TRACKING_URI    a tracking server

\b
Exit status:
    0      success; a model that is refused or awaits approval is a valid result
    1      failure
    2      invalid usage
    130    interrupted
""",
)

for group in (releases_app, data, keys, audit, storage):
    app.add_typer(group)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"medloop {version('medloop')}")
        raise typer.Exit


app.add_typer(cluster_app)


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    return None


@app.command(short_help="Create synthetic scans.")
def synth(
    directory: Annotated[Path, typer.Argument(help="Output directory: new, empty, or written by an earlier synth.")],
    patients: Annotated[
        int, typer.Option(min=1, max=10**6, help="Number of patients; a larger number keeps the existing ones.")
    ] = 240,
    classes: Annotated[
        int, typer.Option(min=2, max=3, help="2 (normal, pneumonia) or 3 (normal, bacteria, virus).")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed.")] = 7,
    shift: Annotated[
        float,
        typer.Option(
            min=0, max=2, help="Domain shift: 0 for the first hospital, 1 for a hospital with different equipment."
        ),
    ] = 0.0,
    reports: Annotated[bool, typer.Option("--reports", help="Add short clinical texts that complement the images.")] = (
        False
    ),
) -> None:
    """Create synthetic chest-like scans: PNG, JPEG and DICOM, with some broken files, duplicates and a wrong label.

    The same arguments produce the same bytes. The patients are hashed with a public key, so never mix synthetic and
    real scans. Run the command again with more patients to simulate new scans:

    \b
        medloop synth scans --patients 300
    """
    from medloop.synth import synth as make

    counts = make(directory, patients=patients, classes=classes, seed=seed, shift=shift, reports=reports)
    typer.echo(f"{directory}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


@app.command(cls=WithParameters, short_help="Run the loop: train a model on scans, release or refuse it.")
@with_options
def run(
    *,
    options: RunOptions,
    runner: Runner = "subprocess",
    images: ImageOptions,
    as_json: AsJson = False,
    take_over: Annotated[bool, typer.Option("--take-over", help=TAKE_OVER)] = False,
) -> None:
    """Run the loop: ingest, split, train, evaluate, gate, quantize, evaluate, gate, deploy or reject.

    Results of earlier runs are reused. Ctrl-C stops the run cleanly; the same command resumes it. Exit status: 0 if
    the run completed, even if the model is refused or awaits approval; 1 if a stage failed.

    \b
        medloop run --source scans
        medloop run --source scans --set epochs=5 --set policy.floors.accuracy=0.9
        medloop run --source scans --policy old-threshold
        medloop run --source scans --params workflows/params/smoke.yaml --json
    """
    from rich.console import Console

    from components.shared.storage.store import open_store
    from medloop.releases import versions
    from medloop.runner import explain
    from medloop.runner import run as runs
    from medloop.runner.progress_display import watcher
    from medloop.settings import read_settings

    check_runner(runner)
    for name in ("torch", "docker")[runner == "docker" :]:
        if find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
    if runner == "subprocess" and (images.registry or images.overrides):
        refuse("--images and --image require containers. Add --runner docker, or leave them out.")
    settings = read_settings()
    parameters = options.settle()
    console = Console(stderr=as_json)
    try:
        with watcher(console) as display:
            finished = runs.start(settings, parameters, runner, images.choose(), display, take_over)
    except KeyboardInterrupt:
        typer.echo("\nStopped. The model in service is unchanged; the same command resumes the run.", err=True)
        raise typer.Exit(130) from None
    store = open_store(settings.store)
    explain.summarise(console, settings, store, finished)
    record_head(settings, store)
    if finished.record["outcome"] in ("refused", "awaiting approval"):
        versions.sync_awaiting(settings, store)
    if as_json:
        typer.echo(explain.as_json(store, finished))
    if finished.record["outcome"] == "failed":
        raise typer.Exit(1)


@app.command(short_help="List the parameters of a run.")
def params(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD]...", help="Words that the names must contain.")
    ] = None,
) -> None:
    """List the parameters of a run with default, limits and meaning.

    \b
        medloop params                       all parameters
        medloop params train                 parameters of one stage
        medloop params train loss            names that contain both words
    """
    import shutil

    from workflows.parameters import describe

    with exit_on_value_error():
        typer.echo(describe(words or [], min(shutil.get_terminal_size().columns, 100)))


@app.command(cls=WithParameters, short_help="Show which stages a run would reuse or execute (dry run).")
@with_options
def plan(*, options: RunOptions, as_json: AsJson = False) -> None:
    """Show which stages a run would reuse, which it would execute and why, and the last duration of each.

    This is a dry run: no stage starts, and the model in service and the release log stay unchanged.

    \b
        medloop plan --source scans --set epochs=5
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from medloop.runner.plan import plan_run
    from medloop.settings import read_settings

    steps = plan_run(read_settings(), options.settle())
    if as_json:
        typer.echo(json.dumps([asdict(step) for step in steps], indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "", "why", "last time"):
        table.add_column(column, justify="right" if column == "last time" else "left", overflow="fold")
    for step in steps:
        duration = f"{step.last_seconds:.1f} s" if step.last_seconds is not None else "–"
        table.add_row(step.stage, step.state, step.why, duration)
    Console().print(table, highlight=False)


@app.command(short_help="Write the HTML report of a run to a file.")
def report(name: RunName = "") -> None:
    """Write the HTML report of a run to a file and print its path. The page needs no network."""
    from medloop.runner.explain import write_page

    typer.echo(str(write_page(*_open_run(name))))


@app.command(short_help="Explain why a model was released or refused.")
def explain(name: RunName = "", as_json: AsJson = False) -> None:
    """Explain why a run's model was released or refused, with the result of each check."""
    from medloop.runner import explain

    _, store, found = _open_run(name)
    typer.echo(explain.as_json(store, found) if as_json else explain.explain(store, found))


@app.command(short_help="Compare human readers with a run's model.")
def readers(
    table: Annotated[
        Path,
        typer.Option("--csv", help="CSV file with the columns reader, image or image_id, label or score, and aided."),
    ],
    name: RunName = "",
    positive: Annotated[
        str,
        typer.Option(
            "--positive", help="Positive class, for sensitivity and specificity; by default the second of two classes."
        ),
    ] = "",
    cut: Annotated[
        float | None,
        typer.Option(
            "--cut", min=-1e9, max=1e9, help="Lowest score that counts as positive, for readings without a label."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare human readers with a run's model on its test images, with and without the model's help.

    Writes an HTML page next to the run's report. The decision on the model does not change.

    \b
        medloop readers --csv readings.csv
        medloop readers 20261121 --csv readings.csv --json
    """
    from medloop.reader_study.compare import compare_readers

    if not table.is_file():
        refuse(f"--csv is {str(table)!r}, and no such file exists. Name the CSV file of the readings.")
    settings, store, found = _open_run(name)
    comparison = compare_readers(settings, store, found, table, positive, cut)
    if as_json:
        typer.echo(json.dumps({**comparison.figures, "page": str(comparison.page)}, indent=1, ensure_ascii=False))
    else:
        typer.echo(f"{comparison.figures['effect']['sentence']}\n\n{comparison.page}")


@app.command(short_help="On this machine, repeat a step of an earlier local or cluster run.")
def replay(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Id of a local or cluster run, or its first characters.")],
    stage: Annotated[str, typer.Argument(help="Stage to repeat.")],
    number: Annotated[
        int,
        typer.Option(min=0, max=10**6, help="Index of the step if the stage ran several times; 0 is the most recent."),
    ] = 0,
    runner: Runner = "subprocess",
    image: Annotated[str, typer.Option(help="Image for --runner docker; by default the image that the run used.")] = "",
    debug: Annotated[bool, typer.Option("--debug", help="Open a debugger at the failure.")] = False,
    as_json: AsJson = False,
) -> None:
    """Repeat a step of an earlier run on exactly the same inputs, and compare the outputs of both.

    All output goes to a separate directory; the store, the release log, tracking and the model in service stay
    unchanged. Exit status 1: the step failed.

    \b
        medloop replay 20261121 train
        medloop replay 6ba7b810 train --runner docker --debug
    """
    from medloop.runner import replay as replays
    from medloop.runner.explain import describe_replay

    check_runner(runner)
    settings, store, found = _open_run(name)
    with exit_on_value_error():
        step = replays.choose(found, stage, number)
    typer.echo(
        f"{stage} of run {found.id}, started {step['at'][:16].replace('T', ' ')}, state: {step['state']}", err=True
    )
    repeated = replays.prepare(settings, store, found, step)
    image = (image or step["image"] or f"medloop-{stage}:latest") if runner == "docker" else ""
    status = replays.run(repeated, image, debug, sys.stderr if as_json else sys.stdout)
    equal = replays.compare(repeated) if status == 0 else {}
    if as_json:
        typer.echo(json.dumps({"status": status, "equal": equal, "folder": str(repeated.folder)}))
    else:
        typer.echo(describe_replay(repeated, status, equal), err=status != 0)
    if status:
        raise typer.Exit(1)


@app.command(short_help="Serve the model in service over HTTP.")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 selects a free one.")] = 8080,
    poll: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between checks for a new release.")] = 2.0,
) -> None:
    """Serve the model in service over HTTP. A new release is loaded without a restart.

    \b
        curl -F file=@scan.png http://127.0.0.1:8080/predict
    """
    from components.shared.runtime.events import configure_logging
    from medloop.settings import read_settings
    from serving.serve import serve as listen

    configure_logging()
    raise typer.Exit(listen(read_settings().store, host, port, poll))


@app.command(short_help="Check that a custom container image can replace a stage's image.")
def check_image(
    image: Annotated[str, typer.Argument(help="Image on this machine.")],
    stage: Annotated[str, typer.Option(help="Stage that the image replaces.")],
    as_json: AsJson = False,
) -> None:
    """Check that a custom image can replace a stage's image: its interface, its packages and its results.

    A small loop runs on synthetic scans. The image runs its stage, and the following stages use its outputs. Exit
    status 1: the image cannot be used. Pass a valid image to run, compile, submit or schedule with --image STAGE=IMAGE.

    \b
        medloop check-image registry.example/ours/train:2 --stage train
    """
    from dataclasses import asdict

    from rich.console import Console

    from medloop.check_results import table
    from medloop.runner.check_image import check

    console, checks = Console(stderr=as_json), []
    with exit_on_value_error():
        for result in check(image, stage):
            checks.append(result)
            console.print(table([result]), highlight=False)
    failed = any(result.state == "problem" for result in checks)
    if as_json:
        record = {"image": image, "stage": stage, "fits": not failed, "checks": [asdict(result) for result in checks]}
        typer.echo(json.dumps(record))
    else:
        console.print(f"\n{image} can{'not' if failed else ''} replace {stage}.", style="bold", highlight=False)
    if failed:
        raise typer.Exit(1)


@app.command(short_help="Check the installation, the store and the environment.")
def doctor(as_json: AsJson = False) -> None:
    """Check the installation, the store and the environment, and print what to do about each problem.

    Exit status 1: at least one problem.
    """
    from dataclasses import asdict

    from rich.console import Console

    from medloop.check_results import table
    from medloop.operations.doctor import run_checks
    from medloop.settings import read_settings

    checks = run_checks(read_settings())
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in checks], indent=1))
    else:
        Console().print(table(checks), highlight=False)
    if any(result.state == "problem" for result in checks):
        raise typer.Exit(1)


def _open_run(name: str):  # type: ignore[no-untyped-def]  # its types would have to be imported at start-up
    from components.shared.storage.store import open_store
    from medloop.runner.run import find
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    return settings, store, find(store, name)


def main() -> None:
    """Run the command line. Print expected errors as a sentence and all others with their traceback."""
    protect_process()
    try:
        app(prog_name="medloop")
    except BrokenPipeError:
        sys.exit(1)
    except ModuleNotFoundError as error:
        if not (missing := install_hint(error.name or "")):
            raise
        print_error(missing)
        sys.exit(1)
    except Exception as error:
        if environment.get("MEDLOOP_TRACEBACK") or not is_foreseen(error):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            print_error(f"{error.strerror}: {error.filename}")
        else:
            print_error(str(error.args[-1] if error.args else error))
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
