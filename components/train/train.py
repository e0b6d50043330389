"""Trains a network on the train side, chooses on the validation side, and exports what it learned."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.shared import contracts
from components.shared.contracts import Between, In, OneOf, Out
from components.shared.datasets.dataset import Data, Views
from components.shared.errors import RefusedError
from components.shared.imaging.views import framing
from components.shared.runtime.events import event
from components.train import models
from components.train import weights as pretrained
from components.train.augment import Augmentation
from components.train.calibrate import best_threshold, fit_temperature
from components.train.checkpoint import Checkpoints
from components.train.device import choose, compiles, precision_on, use_threads
from components.train.export import check_parity, write_bundle
from components.train.feed import Side
from components.train.learn import Course, Training, said
from components.train.memory import careful
from components.train.sheet import sheet
from components.train.spinning import ShortSpinning
from components.train.watch import Watch

if TYPE_CHECKING:
    from components.shared.runtime.work import Work

SHEET = "docs/augmentation.png"
"""Where in a bundle it is drawn what the network saw."""
DRAWN = (4, 7)
"""So many classes and versions of an image of each."""


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
    weights: str = "",
    channels: Annotated[int, Between(1, 3)] = 1,
    fit: Annotated[str, OneOf(("pad", "stretch"))] = "pad",
    crop: Annotated[float, Between(0, 0.4)] = 0.0,
    shades: Annotated[str, OneOf(("given", "local"))] = "given",
    hidden: Annotated[int, Between(1, 4096)] = 512,
    dropout: Annotated[float, Between(0, 0.9)] = 0.2,
    augment: Annotated[float, Between(0, 3)] = 1.0,
    augmentations: str = "radiograph",
    draw_images: bool = True,
    mixup: Annotated[float, Between(0, 2)] = 0.0,
    loss: Annotated[str, OneOf(("cross_entropy", "focal"))] = "cross_entropy",
    focal_gamma: Annotated[float, Between(0, 10)] = 2.0,
    label_smoothing: Annotated[float, Between(0, 0.5)] = 0.0,
    class_weights: Annotated[str, OneOf(("balanced", "none"))] = "balanced",
    sampling: Annotated[str, OneOf(("each_once", "balanced"))] = "each_once",
    weight_decay: Annotated[float, Between(0, 1)] = 2e-2,
    warmup: Annotated[float, Between(0, 0.9)] = 0.25,
    clip: Annotated[float, Between(0, 1000)] = 5.0,
    accumulate: Annotated[int, Between(1, 1024)] = 1,
    average: Annotated[float, Between(0, 0.99999)] = 0.0,
    frozen_epochs: Annotated[int, Between(0, 1000)] = 0,
    unfreezing: Annotated[str, OneOf(("at_once", "gradual"))] = "gradual",
    backbone_rate: Annotated[float, Between(0, 1)] = 1.0,
    patience: Annotated[int, Between(0, 1000)] = 0,
    keep: Annotated[str, OneOf(("best", "last"))] = "best",
    precision: Annotated[str, OneOf(("auto", "float32", "bf16", "fp16"))] = "auto",
    compiled: Annotated[str, OneOf(("auto", "yes", "no"))] = "auto",
    threads: Annotated[int, Between(0, 256)] = 0,
    checkpoint_seconds: Annotated[float, Between(0, 86400)] = 0.0,
    seed: Annotated[int, Between(0, 2147483647)] = 7,
) -> dict[str, Any]:
    """Train a network on the train side, choose its best epoch, temperature and threshold on validation, export it.

    The same inputs, parameters and machine give the same weights, also when the training was interrupted on the way.

        architecture: the network's name: small, resnet18, resnet50, efficientnet_b0, efficientnet_b4, densenet121,
            vit or convnext_tiny
        image_size: side of the square the network sees, in pixels
        epochs: passes over the training images
        batch_size: images a step
        learning_rate: the highest rate, from which it falls in half a cosine wave
        device: a GPU where there is one, the processor, or a GPU and nothing else
        weights: the digest of weights in the store to begin with, as resolve gives it; nothing begins at random
        channels: gray images are given to the network this many times; colour images need 3
        fit: how an image becomes square: padded, or stretched
        crop: share of the height and width cut off on each side before that; marks and shutters lie there
        shades: gray values as they are given, or local: each against those around it, so that exposure tells nothing
        hidden: width of the layer between features and classes
        dropout: share of the head's inputs that are left out at random
        augment: how strongly training images are varied; 0 is not at all
        augmentations: how: names with commas between, such as "radiograph,blur=0"; hflip and vflip are unsafe for most
            body parts, whose sides differ
        draw_images: whether a sheet of a few training images, as they are and as they were varied, goes into the
            bundle, the report, TensorBoard and MLflow
        mixup: how much images are laid over one another; 0 is not at all
        loss: cross entropy, or focal loss, in which images that are already right count less
        focal_gamma: how much less
        label_smoothing: share of certainty taken from the labels
        class_weights: whether rare classes weigh more in the loss
        sampling: whether each image comes once an epoch, or rare classes come as often as the others
        weight_decay: AdamW's pull of the weights towards zero; norms and biases are left alone
        warmup: share of the steps in which the rate rises
        clip: the longest step of the gradient; 0 is any
        accumulate: batches that are added up for one move of the weights
        average: how slowly an average follows the weights, which is judged and kept in their place; 0 is no average
        frozen_epochs: epochs in which only the head learns
        unfreezing: whether the body's stages then join one an epoch, from the last, or all at once
        backbone_rate: the body's share of the learning rate
        patience: epochs without a better one after which training ends; 0 goes to the end
        keep: the weights of the epoch that did best on validation, or of the last
        precision: of the arithmetic; auto is bf16 on a GPU that has it, and float32 elsewhere
        compiled: whether PyTorch compiles the network first; auto does where a GPU gains by it
        threads: CPU threads; 0 uses every CPU that affinity and quota allow
        checkpoint_seconds: how often the state is kept; 0 is as often as costs a fiftieth of the time
        seed: of the first weights, the order of images and their variation
    """
    place = choose(device)
    use_threads(threads)
    data = Data.open(dataset, work.store)
    if data.about["decoding"]["colour"] == "rgb" and channels != 3:
        raise RefusedError(f"The data set's images have colours, and channels is {channels}. Set channels to 3.")
    augmentation = Augmentation.parse(augmentations, augment)
    sides = _sides(data, splits, {"size": image_size, "fit": fit, "crop": crop, "shades": shades, "channels": channels})
    task, classes = data.about["task"], data.classes
    course = Course(
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        backbone_rate=backbone_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        loss=loss,
        focal_gamma=focal_gamma,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        sampling=sampling,
        mixup=mixup,
        average=average,
        frozen_epochs=frozen_epochs,
        unfreezing=unfreezing,
        patience=patience,
        keep=keep,
        precision=precision_on(place, precision),
        seed=seed,
    )
    torch.manual_seed(seed)
    network = models.build(architecture, channels, len(classes), image_size, hidden, dropout)
    if weights:
        event("weights", "train", why=str(pretrained.load(network, work.store.fetch(weights))))
    parameters = {
        "architecture": architecture,
        "image_size": image_size,
        "channels": channels,
        "fit": fit,
        "crop": crop,
        "shades": shades,
        "weights": weights,
        "hidden": hidden,
        "dropout": dropout,
        "augment": augment,
        "augmentations": str(augmentation),
        **asdict(course),
    }
    fingerprints = _fingerprints(data, splits)
    tags = {"data": fingerprints["dataset"], "split": fingerprints["split"], "device": place.type}
    compiling = compiles(compiled, place, epochs * len(sides["train"]) // batch_size)
    with (
        careful(place, architecture, image_size, batch_size, accumulate),
        ShortSpinning(),
        Watch(work, parameters, tags, classes, sides["val"], task) as watch,
    ):
        network.to(memory_format=torch.channels_last).to(place)
        training = Training(network, models.stages(network), sides, task, course, augmentation, compiling)
        drawn = _sheet(sides["train"], classes, augmentation, seed) if draw_images else b""
        watch.sheet(drawn)
        best = training.go(Checkpoints(work, checkpoint_seconds), watch)
        network.load_state_dict(best.weights)
        logits = said(network, sides["val"], 2 * batch_size)
        temperature = fit_temperature(logits, sides["val"].targets, task)
        about = {
            "task": task,
            "architecture": architecture,
            "classes": classes,
            "preprocess": sides["train"].preprocess,
            "temperature": temperature,
            "threshold": best_threshold(logits / temperature, sides["val"].targets, task),
            "fingerprints": fingerprints,
            "parameters": parameters,
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


def _sides(data: Data, splits: In, preprocess: dict[str, Any]) -> dict[str, Side]:
    views = data.views(*framing(preprocess))
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
