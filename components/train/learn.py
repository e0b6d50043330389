"""The course of a training: epochs of steps, from the last checkpoint on; the best weights by the validation side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.shared.runtime.events import event, log
from components.train import order
from components.train.augment import Augmentation
from components.train.checkpoint import Checkpoints
from components.train.feed import Side
from components.train.interruption import ENDED, Interruption
from components.train.judge import judge
from components.train.losses import Loss, mixed
from components.train.optimise import Average, optimizer, release, set_rate, share_of_rate
from components.train.parameters import TrainParameters

LOOK = 20
"""On a GPU the loss is looked at every so many steps, since each look makes it wait."""
APART = 0x9E3779B9
"""Between the seeds of what is drawn for the images and for the network, which are not to be the same numbers. torch's
generator for the processor takes no more than the lower 32 bits of a seed."""
LEAST_SCALE = 1e-4
"""Below this scale fp16 leaves out every step."""
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Standing:
    """Where a training stands, apart from the weights and the optimizer's memory."""

    epoch: int = 1
    """The epoch at work, from 1."""
    at: int = 0
    """How many of its batches are done."""
    step: int = 0
    """How many batches are done in all."""
    updates: int = 0
    """How often the weights were moved."""
    lost: float = 0.0
    """The sum of this epoch's losses over its images."""
    best_epoch: int = 0
    best_score: float = -1.0
    best_loss: float = math.inf
    kept_epoch: int = 0
    kept_score: float = -1.0
    seconds: float = 0.0
    """For how long it has been at work, over all interruptions; of no influence on the weights."""


@dataclass(frozen=True)
class Learned:
    """What came of it."""

    weights: dict[str, Tensor]
    epoch: int
    score: float
    history: list[dict[str, float]]


class Watch(Protocol):
    """Is told how a training goes."""

    def begun(self, standing: Standing, steps: int) -> None:
        """A training of so many steps in all, from here on."""

    def epoch_begins(self) -> None:
        """Images are learned from, from now on."""

    def step(self, standing: Standing, images: int) -> bool:
        """So many images more were learned from; whether it is time for a word about it."""

    def word(self, standing: Standing, images: int) -> None:
        """A word about an epoch on its way, of which so many images were learned from; `lost` is up to date."""

    def pause(self) -> float:
        """The state is about to be kept, and so is to be what was told of it; gives the seconds at work."""

    def epoch(self, standing: Standing, figures: dict[str, float], logits: NDArray[np.float64]) -> None:
        """An epoch is over: its figures, and what the network says of the validation side."""


class Training:
    """A network on its way."""

    def __init__(
        self,
        network: nn.Module,
        stages: Sequence[nn.Module],
        sides: dict[str, Side],
        task: str,
        parameters: TrainParameters,
        augmentation: Augmentation,
        compiled: bool = False,
    ) -> None:
        self._device = next(network.parameters()).device
        self._network, self._stages, self._task, self._parameters = network, stages, task, parameters
        self._side, self._held_out, self._augmentation = sides["train"], sides["val"], augmentation
        self._run = torch.compile(network) if compiled else network
        targets = self._side.targets
        gamma = parameters.focal_gamma if parameters.loss == "focal" else 0.0
        drawn_alike = parameters.sampling == "balanced"  # then no class is rare any more
        balance = "none" if drawn_alike else parameters.class_weights
        self._loss = Loss.of(task, targets, balance, gamma, parameters.label_smoothing).to(self._device)
        self._weights = order.weights_of(targets) if drawn_alike else None
        self._optimizer = optimizer(
            network, stages, parameters.learning_rate, parameters.backbone_rate, parameters.weight_decay
        )
        self._average = Average(network, parameters.average)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=parameters.precision == "fp16")
        self._now, self._history, self._best = Standing(), list[dict[str, float]](), dict[str, Tensor]()
        self._steps = parameters.epochs * len(self._batches(1))
        self._lost = torch.zeros((), dtype=torch.float64, device=self._device)
        self._sound = torch.ones((), dtype=torch.bool, device=self._device)

    def go(self, checkpoints: Checkpoints, watch: Watch) -> Learned:
        """Train to the end. SIGTERM is answered with a checkpoint and the end of the process."""
        if saved := checkpoints.load():
            self._take(saved)
        now = self._now
        watch.begun(now, self._steps)
        with Interruption() as interruption:
            while now.epoch <= self._parameters.epochs and not self._stale():
                self._epoch(checkpoints, interruption, watch)
                if interruption.asked:  # before the validation side is looked at, which may take long
                    self._save(checkpoints, watch)
                    self._end_if(interruption)
                figures, logits = self._judged()
                self._close_epoch(figures)
                watch.epoch(now, self._history[-1], logits)
                self._save(checkpoints, watch)
                self._end_if(interruption)
        return Learned(self._best, now.kept_epoch, now.kept_score, self._history)

    def _epoch(self, checkpoints: Checkpoints, interruption: Interruption, watch: Watch) -> None:
        now, parameters = self._now, self._parameters
        watch.epoch_begins()
        self._network.train()
        release(self._stages, now.epoch, parameters.frozen_epochs, parameters.unfreezing == "gradual")
        batches = self._batches(now.epoch)
        self._lost.fill_(now.lost)
        for images, targets in self._side.batches(batches[now.at :], self._device):
            last = now.at + 1 == len(batches)
            first = now.at // parameters.accumulate * parameters.accumulate
            together = sum(map(len, batches[first : first + parameters.accumulate]))
            moves = last or (now.at + 1) % parameters.accumulate == 0
            self._step(images, targets, len(images) / together)
            if moves:
                self._move()
            now.at += 1
            now.step += 1
            stop = moves and not last and (interruption.asked or checkpoints.due())
            word = watch.step(now, len(images))
            if stop or word or last or self._device.type == "cpu" or now.step % LOOK == 0:
                self._look()
            if word:
                watch.word(now, sum(map(len, batches[: now.at])))
            if stop:
                self._save(checkpoints, watch)
                self._end_if(interruption)

    def _step(self, images: Tensor, targets: Tensor, share: float) -> None:
        """Learn from a batch, which is this share of the images before the weights move."""
        now, parameters = self._now, self._parameters
        # All chance comes from the seed and the step, so a training that goes on is the same as one that never ended.
        torch.manual_seed(parameters.seed * 1_000_003 + now.step)
        chance = torch.Generator().manual_seed(APART + parameters.seed * 1_000_003 + now.step)
        with torch.no_grad():
            images = self._side.normalised(self._augmentation(images, chance))
            if parameters.mixup:
                rng = np.random.default_rng([parameters.seed, now.step, 2])
                own = float(rng.beta(parameters.mixup, parameters.mixup))
                images, targets = mixed(images, targets, own)
            images = images.contiguous(memory_format=torch.channels_last)
        set_rate(self._optimizer, share_of_rate(now.step, self._steps, parameters.warmup))
        with self._precision():
            loss = self._loss(self._run(images)[0], targets)
        torch.autograd.backward(self._scaler.scale(loss * share))
        self._lost += loss.detach() * len(images)
        self._sound &= loss.detach().isfinite()

    def _move(self) -> None:
        weights = [weight for weight in self._network.parameters() if weight.grad is not None]
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(weights, self._parameters.clip or math.inf)
        if not self._scaler.is_enabled():  # a scaler leaves out a step whose numbers grew too large, and goes on
            self._sound &= norm.isfinite()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._now.updates += 1
        self._average.follow(self._network, self._now.updates)

    def _precision(self) -> torch.autocast:
        kind = TYPES.get(self._parameters.precision)
        return torch.autocast(self._device.type, kind, enabled=kind is not None)

    def _look(self) -> None:
        """Take the loss from the device, and end a training that has gone astray."""
        now = self._now
        if not bool(self._sound) or (self._scaler.is_enabled() and self._scaler.get_scale() < LEAST_SCALE):
            steps = "" if self._device.type == "cpu" else f" or up to {LOOK - 1} before"
            raise self._astray(f"The loss is no number any more, in step {now.step:,}{steps} (epoch {now.epoch})")
        now.lost = float(self._lost)

    def _astray(self, what: str) -> Exception:
        # On a processor it is so each time; another GPU, or its other arithmetic, may do better with the same work.
        kind = ValueError if self._device.type == "cpu" else RuntimeError
        return kind(
            f"{what}, with a learning rate of {self._parameters.learning_rate:g}. The last good checkpoint is kept. "
            "Lower learning_rate, lengthen warmup, or set precision to float32."
        )

    def _judged(self) -> tuple[dict[str, float], NDArray[np.float64]]:
        logits = said(self._average.network, self._held_out, 2 * self._parameters.batch_size, self._precision())
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        if bad:
            whom = f"{bad:,} of {len(logits):,} validation images"
            raise self._astray(f"The network gives no number for {whom} after epoch {self._now.epoch}")
        return judge(logits, self._held_out.targets, self._task), logits

    def _close_epoch(self, figures: dict[str, float]) -> None:
        now = self._now
        figures = {"loss": now.lost / len(self._side), **figures}
        self._history.append({name: round(value, 6) for name, value in figures.items()})
        better = (figures["val_auc"], -figures["val_loss"]) > (now.best_score, -now.best_loss)
        if better:
            now.best_epoch, now.best_score, now.best_loss = now.epoch, figures["val_auc"], figures["val_loss"]
        if better or self._parameters.keep == "last":
            now.kept_epoch, now.kept_score = now.epoch, figures["val_auc"]
            state = self._average.network.state_dict()
            self._best = {name: part.detach().cpu().clone() for name, part in state.items()}
        now.epoch, now.at, now.lost = now.epoch + 1, 0, 0.0

    def _stale(self) -> bool:
        since = max(self._now.best_epoch, self._parameters.frozen_epochs)  # a frozen body is not at its end
        return 0 < self._parameters.patience <= self._now.epoch - 1 - since

    def _end_if(self, interruption: Interruption) -> None:
        if interruption.asked:
            event("interrupted", "train", why=f"asked to end; what was learned by step {self._now.step:,} is kept")
            raise SystemExit(ENDED)

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        places = order.order(len(self._side), self._parameters.seed, epoch, self._weights)
        return order.batches(places, self._parameters.batch_size)

    def _parts(self) -> dict[str, Any]:
        parts = {"network": self._network, "optimizer": self._optimizer, "scaler": self._scaler}
        return parts | ({"average": self._average.network} if self._parameters.average else {})

    def _save(self, checkpoints: Checkpoints, watch: Watch) -> None:
        self._now.seconds = watch.pause()
        kept = {name: part.state_dict() for name, part in self._parts().items()}
        state = {"at": self._place(), **kept, "now": asdict(self._now), "history": self._history, "best": self._best}
        checkpoints.save(self._now.step, state)

    def _place(self) -> str:
        return f"{self._device.type} in {self._parameters.precision}"

    def _take(self, saved: dict[str, Any]) -> None:
        if saved["at"] != self._place():
            why = f"it began on {saved['at']} and goes on on {self._place()}, so its end is not the same to the bit"
            log.warning("another device", extra={"fields": {"stage": "train", "why": why}})
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        for name, value in saved["now"].items():
            setattr(self._now, name, value)
        self._history, self._best = saved["history"], saved["best"]


@torch.no_grad()
def said(network: nn.Module, side: Side, size: int, precision: Any = None) -> NDArray[np.float64]:
    """The logits of all images of a side, in order."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    batches = [np.arange(start, min(start + size, len(side))) for start in range(0, len(side), size)]
    with precision or nullcontext():
        parts = [
            network(side.normalised(images).contiguous(memory_format=torch.channels_last))[0].float().cpu().numpy()
            for images, _ in side.batches(batches, device)
        ]
    network.train(training)
    return np.concatenate(parts).astype(np.float64)
