"""The training loop: epochs of steps, resumed from the last checkpoint; keeps the best weights on validation."""

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
from components.train import sampling
from components.train.augmentation import Augmentation
from components.train.checkpoint import Checkpoints
from components.train.interruption import EXIT_STATUS, Interruption
from components.train.losses import Loss, mix_up
from components.train.optimise import WeightAverage, optimizer, rate_factor, set_rate, unfreeze
from components.train.parameters import TrainParameters
from components.train.split_images import SplitImages
from components.train.validation import score

SYNC_STEPS = 20
"""Steps between checks of the loss on a GPU, since each check waits for the GPU."""
AUGMENTATION_SEED_OFFSET = 0x9E3779B9
"""Offset that keeps the random streams of augmentation and dropout independent. torch's CPU generator uses only the
lower 32 bits of a seed."""
MIN_LOSS_SCALE = 1e-4
"""Below this loss scale, fp16 skips every step."""
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TrainingState:
    """The state of a training, apart from the weights and the optimizer."""

    epoch: int = 1
    """Current epoch, from 1."""
    at: int = 0
    """Completed batches of this epoch."""
    step: int = 0
    """Completed batches in total."""
    updates: int = 0
    """Optimizer steps in total."""
    lost: float = 0.0
    """Sum of the loss over the images of this epoch."""
    best_epoch: int = 0
    best_score: float = -1.0
    best_loss: float = math.inf
    kept_epoch: int = 0
    kept_score: float = -1.0
    seconds: float = 0.0
    """Training time over all attempts; it does not affect the weights."""


@dataclass(frozen=True)
class TrainingResult:
    """Weights of the kept epoch, its score, and the figures of all epochs."""

    weights: dict[str, Tensor]
    epoch: int
    score: float
    history: list[dict[str, float]]


class Observer(Protocol):
    """Receives the progress of a training."""

    def started(self, state: TrainingState, steps: int) -> None:
        """A training with this many steps in total starts or resumes."""

    def epoch_started(self) -> None:
        """The training part of an epoch starts."""

    def step(self, state: TrainingState, images: int) -> bool:
        """A step with this many images is completed; return whether to call `report`."""

    def report(self, state: TrainingState, images: int) -> None:
        """Report that this many images of the epoch are completed; `state.lost` is up to date."""

    def before_checkpoint(self) -> float:
        """Save what was reported so far, before a checkpoint; return the seconds of training so far."""

    def epoch_finished(self, state: TrainingState, figures: dict[str, float], logits: NDArray[np.float64]) -> None:
        """An epoch is completed, with these figures and logits on validation."""


class Training:
    """A training of a network."""

    def __init__(
        self,
        network: nn.Module,
        stages: Sequence[nn.Module],
        images: dict[str, SplitImages],
        task: str,
        parameters: TrainParameters,
        augmentation: Augmentation,
        compiled: bool = False,
    ) -> None:
        self._device = next(network.parameters()).device
        self._network, self._stages, self._task, self._parameters = network, stages, task, parameters
        self._train_images, self._val_images, self._augmentation = images["train"], images["val"], augmentation
        self._run = torch.compile(network) if compiled else network
        targets = self._train_images.targets
        gamma = parameters.focal_gamma if parameters.loss == "focal" else 0.0
        balanced = parameters.sampling == "balanced"  # all classes are equally frequent then
        balance = "none" if balanced else parameters.class_weights
        self._loss = Loss.of(task, targets, balance, gamma, parameters.label_smoothing).to(self._device)
        self._weights = sampling.sampling_weights(targets) if balanced else None
        self._optimizer = optimizer(
            network, stages, parameters.learning_rate, parameters.backbone_rate, parameters.weight_decay
        )
        self._average = WeightAverage(network, parameters.average)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=parameters.precision == "fp16")
        self._now, self._history, self._best = TrainingState(), list[dict[str, float]](), dict[str, Tensor]()
        self._steps = parameters.epochs * len(self._batches(1))
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._finite = torch.ones((), dtype=torch.bool, device=self._device)

    def go(self, checkpoints: Checkpoints, observer: Observer) -> TrainingResult:
        """Train to the end. On SIGTERM, save a checkpoint and exit."""
        if saved := checkpoints.load():
            self._restore(saved)
        now = self._now
        observer.started(now, self._steps)
        with Interruption() as interruption:
            while now.epoch <= self._parameters.epochs and not self._stale():
                self._epoch(checkpoints, interruption, observer)
                if interruption.requested:  # before validation, which can take long
                    self._save(checkpoints, observer)
                    self._end_if(interruption)
                figures, logits = self._validate()
                self._close_epoch(figures)
                observer.epoch_finished(now, self._history[-1], logits)
                self._save(checkpoints, observer)
                self._end_if(interruption)
        return TrainingResult(self._best, now.kept_epoch, now.kept_score, self._history)

    def _epoch(self, checkpoints: Checkpoints, interruption: Interruption, observer: Observer) -> None:
        now, parameters = self._now, self._parameters
        observer.epoch_started()
        self._network.train()
        unfreeze(self._stages, now.epoch, parameters.frozen_epochs, parameters.unfreezing == "gradual")
        batches = self._batches(now.epoch)
        self._loss_sum.fill_(now.lost)
        for images, targets in self._train_images.batches(batches[now.at :], self._device):
            last = now.at + 1 == len(batches)
            first = now.at // parameters.accumulate * parameters.accumulate
            together = sum(map(len, batches[first : first + parameters.accumulate]))
            updates = last or (now.at + 1) % parameters.accumulate == 0
            self._step(images, targets, len(images) / together)
            if updates:
                self._update()
            now.at += 1
            now.step += 1
            save = updates and not last and (interruption.requested or checkpoints.due())
            report = observer.step(now, len(images))
            if save or report or last or self._device.type == "cpu" or now.step % SYNC_STEPS == 0:
                self._check_loss()
            if report:
                observer.report(now, sum(map(len, batches[: now.at])))
            if save:
                self._save(checkpoints, observer)
                self._end_if(interruption)

    def _step(self, images: Tensor, targets: Tensor, share: float) -> None:
        """Add the gradients of a batch, which is this share of the images of an optimizer step."""
        now, parameters = self._now, self._parameters
        # All randomness derives from the seed and the step, so a resumed training equals an uninterrupted one.
        torch.manual_seed(parameters.seed * 1_000_003 + now.step)
        generator = torch.Generator().manual_seed(AUGMENTATION_SEED_OFFSET + parameters.seed * 1_000_003 + now.step)
        with torch.no_grad():
            images = self._train_images.normalise(self._augmentation(images, generator))
            if parameters.mixup:
                rng = np.random.default_rng([parameters.seed, now.step, 2])
                own = float(rng.beta(parameters.mixup, parameters.mixup))
                images, targets = mix_up(images, targets, own)
            images = images.contiguous(memory_format=torch.channels_last)
        set_rate(self._optimizer, rate_factor(now.step, self._steps, parameters.warmup))
        with self._precision():
            loss = self._loss(self._run(images)[0], targets)
        torch.autograd.backward(self._scaler.scale(loss * share))
        self._loss_sum += loss.detach() * len(images)
        self._finite &= loss.detach().isfinite()

    def _update(self) -> None:
        weights = [weight for weight in self._network.parameters() if weight.grad is not None]
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(weights, self._parameters.clip or math.inf)
        if not self._scaler.is_enabled():  # a scaler skips steps that overflow, and continues
            self._finite &= norm.isfinite()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._now.updates += 1
        self._average.update(self._network, self._now.updates)

    def _precision(self) -> torch.autocast:
        kind = TYPES.get(self._parameters.precision)
        return torch.autocast(self._device.type, kind, enabled=kind is not None)

    def _check_loss(self) -> None:
        """Read the loss from the device; raise an error if the training diverged."""
        now = self._now
        if not bool(self._finite) or (self._scaler.is_enabled() and self._scaler.get_scale() < MIN_LOSS_SCALE):
            steps = "" if self._device.type == "cpu" else f" or up to {SYNC_STEPS - 1} steps earlier"
            raise self._divergence(f"The loss became NaN or infinite at step {now.step:,}{steps} (epoch {now.epoch})")
        now.lost = float(self._loss_sum)

    def _divergence(self, problem: str) -> Exception:
        # On a CPU the result is reproducible; another GPU, or its arithmetic, can succeed with the same work.
        kind = ValueError if self._device.type == "cpu" else RuntimeError
        return kind(
            f"{problem}, with a learning rate of {self._parameters.learning_rate:g}. The last good checkpoint is kept. "
            "Lower learning_rate, lengthen warmup, or set precision to float32."
        )

    def _validate(self) -> tuple[dict[str, float], NDArray[np.float64]]:
        logits = predict_logits(
            self._average.network, self._val_images, 2 * self._parameters.batch_size, self._precision()
        )
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        if bad:
            images = f"{bad:,} of {len(logits):,} validation images"
            raise self._divergence(f"The network returns NaN or infinity for {images} after epoch {self._now.epoch}")
        return score(logits, self._val_images.targets, self._task), logits

    def _close_epoch(self, figures: dict[str, float]) -> None:
        now = self._now
        figures = {"loss": now.lost / len(self._train_images), **figures}
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
        since = max(self._now.best_epoch, self._parameters.frozen_epochs)  # unfreezing can improve the score again
        return 0 < self._parameters.patience <= self._now.epoch - 1 - since

    def _end_if(self, interruption: Interruption) -> None:
        if interruption.requested:
            event("interrupted", "train", why=f"SIGTERM received; the checkpoint of step {self._now.step:,} is saved")
            raise SystemExit(EXIT_STATUS)

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        positions = sampling.draw_order(len(self._train_images), self._parameters.seed, epoch, self._weights)
        return sampling.make_batches(positions, self._parameters.batch_size)

    def _parts(self) -> dict[str, Any]:
        parts = {"network": self._network, "optimizer": self._optimizer, "scaler": self._scaler}
        return parts | ({"average": self._average.network} if self._parameters.average else {})

    def _save(self, checkpoints: Checkpoints, observer: Observer) -> None:
        self._now.seconds = observer.before_checkpoint()
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        about = {"now": asdict(self._now), "history": self._history, "best": self._best}
        checkpoints.save(self._now.step, {"at": self._hardware(), **parts, **about})

    def _hardware(self) -> str:
        return f"{self._device.type} in {self._parameters.precision}"

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["at"] != self._hardware():
            why = f"started on {saved['at']}, resumed on {self._hardware()}: the result is not reproducible to the bit"
            log.warning("another device", extra={"fields": {"stage": "train", "why": why}})
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        for name, value in saved["now"].items():
            setattr(self._now, name, value)
        self._history, self._best = saved["history"], saved["best"]


@torch.no_grad()
def predict_logits(network: nn.Module, images: SplitImages, size: int, precision: Any = None) -> NDArray[np.float64]:
    """Return the logits of all images of a split, in order."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    batches = [np.arange(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    with precision or nullcontext():
        parts = [
            network(images.normalise(batch).contiguous(memory_format=torch.channels_last))[0].float().cpu().numpy()
            for batch, _ in images.batches(batches, device)
        ]
    network.train(training)
    return np.concatenate(parts).astype(np.float64)
