"""How hard the synthetic scans are: a linear model on pixels against a small network, by patient, beside the bars.

Run `python -m bench.synth_difficulty`. Scans are made in a temporary directory; the table that is printed is Markdown.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._testing import ignore_warnings
from torch import Tensor
from torch.nn import functional

from components.train.models import build
from medloop.synth import CLASSES, synth

Floats = NDArray[np.float32]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Data:
    """Thumbnails with labels, patients and texts."""

    images: Floats
    labels: NDArray[np.int64]
    patients: NDArray[np.str_]
    texts: list[str]

    def part(self, mask: NDArray[np.bool_]) -> Data:
        """Gives the rows that the mask marks."""
        texts = [text for text, wanted in zip(self.texts, mask, strict=True) if wanted]
        return Data(self.images[mask], self.labels[mask], self.patients[mask], texts)


@dataclass(frozen=True)
class Settings:
    """How the small network is trained."""

    size: int = 96
    epochs: int = 26
    batch: int = 16
    rate: float = 2e-3
    decay: float = 0.02


def read(path: Path) -> Floats:
    """Gives an image as values from 0 to 1, whatever its format and depth."""
    if path.suffix == ".dcm":
        from pydicom import dcmread

        scan = dcmread(path)
        pixels: Floats = scan.pixel_array.astype(np.float32) / np.float32(2**scan.BitsStored - 1)
        return 1 - pixels if scan.PhotometricInterpretation == "MONOCHROME1" else pixels
    with Image.open(path) as image:
        stored = np.asarray(image)
    return stored.astype(np.float32) / np.float32(65535 if stored.dtype == np.uint16 else 255)


def load(directory: Path, size: int, classes: int) -> Data:
    """Gives all readable scans of a synthetic directory, blank ones left out, as square thumbnails."""
    with (directory / "patients.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    images, kept = [], []
    for row in rows:
        pixels = read(directory / row["file"])
        if np.ptp(pixels) > 0:
            images.append(np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)))
            kept.append(row)
    labels = [CLASSES[classes].index(row["file"].split("/")[0]) for row in kept]
    patients = np.array([row["patient_id"] for row in kept])
    return Data(np.stack(images), np.array(labels), patients, [row.get("text") or "" for row in kept])


def divide(data: Data, seed: int, share: float = 0.6) -> tuple[Data, Data]:
    """Gives two sets that share no patient; the first has that share of the patients."""
    names = np.unique(data.patients)
    np.random.default_rng(seed).shuffle(names)
    first = np.isin(data.patients, names[: round(len(names) * share)])
    return data.part(first), data.part(~first)


def area(labels: NDArray[np.int64], scores: Floats) -> float:
    """Gives the area under the ROC curve; with more than two classes the mean of each against the rest."""
    two = scores.shape[1] == 2
    return float(roc_auc_score(labels, scores[:, 1] if two else scores, multi_class="ovr"))


def linear(known: Data, held: Data, size: int) -> float:
    """Gives the best held-out AUC of logistic regression on pixels, over all strengths of regularisation."""

    def flat(data: Data) -> Floats:
        small = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX)) for image in data.images]
        return np.stack(small).reshape(len(small), -1)

    areas = []
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100))
        with ignore_warnings(category=ConvergenceWarning):
            model.fit(flat(known), known.labels)
        areas.append(area(held.labels, model.predict_proba(flat(held))))
    return max(areas)


def augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Gives the batch turned, moved and scaled a little, and brighter or darker; never mirrored."""
    number = len(images)

    def draw(width: int, *shape: int) -> Tensor:
        return torch.rand(number, width, *shape, generator=random) * 2 - 1

    angle, zoom, move = draw(1) * 0.14, 1 + draw(1) * 0.10, draw(2) * 0.10
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    rows = [torch.cat([cosine, -sine, move[:, :1]], 1), torch.cat([sine, cosine, move[:, 1:]], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    turned = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return turned * (1 + draw(1, 1, 1) * 0.2) + draw(1, 1, 1) * 0.4


class Network:
    """The small network, trained on the given scans; it remembers how they were scaled."""

    def __init__(self, known: Data, classes: int, seed: int, settings: Settings) -> None:
        torch.manual_seed(seed)
        self.model = build("small", 1, classes, settings.size)
        images = torch.from_numpy(known.images)[:, None]
        self.mean, self.deviation = images.mean(), images.std()
        self._fit((images - self.mean) / self.deviation, torch.from_numpy(known.labels), seed, settings)

    def _fit(self, images: Tensor, labels: Tensor, seed: int, settings: Settings) -> None:
        random = torch.Generator().manual_seed(seed)
        steps = len(images) // settings.batch
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.rate, weight_decay=settings.decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=settings.rate, total_steps=steps * settings.epochs, pct_start=0.25
        )
        self.model.train()
        for _ in range(settings.epochs):
            order = torch.randperm(len(images), generator=random)
            for rows in torch.split(order[: steps * settings.batch], settings.batch):
                loss = functional.cross_entropy(self.model(augment(images[rows], random))[0], labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch types it so
                optimizer.step()
                schedule.step()

    def probabilities(self, data: Data) -> Floats:
        """Gives the probability of each class for each scan."""
        self.model.eval()
        with torch.inference_mode():
            batches = torch.split(torch.from_numpy(data.images)[:, None], 128)
            found = [self.model((batch - self.mean) / self.deviation)[0].softmax(1) for batch in batches]
        return np.asarray(torch.cat(found).numpy(), dtype=np.float32)


def accuracy(data: Data, scores: Floats) -> float:
    """Gives the share of scans whose most probable class is their label."""
    return float((scores.argmax(1) == data.labels).mean())


def with_text(known: Data, held: Data, network: Network) -> tuple[float, float]:
    """Gives the held-out accuracy of the text alone and of the network's answer and the text together."""
    words = CountVectorizer(token_pattern=r"[A-Za-z]+|[0-9]{2,}", binary=True, ngram_range=(1, 2))
    one, two = words.fit_transform(known.texts).toarray(), words.transform(held.texts).toarray()
    # The network knows its own training scans too well to weigh its answers there, so these are clipped.
    answers = [np.log(np.clip(network.probabilities(part), 0.12, 0.88)) for part in (known, held)]
    alone = LogisticRegression(C=0.1).fit(one, known.labels).score(two, held.labels)
    joint = LogisticRegression(C=0.1).fit(np.hstack([one, answers[0]]), known.labels)
    return float(alone), float(joint.score(np.hstack([two, answers[1]]), held.labels))


Row = tuple[str, str, str]


def measure_two(root: Path, patients: int, seeds: int, settings: Settings) -> list[Row]:
    """Gives the rows on two classes: linear model, network, and the second hospital."""
    began = time.perf_counter()
    counts = synth(root / "first", patients=patients)
    spent = time.perf_counter() - began
    synth(root / "second", patients=patients // 2, shift=1.0)
    first, second = (load(root / name, settings.size, 2) for name in ("first", "second"))
    best, areas, right, away, seconds = [], [], [], [], []
    for seed in range(seeds):
        known, held = divide(first, seed)
        best.append([linear(known, held, size) for size in (32, 64)])
        began = time.perf_counter()
        network = Network(known, 2, seed, settings)
        seconds.append(time.perf_counter() - began)
        scores = network.probabilities(held)
        areas.append(area(held.labels, scores))
        right.append(accuracy(held, scores))
        away.append(area(second.labels, network.probabilities(second)))
    lost = [100 * (here - there) for here, there in zip(areas, away, strict=True)]
    pixels = np.array(best)
    return [
        ("files written (readable, not blank)", f"{counts['files']} ({len(first.labels)})", "≥ 600"),
        ("seconds to write them", f"{spent:.1f}", "< 12"),
        ("AUC, linear model, 32×32, best strength", spread(pixels[:, 0]), "< 0.85"),
        ("AUC, linear model, 64×64, best strength", spread(pixels[:, 1]), "< 0.85"),
        (f"AUC, small network, {settings.size} px", spread(areas), "> 0.95"),
        ("accuracy, small network", spread(right), "–"),
        (f"seconds to train it, {settings.epochs} epochs", spread(seconds, 1), "< 50"),
        ("AUC of the same network at the second hospital", spread(away), "–"),
        ("points of AUC lost there", spread(lost, 1), "3 to 8"),
    ]


def measure_three(root: Path, patients: int, seeds: int, settings: Settings) -> list[Row]:
    """Gives the row on three classes."""
    synth(root / "three", patients=patients, classes=3)
    data = load(root / "three", settings.size, 3)
    right = []
    for seed in range(seeds):
        known, held = divide(data, seed)
        right.append(accuracy(held, Network(known, 3, seed, settings).probabilities(held)))
    return [("accuracy, three classes, small network", spread(right), "≈ 0.90")]


def measure_reports(root: Path, patients: int, seeds: int, settings: Settings) -> list[Row]:
    """Gives the rows on scans with reports: images alone, texts alone, both."""
    synth(root / "reports", patients=patients, reports=True)
    data = load(root / "reports", settings.size, 2)
    image, text, joint = [], [], []
    for seed in range(seeds):
        known, held = divide(data, seed)
        network = Network(known, 2, seed, settings)
        image.append(accuracy(held, network.probabilities(held)))
        alone, both = with_text(known, held, network)
        text.append(alone)
        joint.append(both)
    return [
        ("accuracy with reports, image alone", spread(image), "≈ 0.85"),
        ("accuracy with reports, text alone", spread(text), "–"),
        ("accuracy with reports, image and text", spread(joint), "> image alone"),
    ]


def spread(values: Any, digits: int = 3) -> str:
    """Gives the mean and, of several values, their range."""
    listed = [float(value) for value in values]
    mean = f"{sum(listed) / len(listed):.{digits}f}"
    return mean if len(listed) == 1 else f"{mean} ({min(listed):.{digits}f} to {max(listed):.{digits}f})"


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=240, help="patients of each set (240)")
    parser.add_argument("--seeds", type=int, default=2, help="divisions by patient, each with its own training (2)")
    parser.add_argument("--size", type=int, default=96, help="pixels that the network sees (96)")
    parser.add_argument("--epochs", type=int, default=26, help="epochs of training (26)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--only", choices=("two", "three", "reports"), help="one part alone")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    settings = Settings(size=given.size, epochs=given.epochs)
    parts = {"two": measure_two, "three": measure_three, "reports": measure_reports}
    out = ["| what | measured, mean (range) | bar |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        for part in [given.only] if given.only else parts:
            rows = parts[part](Path(name), given.patients, given.seeds, settings)
            out += [f"| {' | '.join(row)} |" for row in rows]
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
