"""What a look at something found: its state, what that means, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.shared.privacy.redaction import printable

MARKS = {"ok": "[green]✓ ok[/]", "note": "[yellow]· note[/]", "problem": "[red]✗ problem[/]"}


@dataclass(frozen=True)
class Finding:
    """The state of one part: ok, note (works without it) or problem; what it means; what to do."""

    part: str
    state: str
    means: str
    remedy: str = ""


def table(findings: Sequence[Finding]):  # type: ignore[no-untyped-def]  # its type would have to be imported at start-up
    """The findings as a table for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(min_width=9, no_wrap=True)
    made.add_column(min_width=17, no_wrap=True)
    made.add_column()
    for finding in findings:
        remedy = f". {finding.remedy}" if finding.remedy else ""
        made.add_row(MARKS[finding.state], finding.part, escape(printable(f"{finding.means}{remedy}")))
    return made
