"""What a model's help does for readers: the paired difference over readers and cases (multi-reader, multi-case).

By Obuchowski and Rockette (1995), with Hillis' degrees of freedom (2007): readers and cases both are samples, and what
is claimed is claimed of other readers and other cases. The covariances that cases bring are the jackknife's over
patients, with all of a patient's images at once.

Of simulated studies without an effect this finds one in 8 % with two readers, 6 % with three or four and 5.5 % with six
and ten, at a level of 5 %. A bootstrap over readers and cases found one in 2 to 4 %: readers' and cases' chance come
into it twice, so its intervals are longer than they need to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from components.shared.statistics.intervals import Floats
from medloop.reader_study.sums import Sums, covariances, jackknife, value


@dataclass(frozen=True)
class Parts:
    """What the difference's uncertainty is made of: how readers differ in it, and how cases make them err together."""

    readers: int
    between: float
    """Mean square of modality by reader."""
    together: float
    """Covariance of two readers in one modality, less that of two readers in different ones; not below 0."""

    @property
    def spread(self) -> float:
        """The mean square against which the modalities are held."""
        return self.between + self.readers * self.together

    @property
    def error(self) -> float:
        """The standard error of the difference."""
        return math.sqrt(2 / self.readers * self.spread)

    @property
    def freedom(self) -> float:
        """Hillis' degrees of freedom; infinite where readers do not differ in what help does for them."""
        return math.inf if self.between <= 0 else self.spread**2 / (self.between**2 / (self.readers - 1))


def effect(unaided: list[Sums], aided: list[Sums], confidence: float) -> dict[str, Any]:
    """The mean difference that help makes, for readers (two or more) who read the same images in both ways."""
    both = [*unaided, *aided]
    figures = np.array([value(sums) for sums in both]).reshape(2, len(unaided))
    return concluded(figures, parts(figures, covariances(jackknife(both))), confidence)


def parts(figures: Floats, covariance: Floats) -> Parts:
    """The parts for figures [modality, reader], by their covariances [modality·reader, modality·reader]."""
    readers = figures.shape[1]
    apart = figures - figures.mean(axis=1, keepdims=True) - figures.mean(axis=0) + figures.mean()
    other = ~np.eye(readers, dtype=bool)
    blocks = covariance.reshape(2, readers, 2, readers)
    same = np.mean([blocks[modality, :, modality][other] for modality in (0, 1)])
    across = blocks[0, :, 1][other].mean()
    return Parts(readers, float((apart**2).sum()) / (readers - 1), max(0.0, float(same - across)))


def concluded(figures: Floats, made_of: Parts, confidence: float) -> dict[str, Any]:
    """The difference of figures [without, with], its interval, and the two-sided p that there is none."""
    without, with_help = (float(mean) for mean in figures.mean(axis=1))
    difference = with_help - without
    told = {"unaided": without, "aided": with_help, "difference": difference}
    if not made_of.error > 0:
        return {**told, "low": None, "high": None, "p": None, "freedom": None}
    freedom = made_of.freedom
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * made_of.error
    p = 2 * float(stdtr(freedom, -abs(difference) / made_of.error))
    return {
        **told,
        "low": max(-1.0, difference - half),
        "high": min(1.0, difference + half),
        "p": p,
        "freedom": None if math.isinf(freedom) else freedom,
    }


def of_one(unaided: Sums, aided: Sums, confidence: float) -> dict[str, Any]:
    """The difference that help makes for one reader, who stands for nobody else: cases alone are a sample."""
    left_out = jackknife([unaided, aided])
    gains = covariances((left_out[1] - left_out[0])[None])
    error, patients = math.sqrt(float(gains[0, 0])), left_out.shape[1]
    difference = value(aided) - value(unaided)
    if not error > 0 or patients < 2:
        return {"difference": difference, "low": None, "high": None}
    half = float(stdtrit(patients - 1, (1 + confidence) / 2)) * error
    return {"difference": difference, "low": max(-1.0, difference - half), "high": min(1.0, difference + half)}
