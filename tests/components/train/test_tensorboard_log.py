"""A training's course stands in the store as TensorBoard reads it, once, however often it was interrupted."""

from __future__ import annotations

import io
import logging
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from components.shared.storage.store import Store, open_store
from components.train.tensorboard_log import FOLDER, TensorBoardLog

KEY = "0123456789ab" * 5 + "cdef"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def parts(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) or b"" for name in store.names(FOLDER)}


def events(data: bytes) -> list[Any]:
    """The events of a file, each with its checks."""
    found, at = [], 0
    while at < len(data):
        head, (length,) = data[at : at + 8], struct.unpack("<Q", data[at : at + 8])
        body = data[at + 12 : at + 12 + length]
        sums = (data[at + 8 : at + 12], data[at + 12 + length : at + 16 + length])
        assert sums == tuple(struct.pack("<I", masked_crc32c(part)) for part in (head, body))
        found.append(Event.FromString(body))
        at += 16 + length
    return found


def shown(store: Store) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard shows, file by file in the order of names: a start takes back what is of its step or later."""
    series: dict[str, list[tuple[int, Any]]] = {}
    for name, data in sorted(parts(store).items()):
        first, *rest = events(data)
        assert "tfevents" in name.rpartition("/")[2], "by this TensorBoard knows its files"
        assert first.file_version == "brain.Event:2", "by this TensorBoard knows that starts count"
        for event in rest:
            if event.session_log.status == SessionLog.START:
                series = {tag: [point for point in points if point[0] < event.step] for tag, points in series.items()}
            for value in event.summary.value:
                series.setdefault(value.tag, []).append((event.step, value))
    return series


def course(store: Store, begun: int, end: int, killed: bool = False) -> None:
    """A training of steps, ten an epoch, whose figures follow from the step; a killed one ends without a word."""
    board = TensorBoardLog(store, KEY, begun).__enter__()
    for step in range(begun + 1, end + 1):
        board.add_scalars(step, {"train/loss": 1 / step})
        if step % 10 == 0:
            board.add_scalars(step, {"val/AUC": 1 - 1 / step})
            board.write()
    if not killed:
        board.__exit__(None, None, None)


def figures(store: Store, tag: str) -> list[tuple[int, float]]:
    return [(step, value.simple_value) for step, value in shown(store)[tag]]


def test_each_epoch_is_in_the_store_when_it_is_done(store: Store) -> None:
    with TensorBoardLog(store, KEY) as board:
        for epoch in (1, 2, 3):
            board.add_scalars(epoch * 10, {"train/loss": 1 / epoch, "val/AUC": 0.5})
            assert len(parts(store)) == epoch - 1
            board.write()
            assert len(parts(store)) == epoch
            assert figures(store, "train/loss")[-1] == pytest.approx((epoch * 10, 1 / epoch))
        board.write()
        assert len(parts(store)) == 3, "nothing has come since"
        board.add_scalars(31, {"train/loss": 0.1})
    assert [step for step, _ in figures(store, "train/loss")] == [10, 20, 30, 31]
    assert {name.rpartition("/")[0] for name in parts(store)} == {f"tensorboard/{KEY[:12]}"}


@pytest.mark.parametrize("kept", [0, 10, 17, 25])
def test_an_interrupted_training_shows_each_point_once(kept: int, store: Store, tmp_path: Path) -> None:
    """It was killed at step 25, and goes on from a checkpoint of step `kept`; then it is killed at once, again."""
    course(store, 0, 25, killed=kept % 10 == 0)  # one that kept a checkpoint within an epoch had closed the part before
    before = parts(store)
    course(store, kept, kept + 2, killed=True)
    assert parts(store) == before, "nothing was done that lasts"
    course(store, kept, 40)
    quiet = open_store(str(tmp_path / "quiet"))
    course(quiet, 0, 40)
    for tag in ("train/loss", "val/AUC"):
        assert figures(store, tag) == figures(quiet, tag)
    assert {name: data for name, data in parts(store).items() if name in before} == before, "no part is ever changed"


def test_work_that_is_done_again_takes_the_place_of_what_was_there(store: Store) -> None:
    course(store, 0, 40)
    course(store, 0, 20)
    assert [step for step, _ in figures(store, "train/loss")] == list(range(1, 21))


def test_trainings_do_not_touch_each_other(store: Store) -> None:
    course(store, 0, 10)
    with TensorBoardLog(store, "f" * 64) as board:
        board.add_scalars(1, {"train/loss": 5.0})
    assert len({name.rpartition("/")[0] for name in parts(store)}) == 2
    assert len(parts(store)) == 2


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_a_picture_is_shown_as_it_is(shape: tuple[int, ...], store: Store) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with TensorBoardLog(store, KEY) as board:
        board.add_image(0, "what the network sees", picture)
    ((step, value),) = shown(store)["what the network sees"]
    assert (step, value.image.height, value.image.width) == (0, 20, 30)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string))), picture)


def test_a_curve_counts_what_there_is_at_each_threshold(store: Store) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    scores = np.clip(0.3 * labels + 0.7 * rng.random(300), 0, 1)
    with TensorBoardLog(store, KEY) as board:
        board.add_pr_curve(10, "val/PNEUMONIA", labels, scores)
    ((step, value),) = shown(store)["val/PNEUMONIA"]
    assert (step, value.metadata.plugin_data.plugin_name) == (10, "pr_curves")
    table = np.array(value.tensor.float_val).reshape(6, -1)
    for place, threshold in enumerate(np.linspace(0, 1, table.shape[1])):
        taken = np.floor(scores * (table.shape[1] - 1)) >= place
        positive, found = labels == 1, taken & (labels == 1)
        counts = [found.sum(), (taken & ~positive).sum(), (~taken & ~positive).sum(), (~taken & positive).sum()]
        assert table[:4, place].tolist() == counts, f"at {threshold:.2f}"
        np.testing.assert_allclose(table[5, place], found.sum() / positive.sum(), rtol=1e-6)
        if taken.any():
            np.testing.assert_allclose(table[4, place], found.sum() / taken.sum(), rtol=1e-6)


def test_nothing_of_the_machine_is_in_a_part(store: Store, tmp_path: Path) -> None:
    course(store, 0, 20)
    for name, data in parts(store).items():
        for word in (socket.gethostname(), str(tmp_path), sys.prefix, str(Path.home())):
            assert word.encode() not in name.encode() + data


def test_a_store_that_cannot_be_written_costs_a_warning_and_gets_the_rest_later(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = Path(store.uri) / FOLDER
    blocked.parent.mkdir()
    blocked.write_text("no directory")
    with caplog.at_level(logging.WARNING, "medloop"), TensorBoardLog(store, KEY) as board:
        for epoch in (1, 2, 3):
            board.add_scalars(epoch, {"train/loss": 1 / epoch})
            board.write()
        (warning,) = caplog.records
        assert "Not a directory" in warning.__dict__["fields"]["why"]
        assert "The training continues" in warning.__dict__["fields"]["why"]
        blocked.unlink()
    assert [step for step, _ in figures(store, "train/loss")] == [1, 2, 3]
