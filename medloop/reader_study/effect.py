"""Effect of a model's help on readers: the paired difference over readers and cases (multi-reader, multi-case).

The method is that of Obuchowski and Rockette (1995) with Hillis' degrees of freedom (2007). It treats readers and cases
as samples, so the result applies to other readers and cases. The covariances of the cases come from a jackknife over
patients, which omits all images of a patient at once.

In simulated studies without an effect, at a level of 5 %, it is significant in 8 % with two readers, 6 % with three or
four, and 5.5 % with six and ten. A bootstrap over readers and cases is significant in 2 to 4 %: it counts the variation
of readers and cases twice, so its intervals are too wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from components.shared.statistics.intervals import Floats
from medloop.reader_study.weighted_figures import Sums, covariances, jackknife, value


@dataclass(frozen=True)
class Parts:
    """Variance components of the difference."""

    readers: int
    between: float
    """Mean square of modality by reader."""
    together: float
    """Covariance of two readers in the same modality minus that in different modalities; at least 0."""

    @property
    def spread(self) -> float:
        """The denominator of the test statistic."""
        return self.between + self.readers * self.together

    @property
    def error(self) -> float:
        """The standard error of the difference."""
        return math.sqrt(2 / self.readers * self.spread)

    @property
    def freedom(self) -> float:
        """Hillis' degrees of freedom; infinite if the effect is the same for all readers."""
        return math.inf if self.between <= 0 else self.spread**2 / (self.between**2 / (self.readers - 1))


def effect(unaided: list[Sums], aided: list[Sums], confidence: float) -> dict[str, Any]:
    """Return the mean difference for two or more readers who read the same images in both ways."""
    both = [*unaided, *aided]
    figures = np.array([value(sums) for sums in both]).reshape(2, len(unaided))
    return conclude(figures, parts(figures, covariances(jackknife(both))), confidence)


def parts(figures: Floats, covariance: Floats) -> Parts:
    """Return the components for figures [modality, reader] and covariances [modality·reader, modality·reader]."""
    readers = figures.shape[1]
    apart = figures - figures.mean(axis=1, keepdims=True) - figures.mean(axis=0) + figures.mean()
    other = ~np.eye(readers, dtype=bool)
    blocks = covariance.reshape(2, readers, 2, readers)
    same = np.mean([blocks[modality, :, modality][other] for modality in (0, 1)])
    across = blocks[0, :, 1][other].mean()
    return Parts(readers, float((apart**2).sum()) / (readers - 1), max(0.0, float(same - across)))


def conclude(figures: Floats, components: Parts, confidence: float) -> dict[str, Any]:
    """Return the difference of figures [unaided, aided], its interval and two-sided p value."""
    unaided, aided = (float(mean) for mean in figures.mean(axis=1))
    difference = aided - unaided
    result = {"unaided": unaided, "aided": aided, "difference": difference}
    if not components.error > 0:
        return {**result, "low": None, "high": None, "p": None, "freedom": None}
    freedom = components.freedom
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * components.error
    p = 2 * float(stdtr(freedom, -abs(difference) / components.error))
    return {
        **result,
        "low": max(-1.0, difference - half),
        "high": min(1.0, difference + half),
        "p": p,
        "freedom": None if math.isinf(freedom) else freedom,
    }


def of_one(unaided: Sums, aided: Sums, confidence: float) -> dict[str, Any]:
    """Return the difference for one reader, with only the cases as a sample."""
    left_out = jackknife([unaided, aided])
    variance = covariances((left_out[1] - left_out[0])[None])[0, 0]
    error, patients = math.sqrt(float(variance)), left_out.shape[1]
    difference = value(aided) - value(unaided)
    if not error > 0 or patients < 2:
        return {"difference": difference, "low": None, "high": None}
    half = float(stdtrit(patients - 1, (1 + confidence) / 2)) * error
    return {"difference": difference, "low": max(-1.0, difference - half), "high": min(1.0, difference + half)}
