"""The commands for data sets: what a run learned from, looked at before anybody trusts it."""

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
    help="Look at the data of a run, and tell who stands behind a hash.",
)

Which = Annotated[
    str, typer.Argument(metavar="[RUN]", help="A run's id or its beginning; the latest with a data set by default.")
]


@app.command(short_help="Count a data set, and write a page that shows it.")
def show(
    name: Which = "",
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="A data set's directory or manifest, in place of a run's.")
    ] = None,
    splits: Annotated[Path | None, typer.Option("--splits", help="The directory or manifest of its split.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; beside the run's by default.")
    ] = None,
    quarantine: Annotated[
        Path | None, typer.Option("--quarantine", help="A new CSV file for all that was set aside, with the reasons.")
    ] = None,
    warnings: Annotated[Path | None, typer.Option("--warnings", help="Likewise for all warnings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count the images and patients of a run's data set by class, side, sex, age, site and view, say what leaks, what
    was set aside and why, and write a page with pictures of every class and histograms of sizes and brightness.

    The page holds pictures of patients, without names: it stays where the images may be.

    \b
        medloop data show
        medloop data show 20261121 --json
        medloop data show --quarantine aside.csv
        medloop data show --dataset dataset --splits splits --output data.html
    """
    from dataclasses import asdict

    from rich.console import Console

    from components.shared.datasets.dataset import Data
    from components.shared.storage.store import open_store
    from medloop.dataset_report import choose
    from medloop.dataset_report.groups import Rows
    from medloop.dataset_report.page import write
    from medloop.dataset_report.show import figures
    from medloop.dataset_report.table import print_figures
    from medloop.dataset_report.verdicts import verdicts
    from medloop.settings import read_settings

    _check(name, dataset, splits)
    for option, copy in (("--quarantine", quarantine), ("--warnings", warnings)):
        if copy and copy.exists():
            refuse(f"{option} is {str(copy)!r}, which is there already. It was left as it is; name a new file.")
    settings = read_settings()
    store = open_store(settings.store)
    found = choose.at(settings, store, dataset, splits) if dataset else choose.of_run(settings, store, name)
    with found as chosen:
        data = Data.open(chosen.dataset, store)
        for lines, copy in (("quarantine.csv", quarantine), ("warnings.csv", warnings)):
            if copy:
                _copy(chosen.dataset / lines, copy)
        rows = Rows(data, chosen.splits)
        shown = figures(chosen, data, rows)
        said = verdicts(shown)
        if not as_json:
            print_figures(Console(), shown, said)
        path = (output or chosen.page).absolute()
        histograms = write(path, shown, said, rows)
    if as_json:
        told = {**shown, "verdicts": [asdict(verdict) for verdict in said], "histograms": histograms, "page": str(path)}
        typer.echo(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        typer.echo(f"\n{path}")


def _copy(lines: Path, copy: Path) -> None:
    """Write all lines of what was set aside or warned of where the user wants them, as they stand in the data set."""
    if not lines.exists():
        raise FileNotFoundError(
            f"The data set has no {lines.name}, so there is nothing to write. Ingest its source anew."
        )
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(lines.read_bytes())


def _check(name: str, dataset: Path | None, splits: Path | None) -> None:
    if dataset and name:
        refuse(f"Both the run {name!r} and --dataset are given. Name one of them.")
    if splits and not dataset:
        refuse("--splits is given without --dataset. A run has a split of its own; name both directories, or neither.")
    for option, path in (("--dataset", dataset), ("--splits", splits)):
        if path and not path.exists():
            refuse(f"{option} is {str(path)!r}, which is not there. Give a directory or a manifest that a stage wrote.")


@app.command(short_help="Tell which file or patient stands behind a hash.")
def locate(
    beginning: Annotated[str, typer.Argument(metavar="HASH", help="A hash of an image or a patient; 8 digits do.")],
    source: Source = "",
    as_json: AsJson = False,
) -> None:
    """Tell which file, or which patient with which files, stands behind a hash, by hashing the names at the source.

    It takes the hash key and the source (by default that of the latest run). What it prints identifies patients.

    \b
        medloop data locate 3f9a1c2b7d40
    """
    from dataclasses import asdict

    from components.shared.storage.store import open_store
    from medloop.dataset_report.locate import find
    from medloop.settings import read_settings

    if not re.fullmatch("[0-9a-f]{8,32}", beginning.lower()):
        refuse(
            f"The hash is {beginning!r}, and must be 8 to 32 hexadecimal digits, as on the page of `medloop data show` "
            "and in the lists that its options --quarantine FILE.csv and --warnings FILE.csv write."
        )
    settings = read_settings()
    found = find(settings, open_store(settings.store), source, beginning.lower())
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        typer.echo(_shown(found.name or "a patient whose name stands in no file name, table or header here"))
        for name in found.files if found.kind == "patient" else ():
            typer.echo(f"  {_shown(name)}")
    typer.echo("This tells who is meant: keep it to yourself, and out of tickets and mails.", err=True)


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()  # a file's name may be no Unicode
