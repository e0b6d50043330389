"""Shows a run while it goes on: a line a stage, with progress; in a terminal the line is alive."""

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

TAKEN = 46
"""Columns of a line that spinner, stage, bar and time take."""


class Lines:
    """For logs and pipes: a line when a stage makes progress and when it ends; the longer it takes, the rarer."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._begun = self._last = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        now = time.monotonic()
        if event["event"] == "started":
            self._begun, self._last = now, 0.0
        if event["event"] == "progress":
            apart = min(max(5.0, (now - self._begun) / 20), 60.0)
            if event["done"] >= event["total"] or now - self._last > apart:
                self._last = now
                self._say(f"  {event['stage']:9} {_so_far(event)}")
        elif text := ending(event):
            self._say(text)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Bars:
    """For a terminal: a bar for the stage at work, with the finished ones above it."""

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
            note = _so_far(event)
            beside, below = (note, "") if len(note) <= self._progress.console.width - TAKEN else ("", note)
            self._progress.update(self._task, total=event["total"], completed=event["done"], beside=beside, below=below)
        elif text := ending(event):
            if self._task is not None and event.get("level") != "WARNING":
                self._progress.remove_task(self._task)
                self._task = None
            self._progress.console.print(text, highlight=False, markup=False)


class _Bar(Progress):
    """A bar whose note stands below it where it is too long to stand beside it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["below"]:
                yield Padding(Text(task.fields["below"], style="dim"), (0, 0, 0, 2))


def _so_far(event: dict[str, Any]) -> str:
    return f"{event['done']}/{event['total']} {event['note']}"


def ending(event: dict[str, Any]) -> str:
    """The line for a stage that has ended, or nothing."""
    stage, kind = event["stage"], event["event"]
    if kind == "failed":
        return f"✗ {stage:9} failed: {event['why']}" + f"\n{event.get('trace', '')}".rstrip()
    if kind == "reused":
        return f"= {stage:9} done before ({event['seconds']:.1f} s then){gist(event['values'])}{_unseen(event)}"
    if kind == "interrupted":
        return f"! {stage:9} {event['why']}"
    if event.get("level") == "WARNING":
        return f"! {stage:9} {kind}: {event.get('why', '')}"
    if kind == "finished":
        return f"✓ {stage:9} {event['seconds']:6.1f} s{gist(event['values'])}{_unseen(event)}"
    return ""


def _unseen(event: dict[str, Any]) -> str:
    """The lines below that of a stage which set images aside or left some out: how many, by the reason."""
    if event["stage"] != "merge":
        return ""
    lines = [f"{number:,} set aside: {why}" for why, number in event["values"].get("set_aside", {}).items()]
    if told := left_out(event["values"].get("left_out", {})):
        lines.append(told)
    return "".join(f"\n! {event['stage']:9} {line}" for line in lines)


def gist(values: dict[str, Any]) -> str:
    """What a stage gave, in a few words; hashes and sentences are left to the summary."""
    short = {
        name: f"{value:.3f}" if isinstance(value, float) else value
        for name, value in values.items()
        if not isinstance(value, dict) and not (isinstance(value, str) and (len(value) > 15 or not value))
    }
    return "".join(f"  {name.replace('_', ' ')} {value}" for name, value in sorted(short.items()))


def watcher(console: Console) -> Lines | Bars:
    """What suits the console."""
    return Bars(console) if console.is_terminal else Lines(console)
