"""Progress display of a run: progress bars in a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from components.shared.reporting.left_out import left_out

OTHER_COLUMNS = 46
"""Width of spinner, stage, bar and time, in characters."""


class Lines:
    """Display for logs and pipes: one line per progress event and stage end, less often in long stages."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = self._last = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        now, text = time.monotonic(), ""
        if event["event"] == "started":
            self._started, self._last = now, 0.0
        if event["event"] == "progress":
            interval = min(max(5.0, (now - self._started) / 20), 60.0)
            if event["done"] >= event["total"] or now - self._last > interval:
                self._last = now
                text = f"  {event['stage']:9} {_progress(event)}"
        else:
            text = final_line(event)
        if text:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Bars:
    """Display for a terminal: a progress bar for the current stage below the finished ones."""

    def __init__(self, console: Console) -> None:
        self._progress = _Bar(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[beside]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if event["event"] == "started":
            self._task = self._progress.add_task(event["stage"], total=None, beside="", below="")
        elif event["event"] == "progress" and self._task is not None:
            note = _progress(event)
            beside, below = (note, "") if len(note) <= self._progress.console.width - OTHER_COLUMNS else ("", note)
            self._progress.update(self._task, total=event["total"], completed=event["done"], beside=beside, below=below)
        elif text := final_line(event):
            if self._task is not None and event.get("level") != "WARNING":
                self._progress.remove_task(self._task)
                self._task = None
            self._progress.console.print(text, highlight=False, markup=False)


class _Bar(Progress):
    """A progress bar that shows a long note below instead of beside it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["below"]:
                yield Padding(Text(task.fields["below"], style="dim"), (0, 0, 0, 2))


def _progress(event: dict[str, Any]) -> str:
    return f"{event['done']}/{event['total']} {event['note']}"


def final_line(event: dict[str, Any]) -> str:
    """Return the line for a stage that ended or warns, or "" for other events."""
    stage, kind = event["stage"], event["event"]
    if kind == "failed":
        return f"✗ {stage:9} failed: {event['why']}" + f"\n{event.get('trace', '')}".rstrip()
    if kind == "reused":
        return f"= {stage:9} reused ({event['seconds']:.1f} s originally){gist(event['values'])}{_omitted(event)}"
    if kind == "interrupted":
        return f"! {stage:9} {event['why']}"
    if event.get("level") == "WARNING":
        return f"! {stage:9} {kind}: {event.get('why', '')}"
    if kind == "finished":
        return f"✓ {stage:9} {event['seconds']:6.1f} s{gist(event['values'])}{_omitted(event)}"
    return ""


def _omitted(event: dict[str, Any]) -> str:
    """Return lines with the number of quarantined and left-out images by reason."""
    if event["stage"] != "merge":
        return ""
    lines = [f"{number:,} quarantined: {why}" for why, number in event["values"].get("set_aside", {}).items()]
    if omitted := left_out(event["values"].get("left_out", {})):
        lines.append(omitted)
    return "".join(f"\n! {event['stage']:9} {line}" for line in lines)


def gist(values: dict[str, Any]) -> str:
    """Return the short values of a stage on one line, without hashes and sentences."""
    short = {
        name: f"{value:.3f}" if isinstance(value, float) else value
        for name, value in values.items()
        if not isinstance(value, dict) and not (isinstance(value, str) and (len(value) > 15 or not value))
    }
    return "".join(f"  {name.replace('_', ' ')} {value}" for name, value in sorted(short.items()))


def watcher(console: Console) -> Lines | Bars:
    """Return the display for this console."""
    return Bars(console) if console.is_terminal else Lines(console)
