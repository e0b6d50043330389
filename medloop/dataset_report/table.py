"""A data set's figures for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from components.shared.reporting.formatting import count
from medloop.dataset_report.groups import OUT, UNKNOWN
from medloop.dataset_report.show import Figures
from medloop.dataset_report.verdicts import Verdict

MARKS = {"ok": "[green]✓[/]", "note": "[yellow]·[/]", "problem": "[red]✗[/]"}


def print_figures(console: Console, shown: Figures, said: Sequence[Verdict]) -> None:
    """Print the counts by class, side and what is known of patient and scan, and what there is to be said."""
    about = shown["dataset"]
    of = f"{count(shown['all']['images'], 'image')} of {count(shown['all']['patients'], 'patient')}"
    console.print(f"{about['name']}: {of}, {about['task']}; {shown['of']}", style="bold", markup=False, highlight=False)
    console.print()
    counts = _counts(shown, plain=False)
    if Measurement.get(console, console.options.update(width=1000), counts).maximum > console.width:
        counts = _counts(shown, plain=True)
    console.print(counts, highlight=False)
    for title, name in (("set aside", "quarantine"), ("warnings", "warnings")):
        if shown[name]:
            console.print()
            console.print(_reasons(title, shown[name], f"--{name}"), highlight=False)
    console.print()
    verdicts = Table(box=None, pad_edge=False, show_header=False)
    for verdict in said:
        verdicts.add_row(MARKS[verdict.state], escape(verdict.says))
    console.print(verdicts, highlight=False)


def _counts(shown: Figures, plain: bool) -> Table:
    """Images, with patients in brackets; `plain` leaves out the patients of each side, where the terminal is narrow."""
    sides = list(shown["all"].get("sides", {}))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("images (patients)", overflow="fold", min_width=17)
    for name in ("in all", *sides):
        table.add_column(name, justify="right", no_wrap=True)
    known = [
        (field, shown[f"by_{field}"])
        for field in ("sex", "age", "site", "view")
        if any(entry["value"] != UNKNOWN for entry in shown[f"by_{field}"])
    ]
    for title, entries in [("class", shown["by_class"]), *known]:
        table.add_row(f"[dim]{title}[/]")
        for entry in entries:
            table.add_row(f"  {escape(entry['value'])}", *_cells(entry, sides, plain))
        table.add_row()
    table.add_row("[bold]all[/]", *(f"[bold]{cell}[/]" for cell in _cells(shown["all"], sides, plain)))
    return table


def _cells(entry: dict[str, Any], sides: Sequence[str], plain: bool) -> list[str]:
    return [_cell(entry, False), *(_cell(entry["sides"][side], plain or side == OUT) for side in sides)]


def _cell(counted: dict[str, int], plain: bool) -> str:
    if plain or not counted["images"]:
        return f"{counted['images']:,}"
    return f"{counted['images']:,} ({counted['patients']:,})"


def _reasons(title: str, reasons: Sequence[dict[str, Any]], option: str) -> Table:
    """A line for each reason and detail; `option` writes out those for which there is no room."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    table.add_column("", justify="right")
    table.add_column("why", overflow="fold")
    for entry in reasons:
        details = [(f"{detail['count']:,}", detail["detail"]) for detail in entry["details"]]
        if entry["further_details"]:
            rest = entry["count"] - sum(detail["count"] for detail in entry["details"])
            details.append(
                (f"{rest:,}", f"{count(entry['further_details'], 'other reason')}: {option} FILE.csv has all")
            )
        for place, (number, detail) in enumerate(details):
            table.add_row("" if place else escape(entry["reason"]), number, escape(detail))
    return table
