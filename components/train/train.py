"""The train stage: trains a network, selects epoch, temperature and threshold on validation, and exports a bundle."""

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
from components.train import models, pretrained
from components.train.augmentation import Augmentation
from components.train.augmentation_sheet import draw_sheet
from components.train.calibrate import best_threshold, fit_temperature
from components.train.checkpoint import Checkpoints
from components.train.device import choose_device, choose_precision, should_compile, use_threads
from components.train.export import check_parity, write_bundle
from components.train.openmp_waiting import ShortSpinning
from components.train.out_of_memory import explain_out_of_memory
from components.train.parameters import TrainParameters
from components.train.split_images import SplitImages
from components.train.training_loop import Training, predict_logits
from components.train.training_monitor import Monitor

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

SHEET = "docs/augmentation.png"
"""File in a bundle with augmented training images."""
SHEET_CLASSES, SHEET_VERSIONS = 4, 7
"""Maximum number of classes on the sheet, and number of versions of an image of each."""


def train(dataset: In, splits: In, model: Out, work: Work, *, parameters: TrainParameters) -> dict[str, Any]:
    """Train a network on train, select its best epoch, temperature and threshold on validation, and export it.

    The same inputs, parameters and machine give the same weights, even if the training was interrupted.
    """
    device = choose_device(parameters.device)
    use_threads(parameters.threads)
    data = Data.open(dataset, work.store)
    if data.about["decoding"]["colour"] == "rgb" and parameters.channels != 3:
        raise RefusedError(f"channels is {parameters.channels}, but the data set has colour images. Set channels to 3.")
    augmentation = Augmentation.parse(parameters.augmentations, parameters.augment)
    parameters = replace(
        parameters, augmentations=str(augmentation), precision=choose_precision(device, parameters.precision)
    )
    images = _split_images(data, splits, parameters)
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
        event("weights", "train", why=str(pretrained.load_weights(network, work.store.fetch(parameters.weights))))
    fingerprints = _fingerprints(data, splits)
    tags = {"data": fingerprints["dataset"], "split": fingerprints["split"], "device": device.type}
    compiling = should_compile(
        parameters.compiled, device, parameters.epochs * len(images["train"]) // parameters.batch_size
    )
    with (
        explain_out_of_memory(
            device, parameters.architecture, parameters.image_size, parameters.batch_size, parameters.accumulate
        ),
        ShortSpinning(),
        Monitor(work, parameters.recorded(), tags, classes, images["val"], task) as monitor,
    ):
        network.to(memory_format=torch.channels_last).to(device)
        training = Training(network, models.stages(network), images, task, parameters, augmentation, compiling)
        drawn = _sheet(images["train"], classes, augmentation, parameters.seed) if parameters.draw_images else b""
        monitor.set_sheet(drawn)
        best = training.go(Checkpoints(work, parameters.checkpoint_seconds), monitor)
        network.load_state_dict(best.weights)
        logits = predict_logits(network, images["val"], 2 * parameters.batch_size)
        temperature = fit_temperature(logits, images["val"].targets, task)
        about = {
            "task": task,
            "architecture": parameters.architecture,
            "classes": classes,
            "preprocess": images["train"].preprocess,
            "temperature": temperature,
            "threshold": best_threshold(logits / temperature, images["val"].targets, task),
            "fingerprints": fingerprints,
            "parameters": parameters.recorded(),
            "augmentation": augmentation.describe(),
            "best_epoch": best.epoch,
            "history": best.history,
            "device": device.type,
            "images": {name: len(split) for name, split in images.items()},
        }
        network.to("cpu")
        write_bundle(model, network, about)
        if drawn:
            (model / SHEET).write_bytes(drawn)
        check_parity(model, network, images["val"].views[images["val"].rows[:64]])
        monitor.finished(model, best.history)
    return {"best_epoch": best.epoch, "val_auc": best.score}


def _split_images(data: Data, splits: In, parameters: TrainParameters) -> dict[str, SplitImages]:
    names = ("fit", "crop", "shades", "channels")
    preprocess = {"size": parameters.image_size, **{name: getattr(parameters, name) for name in names}}
    views = data.views(*view_parameters(preprocess))
    rows = {name: data.rows(splits, name) for name in ("train", "val")}
    _check_classes(data, rows["train"])
    if not len(rows["val"]):
        raise RefusedError(
            "The validation split has 0 images, but the best epoch and the threshold are selected on it. Raise "
            "split_options.val_fraction, or add a val folder to the source."
        )
    preprocess = {**preprocess, "decoding": data.about["decoding"], **_scale(views, rows["train"])}
    return {name: SplitImages(views, of_split, data.targets[of_split], preprocess) for name, of_split in rows.items()}


def _sheet(train_images: SplitImages, classes: list[str], augmentation: Augmentation, seed: int) -> bytes:
    rows = min(len(classes), SHEET_CLASSES)
    positions = np.array([int(np.argmax(train_images.targets[:, label])) for label in range(rows)])
    images, _ = next(train_images.batches([positions], torch.device("cpu")))
    generator = torch.Generator().manual_seed(seed)
    augmented = torch.stack([augmentation(images, generator) for _ in range(SHEET_VERSIONS)])
    return draw_sheet(images, augmented, classes[:rows])


def _check_classes(data: Data, rows: NDArray[np.int64]) -> None:
    counts = data.targets[rows].sum(axis=0)
    missing = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    if missing:
        raise RefusedError(
            f"None of the {len(rows):,} training images is of {' or '.join(missing)}, so it cannot be learned. Add "
            "such images, lower split_options.test_fraction and val_fraction, or exclude the class with "
            "ingest_options.classes."
        )


def _scale(views: Views, rows: NDArray[np.int64]) -> dict[str, float]:
    sample = views[rows[:: max(1, len(rows) // 512)]].astype(np.float64) / 255
    return {"mean": round(float(sample.mean()), 4), "std": round(max(float(sample.std()), 1e-3), 4)}


def _fingerprints(data: Data, splits: In) -> dict[str, Any]:
    about = contracts.read_record("split", splits / "split.json")
    return {"dataset": data.about["fingerprint"], "split": about["fingerprint"], "split_version": about["version"]}
