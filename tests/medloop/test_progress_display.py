"""What a run shows of itself while it goes on."""

from __future__ import annotations

import io
import itertools
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from medloop.runner import progress_display
from medloop.runner.progress_display import Bars, Lines, final_line

MERGED: dict[str, Any] = {
    "images": 600,
    "quarantined": 3,
    "left_out": {"limit_per_class": 5240},
    "set_aside": {"unreadable: the file is cut short": 2, "no class: it is not in a class folder": 1},
}
NOTE = "epochs, loss 0.310, val AUC 0.981, 412 images/s, 2 min 10 s left"


def started(stage: str) -> dict[str, Any]:
    return {"event": "started", "stage": stage}


def progress(stage: str, done: float, total: int, note: str) -> dict[str, Any]:
    return {"event": "progress", "stage": stage, "done": done, "total": total, "note": note}


def console(width: int) -> Console:
    return Console(width=width, file=io.StringIO(), force_terminal=True)


def drawn(bars: Bars, width: int) -> list[str]:
    """The lines of the bar as it stands, without colours."""
    paper = Console(width=width, file=io.StringIO(), record=True)
    for part in bars._progress.get_renderables():
        paper.print(part)
    return [line.rstrip() for line in paper.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 100])
def test_a_long_note_stands_whole_below_its_bar_and_goes_with_it(width: int) -> None:
    with Bars(console(width)) as bars:
        bars(started("train"))
        bars(progress("train", 2.37, 20, NOTE))
        bar, note = drawn(bars, width)
        assert "train" in bar
        assert note == f"  2.37/20 {NOTE}"
        bars(progress("train", 3, 20, "epochs"))
        (bar,) = drawn(bars, width)
        assert " 3/20 epochs" in bar
        bars(progress("train", 3.5, 20, NOTE))
        bars({"event": "finished", "stage": "train", "seconds": 61.0, "values": {"val_auc": 0.981}})
        bars(started("evaluate"))
        (bar,) = drawn(bars, width)
        assert "evaluate" in bar


def test_where_there_is_room_all_stands_in_one_line() -> None:
    with Bars(console(140)) as bars:
        bars(started("train"))
        bars(progress("train", 2.37, 20, NOTE))
        (line,) = drawn(bars, 140)
        assert f"2.37/20 {NOTE}" in line


def test_a_log_gets_a_line_now_and_then_and_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(
        progress_display, "time", SimpleNamespace(monotonic=lambda: now[0])
    )  # not for the whole process
    paper = Console(width=80, file=io.StringIO(), record=True)
    with Lines(paper) as lines:
        for _ in range(2):  # each stage begins to count anew
            lines(started("train"))
            for second in range(36001):
                lines(progress("train", second / 3600, 10, f"epochs, second {second}"))
                now[0] += 1
    said = [int(line.split()[-1]) for line in paper.export_text().splitlines()]
    first = said[: said.index(36000) + 1]
    assert first[:4] == [0, 6, 12, 18]
    assert said[len(first) :] == first
    apart = [after - before for before, after in itertools.pairwise(first)]
    assert max(apart) <= 61
    assert len(first) < 800


def test_a_short_stage_has_its_first_and_its_last_line() -> None:
    paper = Console(width=80, file=io.StringIO(), record=True)
    begun = time.monotonic()
    with Lines(paper) as lines:
        lines(started("ingest"))
        for done in range(101):
            lines(progress("ingest", done, 100, "images"))
    assert time.monotonic() - begun < 5
    assert [line.split()[1] for line in paper.export_text().splitlines()] == ["0/100", "100/100"]


@pytest.mark.parametrize("event", ["finished", "reused"])
def test_below_the_line_of_merge_stands_what_was_set_aside_and_left_out(event: str) -> None:
    first, *further = final_line({"event": event, "stage": "merge", "seconds": 1.0, "values": MERGED}).splitlines()
    assert first.endswith("images 600  quarantined 3")
    assert further == [
        "! merge     2 quarantined: unreadable: the file is cut short",
        "! merge     1 quarantined: no class: it is not in a class folder",
        "! merge     5,240 left out by request (limit_per_class)",
    ]


def test_where_several_options_leave_images_out_each_has_its_count() -> None:
    values = {**MERGED, "set_aside": {}, "left_out": {"label_map": 1, "limit_per_class": 5239}}
    told = final_line({"event": "finished", "stage": "merge", "seconds": 1.0, "values": values})
    assert told.endswith("\n! merge     5,240 left out by request (1 label_map, 5,239 limit_per_class)")


def test_nothing_is_said_where_all_images_take_part() -> None:
    values = {**MERGED, "set_aside": {}, "left_out": {}}
    told = final_line({"event": "finished", "stage": "merge", "seconds": 1.0, "values": values})
    assert told == "✓ merge        1.0 s  images 600  quarantined 3"
