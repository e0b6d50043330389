"""A reader study: figures of each reader, agreement among readers, and the effect of the model's help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.metric_catalogue import FIGURES
from components.shared.statistics.intervals import Figure, Floats
from medloop.reader_study.effect import effect, of_one
from medloop.reader_study.kappa import agreement
from medloop.reader_study.table import MIN_IMAGES, Reading
from medloop.reader_study.weighted_figures import Area, Ints, Share, Sums, with_interval

NAMES = tuple(name for name, figure in FIGURES.items() if figure.key)
WAYS = ("unaided", "aided")
FEW = 3
"""With fewer readers, the result hardly applies to others."""


@dataclass(frozen=True)
class LockedTest:
    """The locked test images of a run: labels, patients as 0, 1, 2, …, and predictions of the model."""

    classes: list[str]
    image_ids: list[str]
    labels: Ints
    patients: Ints
    predicted: Ints
    probabilities: Floats
    confidence: float

    @property
    def number(self) -> int:
        """Number of patients."""
        return int(self.patients.max()) + 1


@dataclass(frozen=True)
class Readings:
    """Readings as arrays of calls and scores [reader, way, image]; -1 and NaN if missing."""

    names: list[str]
    calls: Ints
    scores: Floats

    @staticmethod
    def of(readings: Sequence[Reading], locked: LockedTest) -> Readings:
        """Return the readings of a table as arrays."""
        names = sorted({reading.reader for reading in readings})
        columns = {image: number for number, image in enumerate(locked.image_ids)}
        shape = (len(names), len(WAYS), len(columns))
        calls, scores = np.full(shape, -1, np.int64), np.full(shape, np.nan)
        for reading in readings:
            at = (names.index(reading.reader), int(reading.aided), columns[reading.image_id])
            calls[at] = reading.label
            scores[at] = np.nan if reading.score is None else reading.score
        return Readings(names, calls, scores)

    @property
    def read(self) -> NDArray[np.bool_]:
        """Whether each reader read each image in each way."""
        return np.asarray(self.calls >= 0)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Whether each image was read by anyone."""
        return np.asarray(self.read.any(axis=(0, 1)))


def study(readings: Readings, locked: LockedTest, positive: int | None) -> dict[str, Any]:
    """Return all figures of the study; sensitivity, specificity and AUC are for the positive class."""
    seen = readings.seen
    readers = [_reader(readings, locked, positive, number) for number in range(len(readings.names))]
    return {
        "classes": locked.classes,
        "positive": None if positive is None else locked.classes[positive],
        "confidence": locked.confidence,
        "images": int(seen.sum()),
        "patients": len(np.unique(locked.patients[seen])),
        "readers": readers,
        "model": _figures(locked, positive, locked.predicted, _score(locked, positive), seen),
        "agreement": {way: _agreement(readings, locked, number) for number, way in enumerate(WAYS)},
        "effect": _effect(readings, locked, positive),
    }


def _score(locked: LockedTest, positive: int | None) -> Floats:
    return np.full(len(locked.labels), np.nan) if positive is None else locked.probabilities[:, positive]


def sums(
    locked: LockedTest, positive: int | None, calls: Ints, scores: Floats, counted: NDArray[np.bool_]
) -> dict[str, Sums]:
    """Return the sums of one reader's figures on the counted images, for the figures that are defined."""
    right = calls == locked.labels
    figures: dict[str, Sums] = {"accuracy": Share.of(right, counted, locked.patients, locked.number)}
    if positive is None:
        return figures
    truth, called = locked.labels == positive, calls == positive
    if (truth & counted).any():
        figures["sensitivity"] = Share.of(called, counted & truth, locked.patients, locked.number)
    if (~truth & counted).any():
        figures["specificity"] = Share.of(~called, counted & ~truth, locked.patients, locked.number)
    if len(figures) == 3 and not np.isnan(scores[counted]).any():
        figures["auc"] = Area.of(scores, truth, counted, locked.patients, locked.number)
    return figures


def _figures(
    locked: LockedTest, positive: int | None, calls: Ints, scores: Floats, counted: NDArray[np.bool_]
) -> dict[str, Figure | None]:
    parts = sums(locked, positive, calls, scores, counted)
    return {name: with_interval(parts[name], locked.confidence) if name in parts else None for name in NAMES}


def _reader(readings: Readings, locked: LockedTest, positive: int | None, number: int) -> dict[str, Any]:
    read, ways = readings.read[number], {}
    for way, name in enumerate(WAYS):
        ways[name] = {
            "images": int(read[way].sum()),
            **_figures(locked, positive, readings.calls[number, way], readings.scores[number, way], read[way]),
        } if read[way].any() else None  # fmt: skip
    both = read.all(axis=0)
    differences = None
    if both.sum() >= MIN_IMAGES:
        unaided, aided = (
            sums(locked, positive, readings.calls[number, way], readings.scores[number, way], both) for way in (0, 1)
        )
        differences = {
            "images": int(both.sum()),
            **{
                name: of_one(unaided[name], aided[name], locked.confidence)
                if name in unaided and name in aided
                else None
                for name in NAMES
            },
        }
    return {"number": number + 1, "reader": readings.names[number], **ways, "difference": differences}


def _agreement(readings: Readings, locked: LockedTest, way: int) -> dict[str, Any] | None:
    """Return the agreement of the readers in this way, on the images that all of them read."""
    read = readings.read[:, way]
    participating = read.any(axis=1)
    common = read[participating].all(axis=0)
    if participating.sum() < 2 or common.sum() < MIN_IMAGES:
        return None
    calls = readings.calls[participating, way][:, common]
    return agreement(calls, locked.patients[common], len(locked.classes), locked.confidence)


def _effect(readings: Readings, locked: LockedTest, positive: int | None) -> dict[str, Any]:
    """Return the effect of help, on the images that all participating readers read in both ways."""
    read = readings.read
    participating = (read.sum(axis=2) >= MIN_IMAGES).all(axis=1)
    common = read[participating].all(axis=(0, 1))
    result: dict[str, Any] = {"readers": int(participating.sum()), "images": 0, "figures": None}
    if participating.sum() == 0:
        return {**result, "sentence": "No reader read with and without help, so its effect is unknown."}
    if participating.sum() == 1:
        return {**result, "sentence": "Only one reader read in both ways, so the effect on other readers is unknown."}
    result["images"] = int(common.sum())
    if common.sum() < MIN_IMAGES:
        return {
            **result,
            "sentence": f"All {result['readers']} readers read {result['images']} images with and without help; at "
            f"least {MIN_IMAGES} are required to measure its effect.",
        }
    unaided, aided = (
        [
            sums(locked, positive, readings.calls[number, way], readings.scores[number, way], common)
            for number in np.flatnonzero(participating)
        ]
        for way in (0, 1)
    )
    figures = {
        name: effect([reader[name] for reader in unaided], [reader[name] for reader in aided], locked.confidence)
        if all(name in reader for reader in (*unaided, *aided))
        else None
        for name in NAMES
    }
    return {**result, "figures": figures, "sentence": _sentence(result, figures["accuracy"], locked.confidence)}


def _sentence(result: dict[str, Any], accuracy: dict[str, Any] | None, confidence: float) -> str:
    assert accuracy is not None  # defined for every reader
    points = f"{100 * abs(accuracy['difference']):.1f} points"
    higher = "higher" if accuracy["difference"] >= 0 else "lower"
    sentence = (
        f"With the model's help, the accuracy of the {result['readers']} readers was {points} {higher} on "
        f"{result['images']} images"
    )
    if accuracy["low"] is None:
        return f"{sentence}; the change was the same for all, so there is no interval."
    interval = f"{100 * accuracy['low']:+.1f} to {100 * accuracy['high']:+.1f}".replace("-", "−")
    if accuracy["low"] > 0:
        effect = "the improvement is significant"
    elif accuracy["high"] < 0:
        effect = "the decline is significant"
    else:
        effect = "the difference is not significant"
    few = "" if result["readers"] >= FEW else " Two readers are too few to represent others."
    return f"{sentence} ({100 * confidence:g} % interval {interval}): {effect} for similar readers and images.{few}"
