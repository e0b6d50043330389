"""`medloop data`: report on a data set, and resolve a hash to a file or patient."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from medloop.cli.options import AsJson, Source, refuse

app = typer.Typer(
    name="data",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show data sets; find the file or patient behind a keyed hash.",
)


@app.command(short_help="Count images and patients, and write an HTML report.")
def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[RUN]", help="Run id or its first characters; the latest run with a data set by default."
        ),
    ] = "",
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="Directory or manifest of a data set, instead of a run's.")
    ] = None,
    splits: Annotated[Path | None, typer.Option("--splits", help="Directory or manifest of its split.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Path of the HTML report; in the run's folder by default.")
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option("--quarantine", help="New CSV file for all quarantined images and the reasons.")
    ] = None,
    warnings: Annotated[Path | None, typer.Option("--warnings", help="New CSV file for all warnings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show image and patient counts per class, split, sex, age, site and view, leakage between splits, and
    quarantined images. Write an HTML report with sample images of each class and histograms of size and brightness.

    The report contains images of patients, without names. Protect it like the images.

    \b
        medloop data show
        medloop data show 20261121 --json
        medloop data show --quarantine quarantine.csv
        medloop data show --dataset dataset --splits splits --output data.html
    """
    from dataclasses import asdict

    from rich.console import Console

    from components.shared.datasets.dataset import Data
    from components.shared.storage.store import open_store
    from medloop.dataset_report import report_input
    from medloop.dataset_report.counts import Rows
    from medloop.dataset_report.page import write
    from medloop.dataset_report.statistics import figures
    from medloop.dataset_report.terminal import print_figures
    from medloop.dataset_report.verdicts import verdicts
    from medloop.settings import read_settings

    _check(name, dataset, splits)
    for option, copy in (("--quarantine", quarantine), ("--warnings", warnings)):
        if copy and copy.exists():
            refuse(f"{option} is {str(copy)!r}, which already exists. Nothing was overwritten; name a new file.")
    settings = read_settings()
    store = open_store(settings.store)
    with (
        report_input.from_paths(settings, store, dataset, splits)
        if dataset
        else report_input.from_run(settings, store, name)
    ) as inputs:
        data = Data.open(inputs.dataset, store)
        for table, copy in (("quarantine.csv", quarantine), ("warnings.csv", warnings)):
            if copy:
                _copy(inputs.dataset / table, copy)
        rows = Rows(data, inputs.splits)
        counts = figures(inputs, data, rows)
        conclusions = verdicts(counts)
        if not as_json:
            print_figures(Console(), counts, conclusions)
        path = (output or inputs.page).absolute()
        histograms = write(path, counts, conclusions, rows)
    if as_json:
        listed = [asdict(verdict) for verdict in conclusions]
        record = {**counts, "verdicts": listed, "histograms": histograms, "page": str(path)}
        typer.echo(json.dumps(record, indent=1, ensure_ascii=False))
    else:
        typer.echo(f"\n{path}")


def _copy(table: Path, copy: Path) -> None:
    if not table.exists():
        raise FileNotFoundError(f"The data set has no {table.name}, so nothing was written. Ingest its source again.")
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(table.read_bytes())


def _check(name: str, dataset: Path | None, splits: Path | None) -> None:
    if dataset and name:
        refuse(f"Both the run {name!r} and --dataset are given. Name one of them.")
    if splits and not dataset:
        refuse("--splits is given without --dataset. A run has its own split; name both directories, or neither.")
    for option, path in (("--dataset", dataset), ("--splits", splits)):
        if path and not path.exists():
            refuse(f"{option} is {str(path)!r}, which does not exist. Name a directory or manifest written by a stage.")


@app.command(short_help="Find the file or patient that has a given hash.")
def locate(
    beginning: Annotated[
        str, typer.Argument(metavar="HASH", help="Hash of an image or patient, at least its first 8 digits.")
    ],
    source: Source = "",
    as_json: AsJson = False,
) -> None:
    """Find the file with a given hash, or the patient and the patient's files, by hashing all names in the source.

    Requires the hash key and the source (by default that of the latest run). The output identifies patients.

    \b
        medloop data locate 3f9a1c2b7d40
    """
    from dataclasses import asdict

    from components.shared.storage.store import open_store
    from medloop.operations.locate import find
    from medloop.settings import read_settings

    if not re.fullmatch("[0-9a-f]{8,32}", beginning.lower()):
        refuse(
            f"The hash is {beginning!r}; it must be 8 to 32 hexadecimal digits, as in the report of `medloop data "
            "show` and in the files that its options --quarantine FILE.csv and --warnings FILE.csv write."
        )
    settings = read_settings()
    match = find(settings, open_store(settings.store), source, beginning.lower())
    if as_json:
        typer.echo(json.dumps(asdict(match), indent=1))
    else:
        typer.echo(_printable(match.name or "a patient whose name is in no file name, table or header of the source"))
        for name in match.files if match.kind == "patient" else ():
            typer.echo(f"  {_printable(name)}")
    typer.echo("This output identifies a patient: keep it confidential, and out of tickets and e-mail.", err=True)


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()  # file names need not be valid Unicode
