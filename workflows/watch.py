"""Shows a run while it goes on: a line a stage, with progress; in a terminal the line is alive."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from workflows.data.left_out import left_out


class Lines:
    """For logs and pipes: a line when a stage makes progress and when it ends."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if event["event"] == "progress":
            whole = event["done"] >= event["total"]
            if event["stage"] == "train" or whole or time.monotonic() - self._last > 5:
                self._last = time.monotonic()
                self._say(f"  {event['stage']:9} {event['done']}/{event['total']} {event['note']}")
        elif text := ending(event):
            self._say(text)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Bars:
    """For a terminal: a bar for the stage at work, with the finished ones above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
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
            self._task = self._progress.add_task(event["stage"], total=None, note="")
        elif event["event"] == "progress" and self._task is not None:
            note = f"{event['done']}/{event['total']} {event['note']}"
            self._progress.update(self._task, total=event["total"], completed=event["done"], note=note)
        elif text := ending(event):
            if self._task is not None and event.get("level") != "WARNING":
                self._progress.remove_task(self._task)
                self._task = None
            self._progress.console.print(text, highlight=False, markup=False)


def ending(event: dict[str, Any]) -> str:
    """The line for a stage that has ended, or nothing."""
    stage, kind = event["stage"], event["event"]
    if kind == "failed":
        return f"✗ {stage:9} failed: {event['why']}"
    if kind == "reused":
        return f"= {stage:9} done before ({event['seconds']:.1f} s then){gist(event['values'])}{_unseen(event)}"
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
