"""Shares and areas: their value, and what each patient adds to its deviation from the truth.

A figure that is a smooth function of sums over patients deviates, as patients come and go, by the sum of what each of
them adds (its influence). The sum of their squares is the figure's variance, and the sum of the squared differences
that of a difference of two figures on the same patients: nothing has to be drawn. Every part is multiplied by
√(n/(n-1)), n being the patients that it rests on, as a variance is that is estimated around its own mean.

With two classes the second is the positive one, and sensitivity, specificity, precision, F1, AUC and PR-AUC are its
own; with more classes, and with findings, they are means over them, one against the rest ("macro"); `micro/…` takes all
decisions together. What a class has no image for is NaN, and means leave such a class out; a class that is never
predicted has precision 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.shared.figures import MICRO
from components.shared.statistics.intervals import (
    ALIKE,
    Area,
    Figure,
    Floats,
    Share,
    binormal_variance,
    of_area,
    of_share,
    uneven,
)
from components.shared.statistics.metrics import Bools, Ints, Scored


@dataclass(frozen=True)
class Estimate:
    """A figure, and what each patient adds to its deviation: [patients, 1], or [patients, 2] for an area.

    Of an area the first column is what images with the class add, the second what those without it add.
    """

    spread: Share | Area
    parts: Floats

    @property
    def value(self) -> float:
        """The figure itself, NaN where these images cannot give it."""
        return float(self.spread.value)

    @property
    def fewest(self) -> int:
        """How many patients it rests on; of an area the fewer of the two groups."""
        if isinstance(self.spread, Area):
            return int(min(self.spread.patients_with, self.spread.patients_without))
        return int(self.spread.patients)

    @property
    def by_patient(self) -> Floats:
        """What each patient adds in all."""
        return np.asarray(self.parts.sum(axis=1))

    def figure(self, confidence: float) -> Figure:
        """With its interval, as it is written down."""
        return of_area(self.spread, confidence) if isinstance(self.spread, Area) else of_share(self.spread, confidence)


def estimates(scored: Scored) -> dict[str, Estimate]:
    """All shares and areas over all classes by name, of class k as name/k, of all decisions together as micro/name."""
    crowd = crowding(scored.by_patient(np.ones(len(scored.patients))))
    counts = Counts.of(scored)
    found: dict[str, Estimate] = {}
    for k in range(scored.classes):
        for name, estimate in counts.column(k).figures(crowd).items():
            found[f"{name}/{k}"] = estimate
        found |= {f"{name}/{k}": each for name, each in ranking(scored, scored.truth[:, k], k, crowd).items()}
    names = dict.fromkeys(name.partition("/")[0] for name in found if not name.startswith("accuracy/"))
    whole = {name: average([found[f"{name}/{k}"] for k in scored.ranked], crowd) for name in names}
    if scored.several:
        exact = scored.by_patient((scored.truth == scored.called).all(axis=1))
        images = counts.images[:, 0]
        whole["accuracy"] = share(counts.right.sum(axis=1), images * scored.classes)
        whole["exact_match"] = share(exact, images)
    else:
        whole["accuracy"] = share(counts.both.sum(axis=1), counts.images[:, 0])
        recalls = [found[f"sensitivity/{k}"] for k in range(scored.classes)]
        whole["balanced_accuracy"] = average(recalls, crowd)
    if len(scored.ranked) > 1:
        together = counts.together().figures(crowd) | ranking(scored, scored.truth, None, crowd)
        whole |= {f"micro/{name}": together[name] for name in MICRO}
    return whole | found


@dataclass(frozen=True)
class Counts:
    """By patient and class: images, images of the class, images called so, and images of which both hold."""

    images: Floats
    actual: Floats
    called: Floats
    both: Floats

    @staticmethod
    def of(scored: Scored) -> Counts:
        """Of what was scored: [patients, classes]."""
        truth, called = scored.truth, scored.called
        return Counts(*(scored.by_patient(part) for part in (np.ones(truth.shape), truth, called, truth & called)))

    @property
    def right(self) -> Floats:
        """The images of which it is rightly said whether they are of the class."""
        return np.asarray(self.images - self.actual - self.called + 2 * self.both)

    def column(self, k: int) -> Counts:
        """Those of one class."""
        return Counts(self.images[:, k], self.actual[:, k], self.called[:, k], self.both[:, k])

    def together(self) -> Counts:
        """Those of all classes, each image counted once for each."""
        return Counts(*(part.sum(axis=1) for part in (self.images, self.actual, self.called, self.both)))

    def figures(self, crowd: float) -> dict[str, Estimate]:
        """The shares that follow."""
        present = self.actual.sum() > 0
        sensitivity = share(self.both, self.actual)
        specificity = share(self.right - self.both, self.images - self.actual)
        precision = share(self.both, self.called) if self.called.sum() else share(0 * self.actual, self.actual)
        nothing = share(0 * self.actual, 0 * self.actual)
        return {
            "accuracy": share(self.right, self.images),
            "balanced_accuracy": average([sensitivity, specificity], crowd) if present else nothing,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": precision if present else nothing,
            "f1": share(2 * self.both, self.actual + self.called, crowd, self.actual) if present else nothing,
        }


def crowding(images: Floats) -> float:
    """How many images an image's own patient has, in the mean over the images."""
    total = float(images.sum())
    return float((images**2).sum()) / total if total else 1.0


def share(above: Floats, below: Floats, crowd: float | None = None, behind: Floats | None = None) -> Estimate:
    """A share of sums over patients: above / below. It rests on the patients behind it: those that `below` counts."""
    total = float(below.sum())
    if not total:
        return Estimate(Share(np.nan, np.nan, 0, 1.0), np.zeros((len(below), 1)))
    patients = int(np.count_nonzero(below if behind is None else behind))
    value = float(above.sum()) / total
    parts = (above - value * below) / total * widened(patients)
    variance, as_one = uneven(value, (parts**2).sum(), patients, crowding(below), total)
    return Estimate(Share(value, float(variance), patients, crowd or crowding(below), float(as_one)), parts[:, None])


def average(several: Sequence[Estimate], crowd: float) -> Estimate:
    """The mean of figures of the same patients, without those that do not exist."""
    known = [each for each in several if not np.isnan(each.value)]
    if not known:
        return several[0]
    if len(known) == 1:
        return known[0]
    value = float(np.mean([each.value for each in known]))
    parts = np.asarray(np.mean([each.parts for each in known], axis=0), np.float64)
    areas = [each.spread for each in known if isinstance(each.spread, Area)]
    if not areas:
        few = [each.fewest for each in known]
        patients = min(len(parts), len(few) ** 2 / sum(1 / n for n in few)) if min(few) else 0
        # Of figures that count with more than the variance that was seen, the mean does, too.
        more = max(counted(each) for each in known)
        as_one = max(each.spread.uneven for each in known if isinstance(each.spread, Share))
        return Estimate(Share(value, float((parts**2).sum()) * more, patients, crowd, as_one), parts)
    fewest = min(areas, key=lambda area: float(min(area.patients_with, area.patients_without)))
    assumed = float(np.mean([np.sqrt(area.assumed) for area in areas])) ** 2
    return Estimate(_area(value, parts, fewest.patients_with, fewest.patients_without, assumed), parts)


def counted(estimate: Estimate) -> float:
    """How many times the variance that was seen a share counts with."""
    seen = float((estimate.parts**2).sum())
    return float(estimate.spread.variance) / seen if isinstance(estimate.spread, Share) and seen > 0 else 1.0


def ranking(scored: Scored, truth: Bools, k: int | None, crowd: float) -> dict[str, Estimate]:
    """AUC and PR-AUC (average precision) of class k against the rest; of all decisions together where k is None."""
    if k is None:
        owners = np.repeat(scored.patients, scored.classes)
        return _ranking(truth.ravel(), scored.probabilities.ravel(), owners, scored.number_of_patients, crowd)
    return _ranking(truth, scored.probabilities[:, k], scored.patients, scored.number_of_patients, crowd)


def _ranking(truth: Bools, probability: Floats, owners: Ints, patients: int, crowd: float) -> dict[str, Estimate]:
    auc = area(truth, probability, owners, patients, crowd)
    with_class = int(np.count_nonzero(np.bincount(owners[truth], minlength=patients)))
    if not with_class:
        return {"auc": auc, "pr_auc": Estimate(Share(np.nan, np.nan, 0, crowd), np.zeros((patients, 1)))}
    value, each = average_precision(truth, probability)
    parts: Floats = np.bincount(owners, each, patients).astype(np.float64) * widened(with_class)
    spread = Share(value, float((parts**2).sum()), with_class, crowd)
    return {"auc": auc, "pr_auc": Estimate(spread, parts[:, None])}


def area(truth: Bools, score: Floats, owners: Ints, patients: int, crowd: float) -> Estimate:
    """The chance that an image with the class has a higher score than one without (AUC), ties counting half."""
    positives, negatives = np.sort(score[truth]), np.sort(score[~truth])
    n = [int(np.count_nonzero(np.bincount(owners[chosen], minlength=patients))) for chosen in (truth, ~truth)]
    if not min(n):
        return Estimate(Area(np.nan, 0.0, 0.0, 0.0, n[0], n[1], np.nan), np.zeros((patients, 2)))
    above = _below(negatives, score[truth]) / len(negatives)
    below = 1 - _below(positives, score[~truth]) / len(positives)
    value = float(above.mean())
    sums = [
        np.bincount(owners[truth], above - value, patients) / len(positives) * widened(n[0]),
        np.bincount(owners[~truth], below - value, patients) / len(negatives) * widened(n[1]),
    ]
    parts = np.stack(sums, axis=1)
    assumed = float(binormal_variance(value, len(positives), len(negatives))) * (1 + ALIKE * max(crowd - 1, 0))
    return Estimate(_area(value, parts, n[0], n[1], assumed), parts)


def _area(value: float, parts: Floats, patients_with: int, patients_without: int, assumed: float) -> Area:
    squares = (parts**2).sum(axis=0)
    both = 2 * float((parts[:, 0] * parts[:, 1]).sum())
    return Area(value, float(squares[0]), float(squares[1]), both, patients_with, patients_without, assumed)


def _below(ordered: Floats, scores: Floats) -> Floats:
    """How many of the ordered scores lie below each score, equal ones counting half."""
    return np.asarray((np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2)


def average_precision(truth: Bools, score: Floats) -> tuple[float, Floats]:
    """The mean precision at the images with the class, and what each image adds to its deviation."""
    order = np.argsort(-score, kind="stable")
    ranked, there = score[order], truth[order].astype(np.float64)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    step = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))  # images of one score come in together
    found, called = np.cumsum(there)[ends], (ends + 1).astype(np.float64)
    fresh, total = np.diff(found, prepend=0), float(found[-1])
    precision = found / called
    value = float((fresh * precision).sum()) / total
    helped = np.cumsum((fresh / called)[::-1])[::-1]  # what one more image of the class adds to precision from here on
    burdened = np.cumsum((fresh * precision / called)[::-1])[::-1]  # what one more image of any kind takes from it
    each = (there * (precision + helped)[step] - burdened[step] - value * there) / total
    parts = np.empty(len(each))
    parts[order] = each
    return value, parts


def widened(patients: int) -> float:
    """What a part is multiplied by, so that the variance is not too small for having been taken around its own mean."""
    return float(np.sqrt(patients / max(patients - 1, 1)))
