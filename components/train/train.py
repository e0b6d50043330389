"""Trains a network on the train side, chooses on the validation side, and exports what it learned."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from components.shared import contracts
from components.shared.contracts import Between, In, OneOf, Out
from components.shared.dataset import Data, Views
from components.shared.views import normalise
from components.shared.work import Work, log, progress
from components.train.augment import augment as change
from components.train.calibrate import best_threshold, fit_temperature
from components.train.device import choose
from components.train.export import check_parity, write_bundle
from components.train.models import build
from components.train.tracking import Tracking

SHORTEST_CYCLE = 8
"""Steps below which a learning rate has no time to rise and fall."""


def train(
    dataset: In,
    splits: In,
    model: Out,
    work: Work,
    *,
    architecture: str = "small",
    image_size: Annotated[int, Between(48, 1024)] = 96,
    epochs: Annotated[int, Between(1, 1000)] = 24,
    batch_size: Annotated[int, Between(2, 4096)] = 16,
    learning_rate: Annotated[float, Between(1e-7, 1)] = 2e-3,
    device: Annotated[str, OneOf(("auto", "cpu", "cuda"))] = "auto",
    weight_decay: Annotated[float, Between(0, 1)] = 2e-2,
    label_smoothing: Annotated[float, Between(0, 0.5)] = 0.0,
    augment: Annotated[float, Between(0, 3)] = 1.0,
    fit: Annotated[str, OneOf(("pad", "stretch"))] = "pad",
    channels: Annotated[int, Between(1, 3)] = 1,
    threads: Annotated[int, Between(0, 256)] = 0,
    seed: Annotated[int, Between(0, 2147483647)] = 7,
) -> dict[str, Any]:
    """Train a network on the train side, choose its best epoch, temperature and threshold on validation, export it.

    The same inputs, parameters and machine give the same weights, also when the training was interrupted on the way.

        architecture: the network's name (small, resnet18, resnet50, efficientnet_b0, efficientnet_b4, densenet121, vit,
            convnext_tiny)
        image_size: side of the square the network sees, in pixels
        epochs: passes over the training images
        batch_size: images a step
        learning_rate: the highest rate of the one-cycle schedule
        device: a GPU where there is one, the processor, or a GPU and nothing else
        weight_decay: AdamW's pull of the weights towards zero
        label_smoothing: share of certainty taken from the labels
        augment: how strongly training images are varied; 0 is not at all
        fit: how an image becomes square: padded, or stretched
        channels: gray images are given to the network this many times; colour images need 3
        threads: processor threads; 0 takes all
        seed: of the first weights, the order of images and their variation
    """
    place = choose(device)
    torch.use_deterministic_algorithms(True)
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    data = Data.open(dataset, work.store)
    if data.about["decoding"]["colour"] == "rgb" and channels != 3:
        raise ValueError(f"The data set's images have colours, and channels is {channels}. Set channels to 3.")
    network = build(architecture, channels, len(data.classes), image_size).to(place)
    views, labels = data.views(image_size, fit), data.labels
    rows = {side: data.rows(splits, side) for side in ("train", "val")}
    preprocess = {"size": image_size, "fit": fit, "channels": channels, "decoding": data.about["decoding"]}
    preprocess |= _scale(views, rows["train"])
    course = Course(epochs, batch_size, learning_rate, weight_decay, label_smoothing, augment, seed)
    sides = {side: Side(views, rows[side], labels[rows[side]], preprocess) for side in rows}
    parameters = {"architecture": architecture, "image_size": image_size, **vars(course)}
    with Tracking(work.key, parameters) as tracking:
        best = _learn(network, sides["train"], sides["val"], course, work, tracking)
    network.load_state_dict(best["weights"])
    logits = _logits(network.to("cpu"), sides["val"])
    temperature = fit_temperature(logits, sides["val"].labels)
    about = {
        "task": data.about["task"],
        "architecture": architecture,
        "classes": data.classes,
        "preprocess": preprocess,
        "temperature": temperature,
        "threshold": best_threshold(logits / temperature, sides["val"].labels),
        "fingerprints": _fingerprints(data, splits),
        "parameters": parameters,
        "best_epoch": best["epoch"],
        "history": best["history"],
        "device": place.type,
        "images": {side: len(rows[side]) for side in rows},
    }
    write_bundle(model, network, about)
    check_parity(model, network, views[rows["val"][:64]])
    return {"best_epoch": best["epoch"], "val_auc": best["score"]}


@dataclass(frozen=True)
class Course:
    """How to train."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    augment: float
    seed: int


@dataclass(frozen=True)
class Side:
    """The images of one side of the split, with their labels."""

    views: Views
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    preprocess: dict[str, Any]

    def batch(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The images and labels at these places of the side."""
        images = torch.from_numpy(normalise(self.views[self.rows[places]], self.preprocess))
        return images, torch.from_numpy(self.labels[places].astype(np.int64))


def _scale(views: Views, rows: NDArray[np.int64]) -> dict[str, float]:
    sample = views[rows[:: max(1, len(rows) // 512)]].astype(np.float64) / 255
    return {"mean": round(float(sample.mean()), 4), "std": round(max(float(sample.std()), 1e-3), 4)}


def _learn(
    network: nn.Module, side: Side, held_out: Side, course: Course, work: Work, tracking: Tracking
) -> dict[str, Any]:
    """Train to the end, from the last checkpoint on if there is one; gives the best epoch's weights and the history."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=course.learning_rate, weight_decay=course.weight_decay)
    steps = math.ceil(len(side.rows) / course.batch_size)
    schedule = _schedule(optimizer, course.learning_rate, steps * course.epochs)
    best: dict[str, Any] = {"epoch": 0, "score": -1.0, "loss": math.inf, "weights": {}, "history": []}
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    begun = 0
    if saved := _checkpoint(work):
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        best, begun = saved["best"], saved["epoch"]
        progress("train", begun, course.epochs, "epochs found in the checkpoint")
    for epoch in range(begun + 1, course.epochs + 1):
        clock = time.perf_counter()
        loss = _epoch(network, side, course, optimizer, schedule, epoch)
        rate = len(side.rows) / (time.perf_counter() - clock)
        figures = {"loss": loss, **_judge(network, held_out)}
        best["history"].append({name: round(value, 6) for name, value in figures.items()})
        if (figures["val_auc"], -figures["val_loss"]) > (best["score"], -best["loss"]):
            weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            best.update(epoch=epoch, score=figures["val_auc"], loss=figures["val_loss"], weights=weights)
        buffer = io.BytesIO()
        torch.save({"epoch": epoch, "best": best, **{name: part.state_dict() for name, part in parts.items()}}, buffer)
        work.keep("checkpoint", buffer.getvalue())
        note = f"epochs, loss {loss:.3f}, validation AUC {figures['val_auc']:.3f}, {rate:.0f} images/s"
        progress("train", epoch, course.epochs, note)
        tracking.epoch(epoch, {**figures, "images_per_second": rate})
    return best


def _schedule(optimizer: torch.optim.Optimizer, rate: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle of the learning rate over all steps; where they are too few for a cycle, the rate as it is."""
    if steps < SHORTEST_CYCLE:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.25)


def _checkpoint(work: Work) -> dict[str, Any] | None:
    kept = work.kept("checkpoint")
    if kept is None:
        return None
    try:
        return dict(torch.load(io.BytesIO(kept), weights_only=True, map_location="cpu"))
    except Exception as error:  # whatever a damaged file makes the reader do, it holds nothing to go on from
        log.warning("checkpoint damaged", extra={"fields": {"stage": "train", "why": f"{error}; begun anew"}})
        return None


def _epoch(
    network: nn.Module,
    side: Side,
    course: Course,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
) -> float:
    """One pass over the side. All chance comes from the seed and the epoch's number, so a resumed run is the same."""
    torch.manual_seed(course.seed * 100_003 + epoch)
    chance = torch.Generator().manual_seed(course.seed * 100_003 + epoch)
    order = torch.randperm(len(side.rows), generator=chance).numpy()
    counts = np.bincount(side.labels)
    place = next(network.parameters()).device
    weights = torch.tensor(len(side.labels) / (len(counts) * counts), dtype=torch.float32, device=place)
    network.train()
    total = 0.0
    for start in range(0, len(order), course.batch_size):
        places = order[start : start + course.batch_size]
        if len(places) == 1:
            places = np.concatenate([places, order[:1]])  # batch norm cannot take a single image
        images, labels = side.batch(places)
        images, labels = change(images, course.augment, chance).to(place), labels.to(place)
        logits = network(images)[0]
        loss = F.cross_entropy(logits, labels, weight=weights, label_smoothing=course.label_smoothing)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss became {loss.item()} in epoch {epoch} with a learning rate of {course.learning_rate:g}. "
                "Lower learning_rate."
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        total += loss.item() * len(places)
    return total / len(order)


def _logits(network: nn.Module, side: Side) -> NDArray[np.float64]:
    network.eval()
    place = next(network.parameters()).device
    places = np.arange(len(side.rows))
    with torch.no_grad():
        batches = (side.batch(places[start : start + 128])[0] for start in range(0, len(places), 128))
        parts = [network(images.to(place))[0].cpu().numpy() for images in batches]
    return np.concatenate(parts).astype(np.float64)


def _judge(network: nn.Module, side: Side) -> dict[str, float]:
    """Loss, accuracy and AUC (the mean of one class against the rest) on a side."""
    logits = _logits(network, side)
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -float(logs[np.arange(len(logs)), side.labels].mean())
    areas = [
        _auc(logs[:, label], side.labels == label) for label in range(1 if logits.shape[1] == 2 else 0, logits.shape[1])
    ]
    return {
        "val_loss": loss,
        "val_accuracy": float((logits.argmax(axis=1) == side.labels).mean()),
        "val_auc": float(np.mean(areas)),
    }


def _auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    ordered = np.sort(scores[~positive])
    below = np.searchsorted(ordered, scores[positive], "left")
    upto = np.searchsorted(ordered, scores[positive], "right")
    return float((below + upto).mean() / 2 / len(ordered))


def _fingerprints(data: Data, splits: In) -> dict[str, Any]:
    about = contracts.read_record("split", splits / "split.json")
    return {"dataset": data.about["fingerprint"], "split": about["fingerprint"], "split_version": about["version"]}
