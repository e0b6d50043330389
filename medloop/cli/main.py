"""The command `medloop`. Everything heavy is imported inside the commands, so that help comes at once."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from components.shared import environment
from components.shared.errors import exit_code, is_foreseen
from components.shared.privacy.redaction import protect_process
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
    extra_missing,
    refusal,
    refuse,
    tell,
    with_options,
)
from medloop.cli.releases import app as releases_app
from medloop.cli.storage import app as storage
from medloop.releases.audit import write_down_head

app = typer.Typer(
    name="medloop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="""A retraining loop for medical-image classifiers.

New scans go in; a model comes into service, or is refused with a reason.

\b
    medloop synth scans                  make synthetic scans to try it on
    medloop run --source scans           the whole loop
    medloop explain                      why the last run ended as it did
    medloop serve                        answer requests with the released model

State lies in `.medloop/`: the store (data, models, the release log), runs' logs and reports, the tracking database,
the hash key. Set MEDLOOP_HOME to keep it elsewhere, MEDLOOP_STORE for another store (a directory or
s3://bucket/prefix), MLFLOW_TRACKING_URI for a tracking server, MEDLOOP_HASH_KEY for the key, MEDLOOP_SIGNING_KEY and
MEDLOOP_VERIFY_KEYS to sign decisions and releases and to verify them.

Exit status: 0 done (a model that is refused or awaits approval is a result, not an error), 1 failed, 2 asked wrongly,
130 interrupted.
""",
)

for group in (releases_app, data, keys, audit, storage):
    app.add_typer(group)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"medloop {version('medloop')}")
        raise typer.Exit


app.add_typer(cluster_app)


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    return None


@app.command(short_help="Make synthetic scans to try the loop on.")
def synth(
    directory: Annotated[Path, typer.Argument(help="Where to write; new, empty, or made by an earlier synth.")],
    patients: Annotated[
        int, typer.Option(min=1, max=10**6, help="Number of patients; the first ones stay the same when it grows.")
    ] = 240,
    classes: Annotated[
        int, typer.Option(min=2, max=3, help="2 (normal, pneumonia) or 3 (normal, bacteria, virus).")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Another seed, other scans.")] = 7,
    shift: Annotated[
        float, typer.Option(min=0, max=2, help="0 the first hospital; 1 a second one, with other equipment.")
    ] = 0.0,
    reports: Annotated[bool, typer.Option("--reports", help="Add short texts that say what images do not.")] = False,
) -> None:
    """Make synthetic chest-like scans: PNG, JPEG and DICOM, with some broken files, duplicates and a wrong label.

    The same arguments give the same bytes. Their patients are hashed with a public key, so never mix them with real
    scans. More patients in the same directory are new scans that arrive:

    \b
        medloop synth scans --patients 300
    """
    from medloop.synth import synth as make

    counts = make(directory, patients=patients, classes=classes, seed=seed, shift=shift, reports=reports)
    typer.echo(f"{directory}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


@app.command(cls=WithParameters, short_help="Run the loop, from scans to a model in service or a refusal.")
@with_options
def run(
    *,
    options: RunOptions,
    runner: Runner = "subprocess",
    images: ImageOptions,
    as_json: AsJson = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the loop from a run that has surely ended.")
    ] = False,
) -> None:
    """Run the loop: ingest, split, train, evaluate, gate, quantize, evaluate, gate, deploy or reject.

    Work that was done before is taken up, not done again. Ctrl-C ends it cleanly; the same command goes on from there.

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
    if runner == "subprocess" and (images.where or images.brought):
        refuse("--images and --image name containers. Add --runner docker, or leave them out.")
    settings = read_settings()
    asked = options.settle()
    console = Console(stderr=as_json)
    try:
        with watcher(console) as shown:
            done = runs.start(settings, asked, runner, images.choose(), shown, take_over)
    except KeyboardInterrupt:
        typer.echo("\nStopped. What is in service is untouched; the same command goes on from there.", err=True)
        raise typer.Exit(130) from None
    store = open_store(settings.store)
    explain.summarise(console, settings, store, done)
    write_down_head(settings, store)
    if done.record["outcome"] in ("refused", "awaiting approval"):
        versions.draw_what_waits(settings, store)
    if as_json:
        typer.echo(explain.as_json(store, done))
    if done.record["outcome"] == "failed":
        raise typer.Exit(1)


@app.command(short_help="List the parameters of a run, or some of them.")
def params(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD]...", help="Parts of names, such as train or smoothing.")
    ] = None,
) -> None:
    """List the parameters of a run: their names, defaults and limits, and what they are for.

    \b
        medloop params                       all of them
        medloop params train                 those of a stage
        medloop params train loss            those with both words in their names
    """
    import shutil

    from workflows.parameters import describe

    with refusal():
        typer.echo(describe(words or [], min(shutil.get_terminal_size().columns, 100)))


@app.command(cls=WithParameters, short_help="Say what a run would do, and what is done already.")
@with_options
def plan(*, options: RunOptions, as_json: AsJson = False) -> None:
    """Say what a run would do: what is reused, what is done and why, and how long it took the last time.

    It starts no stage, and leaves what is in service and the log as they are.

    \b
        medloop plan --source scans --set epochs=5
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from medloop.runner.plan import plan as make
    from medloop.settings import read_settings

    steps = make(read_settings(), options.settle())
    if as_json:
        typer.echo(json.dumps([asdict(step) for step in steps], indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "", "why", "last time"):
        table.add_column(column, justify="right" if column == "last time" else "left", overflow="fold")
    for step in steps:
        took = f"{step.last_seconds:.1f} s" if step.last_seconds is not None else "–"
        table.add_row(step.stage, step.state, step.why, took)
    Console().print(table, highlight=False)


@app.command(short_help="Write a run's report to a file.")
def report(name: RunName = "") -> None:
    """Write a run's report to a file, and print its path. It opens in any browser and needs no network."""
    from medloop.runner.explain import write_page

    settings, store, found = _found(name)
    typer.echo(str(write_page(settings, store, found)))


@app.command(short_help="Tell why a model was released or refused.")
def explain(name: RunName = "", as_json: AsJson = False) -> None:
    """Tell in plain sentences why a run's model was released or refused, check by check."""
    from medloop.runner import explain

    _, store, found = _found(name)
    typer.echo(explain.as_json(store, found) if as_json else explain.explain(store, found))


@app.command(short_help="Hold what readers said against a run's test.")
def readers(
    table: Annotated[
        Path, typer.Option("--csv", help="The table: reader, image or image_id, label or score, aided (yes or no).")
    ],
    name: RunName = "",
    positive: Annotated[
        str, typer.Option("--positive", help="The class whose sensitivity is told; of two the second by default.")
    ] = "",
    cut: Annotated[
        float | None,
        typer.Option(
            "--cut", min=-1e9, max=1e9, help="The score from which on a reader calls it, where labels are missing."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell how readers did on a run's test images, alone and with the model's help, and how far they agree.

    It writes a page beside the run's report. What was decided on the model stays as it is.

    \b
        medloop readers --csv readings.csv
        medloop readers 20261121 --csv readings.csv --json
    """
    from medloop.reader_study.readers import readers as hold

    if not table.is_file():
        refuse(f"--csv is {str(table)!r}, which is no file. Name the readers' table.")
    settings, store, found = _found(name)
    done = hold(settings, store, found, table, positive, cut)
    if as_json:
        typer.echo(json.dumps({**done.figures, "page": str(done.page)}, indent=1, ensure_ascii=False))
    else:
        typer.echo(f"{done.figures['effect']['sentence']}\n\n{done.page}")


@app.command(short_help="Do a step of an earlier run again, here.")
def replay(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's id or its beginning, on a cluster too.")],
    stage: Annotated[str, typer.Argument(help="The stage whose step is to be done again.")],
    number: Annotated[
        int, typer.Option(min=0, max=10**6, help="Which of its steps, where it has several; 0 is the last.")
    ] = 0,
    runner: Runner = "subprocess",
    image: Annotated[str, typer.Option(help="The image, for --runner docker; that of the run by default.")] = "",
    debug: Annotated[bool, typer.Option("--debug", help="Stop in a debugger where it fails.")] = False,
    as_json: AsJson = False,
) -> None:
    """Do a step of an earlier run again on the very inputs it had, fetched by digest, and compare what it gives.

    Whatever it writes goes into a directory of its own: store, release log, tracking and what is in service stay as
    they are.

    \b
        medloop replay 20261121 train
        medloop replay 6ba7b810 train --runner docker --debug
    """
    from medloop.runner import replay as replays
    from medloop.runner.explain import compared

    check_runner(runner)
    settings, store, found = _found(name)
    with refusal():
        step = replays.choose(found, stage, number)
    typer.echo(
        f"{stage} of the run {found.id}, begun {step['at'][:16].replace('T', ' ')}, which {step['state']}", err=True
    )
    again = replays.prepare(settings, store, found, step)
    wanted = (image or step["image"] or f"medloop-{stage}:latest") if runner == "docker" else ""
    status = replays.do(again, wanted, debug, sys.stderr if as_json else sys.stdout)
    equal = replays.compare(again) if status == 0 else {}
    if as_json:
        typer.echo(json.dumps({"status": status, "equal": equal, "folder": str(again.folder)}))
    else:
        typer.echo(compared(again, status, equal), err=status != 0)
    if status:
        raise typer.Exit(1)


@app.command(short_help="Answer HTTP requests with the model in service.")
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8080,
    poll: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between looks for a new release.")] = 2.0,
) -> None:
    """Answer HTTP requests with the model in service; a new release is taken up without a restart.

    \b
        curl -F file=@scan.png http://127.0.0.1:8080/predict
    """
    from components.shared.runtime.events import configure_logging
    from medloop.settings import read_settings
    from serving.serve import serve as listen

    configure_logging()
    raise typer.Exit(listen(read_settings().store, host, port, poll))


@app.command(short_help="Prove that an image of your own can stand for a stage.")
def check_image(
    image: Annotated[str, typer.Argument(help="The image, on this machine.")],
    stage: Annotated[str, typer.Option(help="The stage it is to stand for.")],
    as_json: AsJson = False,
) -> None:
    """Prove that an image of your own keeps a stage's interface, by asking it and by letting it work.

    A small loop runs here on synthetic scans; the image does its stage's step of it, and the steps that come after go
    on with what it gave. Then `medloop run --runner docker --image STAGE=IMAGE`, and the same for compile and submit.

    \b
        medloop check-image registry.example/ours/train:2 --stage train
    """
    from dataclasses import asdict

    from rich.console import Console

    from medloop.findings import table
    from medloop.runner.check_image import check

    console, found = Console(stderr=as_json), []
    with refusal():
        for each in check(image, stage):
            found.append(each)
            console.print(table([each]), highlight=False)
    bad = any(each.state == "problem" for each in found)
    if as_json:
        typer.echo(json.dumps({"image": image, "stage": stage, "fits": not bad, "checks": [asdict(e) for e in found]}))
    else:
        console.print(f"\n{image} can{'not' if bad else ''} stand for {stage}.", style="bold", highlight=False)
    if bad:
        raise typer.Exit(1)


@app.command(short_help="Look for what is wrong with the set-up.")
def doctor(as_json: AsJson = False) -> None:
    """Look at every part of the set-up: what works, what does not, what that means, what to do."""
    from dataclasses import asdict

    from rich.console import Console

    from medloop.findings import table
    from medloop.operations.doctor import examine
    from medloop.settings import read_settings

    findings = examine(read_settings())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        Console().print(table(findings), highlight=False)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _found(name: str):  # type: ignore[no-untyped-def]  # its types would have to be imported at start-up
    from components.shared.storage.store import open_store
    from medloop.runner.run import find
    from medloop.settings import read_settings

    settings = read_settings()
    store = open_store(settings.store)
    return settings, store, find(store, name)


def main() -> None:
    """Run the command line; a foreseen error is printed as a sentence, any other with its traceback."""
    protect_process()
    try:
        app(prog_name="medloop")
    except BrokenPipeError:
        sys.exit(1)
    except ModuleNotFoundError as error:
        if not (missing := extra_missing(error.name or "")):
            raise
        tell(missing)
        sys.exit(1)
    except Exception as error:
        if environment.get("MEDLOOP_TRACEBACK") or not is_foreseen(error):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            tell(f"{error.strerror}: {error.filename}")
        else:
            tell(str(error.args[-1] if error.args else error))
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
