"""The course of a training: what it may be asked for, and that an interruption changes nothing about its end."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from components.shared.datasets.dataset import Views
from components.shared.runtime.events import log
from components.train import models
from components.train.augmentation import Augmentation
from components.train.checkpoint import Checkpoints
from components.train.optimise import optimizer, rate_factor
from components.train.parameters import TrainParameters
from components.train.split_images import SplitImages
from components.train.training_loop import AUGMENTATION_SEED_OFFSET, Training, TrainingResult, TrainingState

PARAMETERS = TrainParameters(
    epochs=2,
    batch_size=16,
    accumulate=1,
    learning_rate=3e-3,
    backbone_rate=1.0,
    warmup=0.2,
    weight_decay=0.02,
    clip=5.0,
    loss="cross_entropy",
    focal_gamma=2.0,
    label_smoothing=0.0,
    class_weights="balanced",
    sampling="each_once",
    mixup=0.0,
    average=0.0,
    frozen_epochs=0,
    unfreezing="gradual",
    patience=0,
    keep="best",
    precision="float32",
    seed=7,
)
EVERYTHING: dict[str, Any] = {
    "accumulate": 3,
    "loss": "focal",
    "label_smoothing": 0.1,
    "sampling": "balanced",
    "mixup": 0.4,
    "average": 0.99,
    "frozen_epochs": 1,
    "backbone_rate": 0.5,
    "precision": "bf16",
}


class Kept:
    """Checkpoints in memory, as the store keeps them."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def keep(self, name: str, data: bytes) -> None:
        self.held[name] = data

    def kept(self, name: str) -> bytes | None:
        return self.held.get(name)

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.held if name.startswith(prefix))

    def drop(self, name: str) -> None:
        del self.held[name]


class StoppedError(Exception):
    """The process is gone."""


class Watching:
    """Ends a training at a step, as if by SIGKILL, and remembers what it was told."""

    def __init__(self, stop: int = -1) -> None:
        self.stop, self.begun_at, self.steps = stop, -1, 0

    def started(self, state: TrainingState, _steps: int) -> None:
        self.begun_at = state.step

    def epoch_started(self) -> None:
        pass

    def step(self, state: TrainingState, _images: int) -> bool:
        self.steps += 1
        if state.step == self.stop:
            raise StoppedError
        return False

    def report(self, state: TrainingState, images: int) -> None:
        pass

    def before_checkpoint(self) -> float:
        return 0.0

    def epoch_finished(self, _state: TrainingState, _figures: dict[str, float], _logits: NDArray[np.float64]) -> None:
        pass


def sides(task: str = "classification", colour: bool = False, count: int = 90) -> dict[str, SplitImages]:
    """Images of noise; those of the second class have a bright square."""
    chance = np.random.default_rng(0)
    images = chance.integers(0, 90, (count, 48, 48, 3) if colour else (count, 48, 48), dtype=np.uint8)
    labels = chance.integers(0, 2, count)
    images[labels == 1, 14:30, 14:30] += 90
    targets = np.eye(2, dtype=np.float32)[labels]
    if task == "multilabel":
        dark = chance.integers(0, 2, count)
        images[dark == 1, :12] = 0
        targets = np.stack([labels, dark], axis=1).astype(np.float32)
    views = Views([images], np.zeros(count, np.int32), np.arange(count, dtype=np.int32))
    preprocess = {"size": 48, "fit": "pad", "channels": 3 if colour else 1, "mean": 0.25, "std": 0.2}
    cut = count * 2 // 3
    parts = {"train": np.arange(cut), "val": np.arange(cut, count)}
    return {side: SplitImages(views, rows, targets[rows], preprocess) for side, rows in parts.items()}


def training(given: dict[str, SplitImages] | None = None, task: str = "classification", **course: Any) -> Training:
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(1)
    given = given or sides(task)
    network = models.build("small", given["train"].preprocess["channels"], 2, 48)
    asked = replace(PARAMETERS, **course)
    return Training(network, models.stages(network), given, task, asked, Augmentation.parse("radiograph"))


def go(kept: Kept, stop: int = -1, every: float = 1e9, **course: Any) -> tuple[TrainingResult, Watching]:
    watching = Watching(stop)
    return training(**course).go(Checkpoints(kept, every), watching), watching  # type: ignore[arg-type]  # keeps alike


@cache
def undisturbed(course: str) -> TrainingResult:
    """A training that nothing cut off, by its parameters as JSON; done once."""
    return go(Kept(), **json.loads(course))[0]


def whole_of(**course: Any) -> TrainingResult:
    """What a training with these parameters gives where nothing cuts it off."""
    return undisturbed(json.dumps(course))


def same(one: TrainingResult, two: TrainingResult) -> bool:
    return one.history == two.history and all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)


def test_checkpoints_take_a_fiftieth_of_the_time_and_one_that_failed_costs_none(
    told: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]

    class Slow(Kept):
        seconds, full = 3.0, False

        def keep(self, name: str, data: bytes) -> None:
            now[0] += self.seconds
            if self.full:
                raise OSError("No space left on device")
            super().keep(name, data)

    def waits() -> float:
        begun = now[0]
        while not checkpoints.due():
            now[0] += 0.5
        return now[0] - begun

    kept = Slow()
    checkpoints = Checkpoints(kept, 0, lambda: now[0])  # type: ignore[arg-type]
    assert waits() == 1, "the first comes soon"
    checkpoints.save(1, {})
    assert waits() == 150, "fifty times what the last one took"
    kept.seconds, kept.full = 600.0, True
    checkpoints.save(2, {})
    assert "checkpoint not kept" in told.messages
    assert waits() == 150, "ten minutes of waiting for a store that is full are no reason to wait for hours"


@pytest.mark.slow
@pytest.mark.parametrize("course", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("stop", [1, 3, 4, 6, 7])
def test_a_training_that_was_cut_off_ends_as_one_that_was_not(course: dict[str, Any], stop: int) -> None:
    whole = whole_of(**course)
    kept = Kept()
    with pytest.raises(StoppedError):
        go(kept, stop=stop, every=1e-9, **course)
    again, watching = go(kept, **course)
    assert watching.begun_at <= stop
    assert watching.begun_at >= stop - 1 - (course.get("accumulate", 1) - 1), "no more is lost than was not yet kept"
    assert same(whole, again)


def test_a_training_that_is_over_is_not_repeated() -> None:
    kept = Kept()
    whole, _ = go(kept)
    again, watching = go(kept)
    assert watching.steps == 0
    assert same(whole, again)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("WARNING", logger=log.name)
    return caplog


@pytest.mark.slow
def test_the_checkpoint_before_a_damaged_one_serves(told: pytest.LogCaptureFixture) -> None:
    whole = whole_of()
    kept = Kept()
    with pytest.raises(StoppedError):
        go(kept, stop=6, every=1e-9)
    older, newest = kept.names("checkpoint-")
    assert (older, newest) == ("checkpoint-000000004", "checkpoint-000000005")
    damaged = bytearray(kept.held[newest])
    damaged[len(damaged) // 2] ^= 1
    kept.held[newest] = bytes(damaged)
    again, watching = go(kept)
    assert watching.begun_at == 4
    assert same(whole, again)
    assert "checkpoint damaged" in told.messages
    for name in kept.names("checkpoint-"):
        kept.held[name] = kept.held[name][:1000]
    anew, watching = go(kept)
    assert watching.begun_at == 0
    assert same(whole, anew)


@pytest.mark.slow
def test_after_two_damaged_checkpoints_new_ones_are_kept_again() -> None:
    whole = whole_of()
    kept = Kept()
    with pytest.raises(StoppedError):
        go(kept, stop=7, every=1e-9)
    for name in kept.names("checkpoint-"):
        kept.held[name] = b"damaged" + kept.held[name]
    with pytest.raises(StoppedError):
        go(kept, stop=3, every=1e-9)
    assert kept.names("checkpoint-") == ["checkpoint-000000001", "checkpoint-000000002"]
    again, watching = go(kept)
    assert watching.begun_at == 2
    assert same(whole, again)


@pytest.mark.slow
def test_a_store_that_takes_no_checkpoint_does_not_end_the_training(told: pytest.LogCaptureFixture) -> None:
    class Full(Kept):
        def keep(self, name: str, data: bytes) -> None:
            raise OSError(28, f"No space left on device for the {len(data)} bytes of {name}")

    whole = whole_of()
    assert same(whole, go(Full(), every=1e-9)[0])
    assert "checkpoint not kept" in told.messages


@pytest.mark.slow
@pytest.mark.parametrize(
    "course",
    [
        {"loss": "focal"},
        {"sampling": "balanced", "class_weights": "none"},
        {"mixup": 0.3},
        {"average": 0.9},
        {"accumulate": 2},
        {"frozen_epochs": 1},
        {"frozen_epochs": 1, "unfreezing": "at_once"},
        {"backbone_rate": 0.1},
        {"precision": "bf16"},
        {"label_smoothing": 0.2},
    ],
    ids=" ".join,
)
def test_each_way_of_training_learns_what_there_is_to_learn(course: dict[str, Any]) -> None:
    learned, _ = go(Kept(), epochs=4, **course)
    plain = whole_of(epochs=4)
    assert learned.score > 0.9
    assert learned.history != plain.history, "the option makes a difference"


@pytest.mark.slow
def test_the_last_epoch_is_kept_where_that_is_asked_for() -> None:
    course: dict[str, Any] = {"epochs": 6, "learning_rate": 0.03}
    (best, _), (last, _) = go(Kept(), **course), go(Kept(), keep="last", **course)
    assert (best.history, last.epoch) == (last.history, 6)
    ranks = [(figures["val_auc"], -figures["val_loss"]) for figures in best.history]
    assert best.epoch == 1 + ranks.index(max(ranks))


@pytest.mark.slow
def test_findings_are_learned_side_by_side() -> None:
    learned, _ = go(Kept(), task="multilabel", epochs=6)
    assert learned.score > 0.9, learned.history


@pytest.mark.slow
def test_colours_are_learned_from() -> None:
    learned = training(sides(colour=True), epochs=4).go(Checkpoints(Kept(), 1e9), Watching())  # type: ignore[arg-type]
    assert learned.score > 0.9


@pytest.mark.slow
def test_patience_ends_a_training_that_gets_no_better() -> None:
    learned, _ = go(Kept(), epochs=30, patience=2, learning_rate=1e-7)
    assert len(learned.history) == learned.epoch + 2 < 30


@pytest.mark.slow
def test_patience_counts_from_the_best_epoch_also_where_the_last_is_kept() -> None:
    learned, _ = go(Kept(), epochs=30, patience=2, learning_rate=1e-7, keep="last")
    assert len(learned.history) == learned.epoch < 30


@pytest.mark.slow
def test_patience_does_not_count_epochs_in_which_the_body_is_frozen() -> None:
    learned, _ = go(Kept(), epochs=6, patience=1, frozen_epochs=4, learning_rate=1e-7)
    assert len(learned.history) > 4


def test_changes_and_network_do_not_draw_the_same_numbers() -> None:
    torch.manual_seed(5)
    assert not torch.equal(
        torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(AUGMENTATION_SEED_OFFSET + 5))
    )


def test_images_that_are_drawn_alike_often_do_not_weigh_more_as_well() -> None:
    given = sides()
    targets = np.zeros_like(given["train"].targets)
    targets[:, 0] = 1
    targets[:6] = [0, 1]
    given["train"] = replace(given["train"], targets=targets)
    assert training(given)._loss.weights.tolist() == pytest.approx([60 / 2 / 54, 60 / 2 / 6])
    assert training(given, sampling="balanced")._loss.weights.tolist() == [1, 1]


def test_a_frozen_body_stays_as_it_was() -> None:
    before = {name: part.clone() for name, part in training()._network.state_dict().items()}
    learned, _ = go(Kept(), epochs=1, frozen_epochs=1)
    moved = {name for name, part in learned.weights.items() if not torch.equal(part, before[name])}
    assert moved
    assert all(name.startswith("head") for name in moved)


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_the_last_good_checkpoint() -> None:
    kept = Kept()
    with pytest.raises(
        ValueError, match=r"became NaN or infinite at step [\d,]+ \(epoch \d\), with a learning rate of 1e\+20"
    ):
        go(kept, every=1e-9, learning_rate=1e20, clip=0.0, warmup=0.0, epochs=3)
    for name in kept.names("checkpoint-"):
        state = Checkpoints(kept, 0).load()  # type: ignore[arg-type]
        assert state is not None
        assert all(part.isfinite().all() for part in state["network"].values() if part.is_floating_point()), name


def test_validation_without_numbers_ends_the_training_and_leaves_the_last_good_checkpoint() -> None:
    kept = Kept()
    astray = training()
    norms = [part for part in astray._network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    norms[0].running_var.fill_(np.nan)  # type: ignore[union-attr]  # learning never looks at it; its loss is sound
    with pytest.raises(
        ValueError, match="returns NaN or infinity for 30 of 30 validation images after epoch 1, with a lear"
    ):
        astray.go(Checkpoints(kept, 1e9), Watching())  # type: ignore[arg-type]
    assert not kept.held, "what was learned last is not good"


def test_the_rate_rises_in_a_line_and_falls_in_half_a_wave() -> None:
    shares = [rate_factor(step, 100, 0.2) for step in range(100)]
    assert shares[0] == pytest.approx(0.05)
    assert shares[19] == shares[20] == 1
    assert shares[60] == pytest.approx(0.505)
    assert shares == [*sorted(shares[:20]), *sorted(shares[20:], reverse=True)]
    assert 0.01 <= shares[-1] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["small", "vit", "convnext_tiny"])
def test_only_weights_that_multiply_decay_and_the_body_has_its_own_rate(architecture: str) -> None:
    network = models.build(architecture, 1, 2, 64, 32, 0.0)
    moving = optimizer(network, models.stages(network), 1e-3, 0.1, 0.05)
    groups = {
        id(weight): (group["rate"], group["weight_decay"])
        for group in moving.param_groups
        for weight in group["params"]
    }
    for name, weight in network.named_parameters():
        rate, decay = groups.pop(id(weight))
        assert rate == (1e-3 if name.startswith("head.") else 1e-4), name
        multiplies = name.endswith("weight") and weight.ndim > 1
        assert decay == (0.05 if multiplies else 0.0), name
    assert not groups
