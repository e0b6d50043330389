"""A reader study: each reader's figures, how far they agree, and what the model's help does, on a run's test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.figures import FIGURES
from components.shared.statistics.intervals import Figure, Floats
from medloop.reader_study.agreement import agreement
from medloop.reader_study.effect import effect, of_one
from medloop.reader_study.sums import Area, Ints, Share, Sums, with_interval
from medloop.reader_study.table import LEAST, Reading

NAMES = tuple(name for name, figure in FIGURES.items() if figure.key)
WAYS = ("unaided", "aided")
FEW = 3
"""With fewer readers, what holds for them says little of others."""


@dataclass(frozen=True)
class Locked:
    """The test images of a run: their truth, their patients as 0, 1, 2, …, and the model's own answers."""

    classes: list[str]
    image_ids: list[str]
    labels: Ints
    patients: Ints
    predicted: Ints
    probabilities: Floats
    confidence: float

    @property
    def number(self) -> int:
        """How many patients there are."""
        return int(self.patients.max()) + 1


@dataclass(frozen=True)
class Readings:
    """All readings as arrays: calls and scores [reader, way, image]; -1 and NaN where there is none."""

    names: list[str]
    calls: Ints
    scores: Floats

    @staticmethod
    def of(readings: Sequence[Reading], locked: Locked) -> Readings:
        """The readings of a table."""
        names = sorted({each.reader for each in readings})
        place = {image: number for number, image in enumerate(locked.image_ids)}
        shape = (len(names), len(WAYS), len(place))
        calls, scores = np.full(shape, -1, np.int64), np.full(shape, np.nan)
        for each in readings:
            at = (names.index(each.reader), int(each.aided), place[each.image_id])
            calls[at] = each.label
            scores[at] = np.nan if each.score is None else each.score
        return Readings(names, calls, scores)

    @property
    def read(self) -> NDArray[np.bool_]:
        """Which reader read which image in which way."""
        return np.asarray(self.calls >= 0)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which images were read at all."""
        return np.asarray(self.read.any(axis=(0, 1)))


def study(readings: Readings, locked: Locked, positive: int | None) -> dict[str, Any]:
    """Everything that is told of the readers; sensitivity, specificity and AUC are of the positive class."""
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


def _score(locked: Locked, positive: int | None) -> Floats:
    return np.full(len(locked.labels), np.nan) if positive is None else locked.probabilities[:, positive]


def sums(
    locked: Locked, positive: int | None, calls: Ints, scores: Floats, counted: NDArray[np.bool_]
) -> dict[str, Sums]:
    """What the figures of one reader on the counted images are made of; those that these images can give."""
    right = calls == locked.labels
    found: dict[str, Sums] = {"accuracy": Share.of(right, counted, locked.patients, locked.number)}
    if positive is None:
        return found
    truth, called = locked.labels == positive, calls == positive
    if (truth & counted).any():
        found["sensitivity"] = Share.of(called, counted & truth, locked.patients, locked.number)
    if (~truth & counted).any():
        found["specificity"] = Share.of(~called, counted & ~truth, locked.patients, locked.number)
    if len(found) == 3 and not np.isnan(scores[counted]).any():
        found["auc"] = Area.of(scores, truth, counted, locked.patients, locked.number)
    return found


def _figures(
    locked: Locked, positive: int | None, calls: Ints, scores: Floats, counted: NDArray[np.bool_]
) -> dict[str, Figure | None]:
    made_of = sums(locked, positive, calls, scores, counted)
    return {name: with_interval(made_of[name], locked.confidence) if name in made_of else None for name in NAMES}


def _reader(readings: Readings, locked: Locked, positive: int | None, number: int) -> dict[str, Any]:
    read, told = readings.read[number], {}
    for way, name in enumerate(WAYS):
        told[name] = {
            "images": int(read[way].sum()),
            **_figures(locked, positive, readings.calls[number, way], readings.scores[number, way], read[way]),
        } if read[way].any() else None  # fmt: skip
    both = read.all(axis=0)
    gains = None
    if both.sum() >= LEAST:
        made_of = [
            sums(locked, positive, readings.calls[number, way], readings.scores[number, way], both) for way in (0, 1)
        ]
        gains = {
            "images": int(both.sum()),
            **{
                name: of_one(made_of[0][name], made_of[1][name], locked.confidence)
                if name in made_of[0] and name in made_of[1]
                else None
                for name in NAMES
            },
        }
    return {"number": number + 1, "reader": readings.names[number], **told, "difference": gains}


def _agreement(readings: Readings, locked: Locked, way: int) -> dict[str, Any] | None:
    """How far those agree who read in this way, on the images that all of them read."""
    read = readings.read[:, way]
    taking_part = read.any(axis=1)
    together = read[taking_part].all(axis=0)
    if taking_part.sum() < 2 or together.sum() < LEAST:
        return None
    calls = readings.calls[taking_part, way][:, together]
    return agreement(calls, locked.patients[together], len(locked.classes), locked.confidence)


def _effect(readings: Readings, locked: Locked, positive: int | None) -> dict[str, Any]:
    """What help does, over readers and cases, on the images that all who read in both ways read in both ways."""
    read = readings.read
    taking_part = (read.sum(axis=2) >= LEAST).all(axis=1)
    together = read[taking_part].all(axis=(0, 1))
    told: dict[str, Any] = {"readers": int(taking_part.sum()), "images": 0, "figures": None}
    if taking_part.sum() == 0:
        return {**told, "sentence": "No reader read with and without help, so what it does cannot be said."}
    if taking_part.sum() == 1:
        return {**told, "sentence": "One reader alone read in both ways: what help does for others cannot be said."}
    told["images"] = int(together.sum())
    if together.sum() < LEAST:
        return {
            **told,
            "sentence": f"All {told['readers']} readers read {told['images']} images with and without help, and at "
            f"least {LEAST} are needed to say what it does.",
        }
    made_of = [
        [
            sums(locked, positive, readings.calls[number, way], readings.scores[number, way], together)
            for number in np.flatnonzero(taking_part)
        ]
        for way in (0, 1)
    ]
    figures = {
        name: effect([each[name] for each in made_of[0]], [each[name] for each in made_of[1]], locked.confidence)
        if all(name in each for way in made_of for each in way)
        else None
        for name in NAMES
    }
    return {**told, "figures": figures, "sentence": _sentence(told, figures["accuracy"], locked.confidence)}


def _sentence(told: dict[str, Any], accuracy: dict[str, Any] | None, confidence: float) -> str:
    assert accuracy is not None  # every reader has one
    points = f"{100 * abs(accuracy['difference']):.1f} points"
    more = "more" if accuracy["difference"] >= 0 else "less"
    who = (
        f"With the model's help the {told['readers']} readers were right {points} {more} often, on {told['images']} "
        "images"
    )
    if accuracy["low"] is None:
        return f"{who}; all of them changed alike, so there is no interval."
    interval = f"{100 * accuracy['low']:+.1f} to {100 * accuracy['high']:+.1f}".replace("-", "−")
    if accuracy["low"] > 0:
        shown = "for readers and images like these, help is shown to help"
    elif accuracy["high"] < 0:
        shown = "for readers and images like these, help is shown to harm"
    else:
        shown = "that it does the one or the other for readers and images like these is not shown"
    few = "" if told["readers"] >= FEW else " Two readers say little of others."
    return f"{who} ({100 * confidence:g} % interval {interval}): {shown}.{few}"
