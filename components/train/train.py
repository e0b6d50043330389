"""Trains a network on the train side, chooses on the validation side, and exports what it learned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.shared import contracts
from components.shared.contracts import In, Out
from components.shared.datasets.dataset import Data, Views
from components.shared.errors import RefusedError
from components.shared.imaging.views import view_parameters
from components.shared.runtime.events import event
from components.train import models
from components.train import weights as pretrained
from components.train.augment import Augmentation
from components.train.calibrate import best_threshold, fit_temperature
from components.train.checkpoint import Checkpoints
from components.train.device import choose, compiles, precision_on, use_threads
from components.train.export import check_parity, write_bundle
from components.train.feed import Side
from components.train.learn import Training, said
from components.train.memory import careful
from components.train.parameters import TrainParameters
from components.train.sheet import sheet
from components.train.spinning import ShortSpinning
from components.train.watch import Watch

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

SHEET = "docs/augmentation.png"
"""Where in a bundle it is drawn what the network saw."""
DRAWN = (4, 7)
"""So many classes and versions of an image of each."""


def train(dataset: In, splits: In, model: Out, work: Work, *, parameters: TrainParameters) -> dict[str, Any]:
    """Train a network on the train side, choose its best epoch, temperature and threshold on validation, export it.

    The same inputs, parameters and machine give the same weights, also when the training was interrupted on the way.
    """
    place = choose(parameters.device)
    use_threads(parameters.threads)
    data = Data.open(dataset, work.store)
    if data.about["decoding"]["colour"] == "rgb" and parameters.channels != 3:
        raise RefusedError(
            f"The data set's images have colours, and channels is {parameters.channels}. Set channels to 3."
        )
    augmentation = Augmentation.parse(parameters.augmentations, parameters.augment)
    parameters = replace(
        parameters, augmentations=str(augmentation), precision=precision_on(place, parameters.precision)
    )
    sides = _sides(data, splits, parameters)
    task, classes = data.about["task"], data.classes
    torch.manual_seed(parameters.seed)
    network = models.build(
        parameters.architecture,
        parameters.channels,
        len(classes),
        parameters.image_size,
        parameters.hidden,
        parameters.dropout,
    )
    if parameters.weights:
        event("weights", "train", why=str(pretrained.load(network, work.store.fetch(parameters.weights))))
    fingerprints = _fingerprints(data, splits)
    tags = {"data": fingerprints["dataset"], "split": fingerprints["split"], "device": place.type}
    compiling = compiles(parameters.compiled, place, parameters.epochs * len(sides["train"]) // parameters.batch_size)
    with (
        careful(place, parameters.architecture, parameters.image_size, parameters.batch_size, parameters.accumulate),
        ShortSpinning(),
        Watch(work, parameters.recorded(), tags, classes, sides["val"], task) as watch,
    ):
        network.to(memory_format=torch.channels_last).to(place)
        training = Training(network, models.stages(network), sides, task, parameters, augmentation, compiling)
        drawn = _sheet(sides["train"], classes, augmentation, parameters.seed) if parameters.draw_images else b""
        watch.sheet(drawn)
        best = training.go(Checkpoints(work, parameters.checkpoint_seconds), watch)
        network.load_state_dict(best.weights)
        logits = said(network, sides["val"], 2 * parameters.batch_size)
        temperature = fit_temperature(logits, sides["val"].targets, task)
        about = {
            "task": task,
            "architecture": parameters.architecture,
            "classes": classes,
            "preprocess": sides["train"].preprocess,
            "temperature": temperature,
            "threshold": best_threshold(logits / temperature, sides["val"].targets, task),
            "fingerprints": fingerprints,
            "parameters": parameters.recorded(),
            "augmentation": augmentation.words(),
            "best_epoch": best.epoch,
            "history": best.history,
            "device": place.type,
            "images": {side: len(sides[side]) for side in sides},
        }
        network.to("cpu")
        write_bundle(model, network, about)
        if drawn:
            (model / SHEET).write_bytes(drawn)
        check_parity(model, network, sides["val"].views[sides["val"].rows[:64]])
        watch.done(model, best.history)
    return {"best_epoch": best.epoch, "val_auc": best.score}


def _sides(data: Data, splits: In, parameters: TrainParameters) -> dict[str, Side]:
    names = ("fit", "crop", "shades", "channels")
    preprocess = {"size": parameters.image_size, **{name: getattr(parameters, name) for name in names}}
    views = data.views(*view_parameters(preprocess))
    rows = {side: data.rows(splits, side) for side in ("train", "val")}
    _check_classes(data, rows["train"])
    if not len(rows["val"]):
        raise RefusedError(
            "No image is on the validation side, on which the best epoch and the threshold are chosen. Raise "
            "split_options.val_fraction, or publish a val folder."
        )
    preprocess = {**preprocess, "decoding": data.about["decoding"], **_scale(views, rows["train"])}
    return {side: Side(views, rows[side], data.targets[rows[side]], preprocess) for side in rows}


def _sheet(side: Side, classes: list[str], augmentation: Augmentation, seed: int) -> bytes:
    rows, versions = min(len(classes), DRAWN[0]), DRAWN[1]
    places = np.array([int(np.argmax(side.targets[:, label])) for label in range(rows)])
    images, _ = next(side.batches([places], torch.device("cpu")))
    chance = torch.Generator().manual_seed(seed)
    changed = torch.stack([augmentation(images, chance) for _ in range(versions)])
    return sheet(images, changed, classes[:rows])


def _check_classes(data: Data, rows: NDArray[np.int64]) -> None:
    counts = data.targets[rows].sum(axis=0)
    missing = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    if missing:
        raise RefusedError(
            f"None of the {len(rows):,} training images is of {' or '.join(missing)}, so it cannot be learned. Add "
            "images of it, lower split_options.test_fraction and val_fraction, or leave it out with "
            "ingest_options.classes."
        )


def _scale(views: Views, rows: NDArray[np.int64]) -> dict[str, float]:
    sample = views[rows[:: max(1, len(rows) // 512)]].astype(np.float64) / 255
    return {"mean": round(float(sample.mean()), 4), "std": round(max(float(sample.std()), 1e-3), 4)}


def _fingerprints(data: Data, splits: In) -> dict[str, Any]:
    about = contracts.read_record("split", splits / "split.json")
    return {"dataset": data.about["fingerprint"], "split": about["fingerprint"], "split_version": about["version"]}
