"""What is shown of a run while it goes on."""

from __future__ import annotations

from typing import Any

import pytest

from workflows.watch import ending

MERGED: dict[str, Any] = {
    "images": 600,
    "quarantined": 3,
    "left_out": {"limit_per_class": 5240},
    "set_aside": {"unreadable: the file is cut short": 2, "no class: it lies in no class folder": 1},
}


@pytest.mark.parametrize("event", ["finished", "reused"])
def test_below_the_line_of_merge_stands_what_was_set_aside_and_left_out(event: str) -> None:
    first, *further = ending({"event": event, "stage": "merge", "seconds": 1.0, "values": MERGED}).splitlines()
    assert first.endswith("images 600  quarantined 3")
    assert further == [
        "! merge     2 set aside: unreadable: the file is cut short",
        "! merge     1 set aside: no class: it lies in no class folder",
        "! merge     5,240 left out as asked (limit_per_class)",
    ]


def test_where_several_options_leave_images_out_each_has_its_count() -> None:
    values = {**MERGED, "set_aside": {}, "left_out": {"label_map": 1, "limit_per_class": 5239}}
    told = ending({"event": "finished", "stage": "merge", "seconds": 1.0, "values": values})
    assert told.endswith("\n! merge     5,240 left out as asked (1 label_map, 5,239 limit_per_class)")


def test_nothing_is_said_where_all_images_take_part() -> None:
    values = {**MERGED, "set_aside": {}, "left_out": {}}
    told = ending({"event": "finished", "stage": "merge", "seconds": 1.0, "values": values})
    assert told == "✓ merge        1.0 s  images 600  quarantined 3"
