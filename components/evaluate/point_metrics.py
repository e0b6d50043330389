"""Proportions and areas: their value, and the contribution of each patient to its deviation from the truth.

The deviation of a figure that is a smooth function of sums over patients is the sum of the contributions of all
patients (the influence function). The sum of their squares is the variance of the figure; for two figures on the same
patients, the sum of the squared differences is the variance of the difference. No resampling is needed. All
contributions are multiplied by √(n/(n-1)), where n is the number of patients, because the variance is estimated around
the sample mean.

With two classes, sensitivity, specificity, precision, F1, AUC and PR-AUC are those of the second class, the positive
one. With more classes, and with findings, they are means over the classes, one against the rest (macro); `micro/…`
figures are computed over all decisions together. A figure that a class has no images for is NaN, and means ignore such
a class. A class that is never predicted has precision 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.shared.metric_catalogue import MICRO
from components.shared.statistics.bootstrapped_metrics import Bools, Ints, Predictions
from components.shared.statistics.intervals import (
    ASSUMED_CORRELATION,
    Area,
    Figure,
    Floats,
    Share,
    area_figure,
    binormal_variance,
    share_figure,
    uneven_variance,
)


@dataclass(frozen=True)
class Estimate:
    """A figure, and the contribution of each patient to its deviation: [patients, 1], or [patients, 2] for an area.

    The columns of an area are the contributions of images with the class, and of images without it.
    """

    spread: Share | Area
    parts: Floats

    @property
    def value(self) -> float:
        """The figure; NaN if it cannot be computed from these images."""
        return float(self.spread.value)

    @property
    def patients(self) -> int:
        """Number of patients that it rests on; for an area, of the smaller group."""
        if isinstance(self.spread, Area):
            return int(min(self.spread.patients_with, self.spread.patients_without))
        return int(self.spread.patients)

    @property
    def by_patient(self) -> Floats:
        """The total contribution of each patient."""
        return np.asarray(self.parts.sum(axis=1))

    def figure(self, confidence: float) -> Figure:
        """Return the figure with its interval."""
        return (
            area_figure(self.spread, confidence)
            if isinstance(self.spread, Area)
            else share_figure(self.spread, confidence)
        )


def estimates(predictions: Predictions) -> dict[str, Estimate]:
    """Return all proportions and areas: name for all classes, name/k for class k, micro/name for micro averages."""
    cluster_size = mean_cluster_size(predictions.by_patient(np.ones(len(predictions.patients))))
    counts = Counts.of(predictions)
    by_class: dict[str, Estimate] = {}
    for k in range(predictions.classes):
        of_class = counts.column(k).figures(cluster_size)
        of_class |= ranking(predictions, k, cluster_size)
        by_class |= {f"{name}/{k}": estimate for name, estimate in of_class.items()}
    names = dict.fromkeys(name.partition("/")[0] for name in by_class if not name.startswith("accuracy/"))
    classes = predictions.reported_classes
    whole = {name: average([by_class[f"{name}/{k}"] for k in classes], cluster_size) for name in names}
    if predictions.multilabel:
        exact = predictions.by_patient((predictions.truth == predictions.decisions).all(axis=1))
        images = counts.images[:, 0]
        whole["accuracy"] = share(counts.right.sum(axis=1), images * predictions.classes)
        whole["exact_match"] = share(exact, images)
    else:
        whole["accuracy"] = share(counts.both.sum(axis=1), counts.images[:, 0])
        recalls = [by_class[f"sensitivity/{k}"] for k in range(predictions.classes)]
        whole["balanced_accuracy"] = average(recalls, cluster_size)
    if len(classes) > 1:
        together = counts.together().figures(cluster_size) | ranking(predictions, None, cluster_size)
        whole |= {f"micro/{name}": together[name] for name in MICRO}
    return whole | by_class


@dataclass(frozen=True)
class Counts:
    """By patient and class: images, images of the class, images predicted as the class, and images with both."""

    images: Floats
    actual: Floats
    predicted: Floats
    both: Floats

    @staticmethod
    def of(predictions: Predictions) -> Counts:
        """Return the counts of all classes: [patients, classes]."""
        truth, predicted = predictions.truth, predictions.decisions
        parts = (np.ones(truth.shape), truth, predicted, truth & predicted)
        return Counts(*map(predictions.by_patient, parts))

    @property
    def right(self) -> Floats:
        """Images that are rightly classified as of the class or not."""
        return np.asarray(self.images - self.actual - self.predicted + 2 * self.both)

    def column(self, k: int) -> Counts:
        """Return the counts of one class."""
        return Counts(self.images[:, k], self.actual[:, k], self.predicted[:, k], self.both[:, k])

    def together(self) -> Counts:
        """Return the sums over the classes, which count each image once for every class."""
        return Counts(*(part.sum(axis=1) for part in (self.images, self.actual, self.predicted, self.both)))

    def figures(self, cluster_size: float) -> dict[str, Estimate]:
        """Return the proportions that these counts give."""
        present = self.actual.sum() > 0
        sensitivity = share(self.both, self.actual)
        specificity = share(self.right - self.both, self.images - self.actual)
        precision = share(self.both, self.predicted) if self.predicted.sum() else share(0 * self.actual, self.actual)
        nothing = share(0 * self.actual, 0 * self.actual)
        return {
            "accuracy": share(self.right, self.images),
            "balanced_accuracy": average([sensitivity, specificity], cluster_size) if present else nothing,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": precision if present else nothing,
            "f1": share(2 * self.both, self.actual + self.predicted, cluster_size, self.actual) if present else nothing,
        }


def mean_cluster_size(images: Floats) -> float:
    """Return the mean over the images of the number of images of the same patient."""
    total = float(images.sum())
    return float((images**2).sum()) / total if total else 1.0


def share(above: Floats, below: Floats, cluster_size: float | None = None, behind: Floats | None = None) -> Estimate:
    """Return the ratio of two sums over patients; it rests on the patients with `behind`, or else `below`, above 0."""
    total = float(below.sum())
    if not total:
        return Estimate(Share(np.nan, np.nan, 0, 1.0), np.zeros((len(below), 1)))
    patients = int(np.count_nonzero(below if behind is None else behind))
    value = float(above.sum()) / total
    parts = (above - value * below) / total * small_sample_factor(patients)
    own_size = mean_cluster_size(below)
    variance, uneven = uneven_variance(value, (parts**2).sum(), patients, own_size, total)
    return Estimate(Share(value, float(variance), patients, cluster_size or own_size, float(uneven)), parts[:, None])


def average(estimates: Sequence[Estimate], cluster_size: float) -> Estimate:
    """Return the mean of figures of the same patients, ignoring NaN."""
    known = [estimate for estimate in estimates if not np.isnan(estimate.value)]
    if not known:
        return estimates[0]
    if len(known) == 1:
        return known[0]
    value = float(np.mean([estimate.value for estimate in known]))
    parts = np.asarray(np.mean([estimate.parts for estimate in known], axis=0), np.float64)
    areas = [estimate.spread for estimate in known if isinstance(estimate.spread, Area)]
    if not areas:
        numbers = [estimate.patients for estimate in known]
        patients = min(len(parts), len(numbers) ** 2 / sum(1 / n for n in numbers)) if min(numbers) else 0
        # If the variance of a figure was inflated, so is that of the mean.
        inflation = max(variance_inflation(estimate) for estimate in known)
        uneven = max(estimate.spread.uneven for estimate in known if isinstance(estimate.spread, Share))
        return Estimate(Share(value, float((parts**2).sum()) * inflation, patients, cluster_size, uneven), parts)
    smallest = min(areas, key=lambda area: float(min(area.patients_with, area.patients_without)))
    assumed = float(np.mean([np.sqrt(area.assumed) for area in areas])) ** 2
    return Estimate(_area(value, parts, smallest.patients_with, smallest.patients_without, assumed), parts)


def variance_inflation(estimate: Estimate) -> float:
    """Return the ratio of the variance of a proportion to the observed variance."""
    observed = float((estimate.parts**2).sum())
    return float(estimate.spread.variance) / observed if isinstance(estimate.spread, Share) and observed > 0 else 1.0


def ranking(predictions: Predictions, k: int | None, cluster_size: float) -> dict[str, Estimate]:
    """Return AUC and PR-AUC (average precision) of class k against the rest, or of all decisions if k is None."""
    columns = slice(None) if k is None else slice(k, k + 1)
    truth, probability = predictions.truth[:, columns].ravel(), predictions.probabilities[:, columns].ravel()
    owners = np.repeat(predictions.patients, predictions.classes if k is None else 1)
    patients = predictions.number_of_patients
    auc = area(truth, probability, owners, patients, cluster_size)
    with_class = int(np.count_nonzero(np.bincount(owners[truth], minlength=patients)))
    if not with_class:
        return {"auc": auc, "pr_auc": Estimate(Share(np.nan, np.nan, 0, cluster_size), np.zeros((patients, 1)))}
    value, by_image = average_precision(truth, probability)
    parts: Floats = np.bincount(owners, by_image, patients).astype(np.float64) * small_sample_factor(with_class)
    spread = Share(value, float((parts**2).sum()), with_class, cluster_size)
    return {"auc": auc, "pr_auc": Estimate(spread, parts[:, None])}


def area(truth: Bools, score: Floats, owners: Ints, patients: int, cluster_size: float) -> Estimate:
    """Return the AUC: the probability that an image with the class scores higher than one without; ties count half."""
    positives, negatives = np.sort(score[truth]), np.sort(score[~truth])
    n = [int(np.count_nonzero(np.bincount(owners[chosen], minlength=patients))) for chosen in (truth, ~truth)]
    if not min(n):
        return Estimate(Area(np.nan, 0.0, 0.0, 0.0, n[0], n[1], np.nan), np.zeros((patients, 2)))
    above = _below(negatives, score[truth]) / len(negatives)
    below = 1 - _below(positives, score[~truth]) / len(positives)
    value = float(above.mean())
    sums = [
        np.bincount(owners[truth], above - value, patients) / len(positives) * small_sample_factor(n[0]),
        np.bincount(owners[~truth], below - value, patients) / len(negatives) * small_sample_factor(n[1]),
    ]
    parts = np.stack(sums, axis=1)
    inflation = 1 + ASSUMED_CORRELATION * max(cluster_size - 1, 0)
    assumed = float(binormal_variance(value, len(positives), len(negatives))) * inflation
    return Estimate(_area(value, parts, n[0], n[1], assumed), parts)


def _area(value: float, parts: Floats, patients_with: int, patients_without: int, assumed: float) -> Area:
    squares = (parts**2).sum(axis=0)
    both = 2 * float((parts[:, 0] * parts[:, 1]).sum())
    return Area(value, float(squares[0]), float(squares[1]), both, patients_with, patients_without, assumed)


def _below(ordered: Floats, scores: Floats) -> Floats:
    """Return how many of the ordered scores are below each score; equal ones count half."""
    return np.asarray((np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2)


def average_precision(truth: Bools, score: Floats) -> tuple[float, Floats]:
    """Return the mean precision at the images with the class, and the contribution of each image."""
    order = np.argsort(-score, kind="stable")
    ranked, positive = score[order], truth[order].astype(np.float64)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    step = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))  # images with the same score share a step
    tp, predicted = np.cumsum(positive)[ends], (ends + 1).astype(np.float64)
    added, total = np.diff(tp, prepend=0), float(tp[-1])
    precision = tp / predicted
    value = float((added * precision).sum()) / total
    # What one more image of the class adds to the precision of all later steps, and what any image takes from it.
    gain = np.cumsum((added / predicted)[::-1])[::-1]
    loss = np.cumsum((added * precision / predicted)[::-1])[::-1]
    parts = np.empty(len(order))
    parts[order] = (positive * (precision + gain)[step] - loss[step] - value * positive) / total
    return value, parts


def small_sample_factor(patients: int) -> float:
    """Return √(n/(n-1)), which corrects the variance for being taken around the sample mean."""
    return float(np.sqrt(patients / max(patients - 1, 1)))
