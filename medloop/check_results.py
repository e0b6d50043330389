"""Results of checks: state, meaning and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.shared.privacy.secret_redaction import printable

MARKS = {"ok": "[green]✓ ok[/]", "note": "[yellow]· note[/]", "problem": "[red]✗ problem[/]"}


@dataclass(frozen=True)
class CheckResult:
    """The state of one part (ok, note for something optional, or problem), its meaning and the remedy."""

    part: str
    state: str
    means: str
    remedy: str = ""


def table(results: Sequence[CheckResult]):  # type: ignore[no-untyped-def]  # its type would have to be imported at start-up
    """Return the results as a table for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    rows = Table(box=None, pad_edge=False, show_header=False)
    rows.add_column(min_width=9, no_wrap=True)
    rows.add_column(min_width=17, no_wrap=True)
    rows.add_column()
    for result in results:
        remedy = f". {result.remedy}" if result.remedy else ""
        rows.add_row(MARKS[result.state], result.part, escape(printable(f"{result.means}{remedy}")))
    return rows
