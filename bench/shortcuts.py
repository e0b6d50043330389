"""Measures how far networks lean on how an image was made, and what lists of random changes do about it.

`python -m bench.shortcuts [--size 96] [--epochs 8] [--lists radiograph radiograph,scanners radiograph,border@0.1]`

A list may end with @ and a crop. No image of the official test is read: all sides are made of training patients.
`early` are those with the lowest numbers of each kind, `contrary` those whose sharpness and gray values alone look like
the other class's. Networks learn from the rest, and a tenth of the rest, drawn at random as a split draws it, is
validation. `borders` are validation and early again, each image with its outer sixth taken from one of the other class:
a network that sees lungs gives the same answer, one that reads marks and shutters the opposite one.
"""

from __future__ import annotations

import argparse
import csv
import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench.scans import KERMANY
from bench.training import PLAIN, Never, Silent
from components.shared.datasets.dataset import Views
from components.shared.imaging.views import view
from components.train import models
from components.train.augmentation import Augmentation
from components.train.parameters import TrainParameters
from components.train.split_images import SplitImages
from components.train.training_loop import Training, predict_logits
from components.train.validation import score

HELD_OUT = ("val", "early", "contrary", "borders")
EARLY, CONTRARY = 0.12, {False: 0.12, True: 0.06}
"""Which share of each kind, and of each class (by whether it is pneumonia), the hard sides take."""
RING, SOFT = 0.16, 0.06
"""How wide the borders are that are exchanged, in sides, and over which width one image fades into the other."""
SHARES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def cues(pixels: NDArray[np.uint8]) -> list[float]:
    """What can be told of an image without seeing anything in it: its sharpness at three sizes, its gray values."""
    image = fine = pixels.astype(np.float32)
    sharp = []
    for _ in range(3):
        around = fine[2:, 1:-1] + fine[:-2, 1:-1] + fine[1:-1, 2:] + fine[1:-1, :-2]
        sharp.append(float(np.log(np.abs(4 * fine[1:-1, 1:-1] - around).mean() + 1e-6)))
        height, width = (side // 2 for side in fine.shape)
        fine = fine[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))
    grays = [*np.percentile(image, SHARES), image.mean(), image.std(), (image < 5).mean(), (image > 250).mean()]
    return [*sharp, *map(float, grays)]


def contrariness(images: list[NDArray[np.uint8]], ill: NDArray[np.bool_], group: NDArray[Any]) -> NDArray[np.float64]:
    """How much each image looks like the other class by its cues, out of fold; says how much cues alone tell."""
    found = np.array([cues(image) for image in images])
    names = {"sharpness": slice(0, 3), "gray values": slice(3, None), "both": slice(None)}
    for name, columns in names.items():
        learner = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
        folds = GroupKFold(5)
        score = cross_val_predict(learner, found[:, columns], ill, groups=group, cv=folds, method="decision_function")
        print(f"| {name} alone, no network, out of fold | {roc_auc_score(ill, score):.3f} | | | |", flush=True)
    contrary: NDArray[np.float64] = np.where(ill, -score, score)
    return contrary


def hard_sides(rows: list[dict[str, str]], contrary: NDArray[np.float64]) -> NDArray[np.str_]:
    """The side of each image: early, contrary, val or train; all of a patient's images are on one."""
    group, ill = (np.array([row[name] for row in rows]) for name in ("group", "label"))
    number = np.array([int(re.findall(r"\d+", row["patient_id"])[-1]) for row in rows])
    kind = np.array([row["subtype"] + row["patient_id"].partition("-")[0] for row in rows])
    side = np.full(len(rows), "train   ")

    def take(name: str, among: NDArray[np.bool_], by: NDArray[Any], share: float, of: int) -> None:
        means = {each: by[among & (group == each)].mean() for each in np.unique(group[among])}
        for each in sorted(means, key=lambda each: (means[each], each)):
            if (side[among] == name).sum() >= share * of:
                break
            side[group == each] = name

    for each in np.unique(kind):
        take("early", kind == each, number, EARLY, int((kind == each).sum()))
    free = side != "early"
    for label, share in CONTRARY.items():
        among = free & ((ill == "PNEUMONIA") == label)
        take("contrary", among, -contrary, share, int(((ill == "PNEUMONIA") == label).sum()))
    rest = np.unique(group[np.char.strip(side) == "train"])
    side[np.isin(group, np.random.default_rng(0).permutation(rest)[: len(rest) // 10])] = "val"
    return np.char.strip(side)


def exchanged(images: list[NDArray[np.uint8]], ill: NDArray[np.bool_]) -> list[NDArray[np.uint8]]:
    """Each image with the border of one of the other class; all are of one size."""
    chance, (height, width) = np.random.default_rng(3), images[0].shape
    depth = [np.minimum(at, 1 - at) for at in ((np.arange(side) + 0.5) / side for side in (height, width))]
    inside = np.clip((np.minimum(depth[0][:, None], depth[1]) - RING + SOFT / 2) / SOFT, 0, 1)
    others = [chance.choice(np.flatnonzero(ill != each)) for each in ill]
    pairs = zip(images, others, strict=True)
    return [(own * inside + images[other] * (1 - inside)).round().astype(np.uint8) for own, other in pairs]


class Nothing(Never):
    """Begins anew and keeps nothing."""

    def load(self) -> None:
        return None

    def save(self, *_: Any) -> None: ...


def auc(sides: dict[str, SplitImages], changes: str, size: int, epochs: int) -> dict[str, float]:
    """The AUC on each side of a ResNet-18 that learned with these changes."""
    asked: dict[str, Any] = {**PLAIN, "epochs": epochs, "learning_rate": 2e-3, "weight_decay": 0.05, "clip": 1.0}
    asked |= {"label_smoothing": 0.1, "average": 0.998}
    torch.manual_seed(1)
    network = models.build("resnet18", 1, 2, size, 512, 0.2).to(memory_format=torch.channels_last)
    parameters = TrainParameters(batch_size=32, precision="bf16", **asked)
    training = Training(
        network, models.stages(network), sides, "classification", parameters, Augmentation.parse(changes)
    )
    network.load_state_dict(training.go(Nothing(), Silent()).weights)  # type: ignore[arg-type]  # nothing is kept
    held_out = {name: sides[name] for name in HELD_OUT}
    return {
        name: score(predict_logits(network, side, 64), side.targets, "classification")["val_auc"]
        for name, side in held_out.items()
    }


def learnable(
    images: list[NDArray[np.uint8]], ill: NDArray[np.bool_], where: NDArray[np.str_], size: int, crop: float
) -> dict[str, SplitImages]:
    """The sides as a network takes them."""
    held_out = np.flatnonzero(np.isin(where, ("val", "early")))
    mixed = exchanged([images[place] for place in held_out], ill[held_out])
    pixels = np.stack([view(image, size, "stretch", crop) for image in (*images, *mixed)])
    own = pixels[: len(images)]
    about = {"size": size, "fit": "stretch", "crop": crop, "channels": 1}
    about |= {"mean": float(own.mean() / 255), "std": float(own.std() / 255)}
    views = Views([pixels], np.zeros(len(pixels), np.int32), np.arange(len(pixels), dtype=np.int32))
    targets = np.eye(2, dtype=np.float32)[np.concatenate([ill, ill[held_out]]).astype(int)]
    rows = {name: np.flatnonzero(where == name) for name in np.unique(where)}
    rows["borders"] = np.arange(len(images), len(pixels))
    return {name: SplitImages(views, of_it, targets[of_it], about) for name, of_it in rows.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lists", nargs="+", default=["radiograph", "radiograph,scanners", "radiograph,border@0.1"])
    asked = parser.parse_args()
    rows = [row for row in csv.DictReader((KERMANY / "manifest.csv").open()) if row["split"] == "train"]
    images = [np.asarray(Image.open(KERMANY / row["image"]).convert("L")) for row in rows]
    ill = np.array([row["label"] == "PNEUMONIA" for row in rows])
    print(f"| what tells | AUC {' | AUC '.join(HELD_OUT)} |\n|{'---|' * (1 + len(HELD_OUT))}")
    where = hard_sides(rows, contrariness(images, ill, np.array([row["group"] for row in rows])))
    for entry in asked.lists:
        changes, _, crop = entry.partition("@")
        found = auc(learnable(images, ill, where, asked.size, float(crop or 0)), changes, asked.size, asked.epochs)
        told = " | ".join(f"{found[name]:.4f}" for name in HELD_OUT)
        print(f"| ResNet-18 at {asked.size}², {asked.epochs} epochs, `{entry}` | {told} |", flush=True)
    print({str(name): int((where == name).sum()) for name in np.unique(where)})
