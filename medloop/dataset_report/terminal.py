"""Print the figures of a data set in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from components.shared.reporting.formatting import count
from medloop.dataset_report.counts import OUT, UNKNOWN
from medloop.dataset_report.statistics import Figures
from medloop.dataset_report.verdicts import Verdict

MARKS = {"ok": "[green]✓[/]", "note": "[yellow]·[/]", "problem": "[red]✗[/]"}


def print_figures(console: Console, shown: Figures, conclusions: Sequence[Verdict]) -> None:
    """Print the counts by class, split and metadata, and the conclusions."""
    about = shown["dataset"]
    of = f"{count(shown['all']['images'], 'image')} of {count(shown['all']['patients'], 'patient')}"
    console.print(f"{about['name']}: {of}, {about['task']}; {shown['of']}", style="bold", markup=False, highlight=False)
    console.print()
    counts = _counts(shown, plain=False)
    if Measurement.get(console, console.options.update(width=1000), counts).maximum > console.width:
        counts = _counts(shown, plain=True)
    console.print(counts, highlight=False)
    for title, name in (("quarantined", "quarantine"), ("warnings", "warnings")):
        if shown[name]:
            console.print()
            console.print(_reasons(title, shown[name], f"--{name}"), highlight=False)
    console.print()
    verdicts = Table(box=None, pad_edge=False, show_header=False)
    for verdict in conclusions:
        verdicts.add_row(MARKS[verdict.state], escape(verdict.says))
    console.print(verdicts, highlight=False)


def _counts(shown: Figures, plain: bool) -> Table:
    """Return images with patients in brackets; `plain` omits the patients per split, for narrow terminals."""
    splits = list(shown["all"].get("sides", {}))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("images (patients)", overflow="fold", min_width=17)
    for name in ("total", *splits):
        table.add_column(name, justify="right", no_wrap=True)
    known = [
        (field, shown[f"by_{field}"])
        for field in ("sex", "age", "site", "view")
        if any(entry["value"] != UNKNOWN for entry in shown[f"by_{field}"])
    ]
    for title, entries in [("class", shown["by_class"]), *known]:
        table.add_row(f"[dim]{title}[/]")
        for entry in entries:
            table.add_row(f"  {escape(entry['value'])}", *_cells(entry, splits, plain))
        table.add_row()
    table.add_row("[bold]all[/]", *(f"[bold]{cell}[/]" for cell in _cells(shown["all"], splits, plain)))
    return table


def _cells(entry: dict[str, Any], splits: Sequence[str], plain: bool) -> list[str]:
    return [_cell(entry, False), *(_cell(entry["sides"][split], plain or split == OUT) for split in splits)]


def _cell(counted: dict[str, int], plain: bool) -> str:
    if plain or not counted["images"]:
        return f"{counted['images']:,}"
    return f"{counted['images']:,} ({counted['patients']:,})"


def _reasons(title: str, reasons: Sequence[dict[str, Any]], option: str) -> Table:
    """Return a table with a row per reason and detail; `option` is the one that writes all of them to a file."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    table.add_column("", justify="right")
    table.add_column("detail", overflow="fold")
    for entry in reasons:
        details = [(f"{detail['count']:,}", detail["detail"]) for detail in entry["details"]]
        if entry["further_details"]:
            rest = entry["count"] - sum(detail["count"] for detail in entry["details"])
            others = count(entry["further_details"], "other reason")
            details.append((f"{rest:,}", f"{others}; {option} FILE.csv writes all of them"))
        for index, (number, detail) in enumerate(details):
            table.add_row("" if index else escape(entry["reason"]), number, escape(detail))
    return table
