"""A picture that comes back under another label is told of, however its file is called now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.components.split.loop import Image, Loop


def images(count: int = 40) -> list[Image]:
    return [Image(f"image{n:02}", f"patient{n:02}", n % 2, pixels=f"pixels{n}") for n in range(count)]


def told(loop: Loop, images: list[Image], caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is said of changed labels while these images are divided."""
    caplog.clear()
    with caplog.at_level("WARNING", "medloop"):
        loop.split(images)
    return [record.fields["why"] for record in caplog.records if record.message == "changed labels"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("moved", [False, True], ids=["in the table", "its file moved"])
def test_a_changed_label_is_told_once(moved: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(tmp_path)
    first = images()
    assert told(loop, first, caplog) == []
    changed = [*first[:-1], replace(first[-1], label=0, name="zebra" if moved else first[-1].name)]
    more = [*changed, Image("new", "new", 1)]
    (words,) = told(loop, more, caplog)
    assert words.startswith("1 image has another label than in the data set of the previous split, of 40 images")
    assert told(loop, more, caplog) == []


def test_findings_that_come_in_any_order_are_the_same_and_others_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(tmp_path, "multilabel")
    first = [replace(image, label=(0, 1) if number % 2 else ()) for number, image in enumerate(images())]
    told(loop, first, caplog)
    assert told(loop, list(reversed(first)), caplog) == []
    changed = [replace(first[0], label=(1,)), replace(first[1], label=(0,)), *first[2:]]
    assert told(loop, changed, caplog)[0].startswith("2 images have another label")


def test_a_split_from_before_labels_were_kept_is_gone_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(tmp_path)
    first = images()
    loop.split(first)
    (loop.folder / "labels.parquet").unlink()
    assert told(loop, [replace(first[0], label=1), *first[1:]], caplog) == []
