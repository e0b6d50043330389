"""Agreement of readers beyond chance: Cohen's kappa for two, Fleiss' kappa for more, with intervals over patients.

The interval is a bias-corrected bootstrap over patients. Its lower bound is limited to that of full agreement on the
same number of patients, because full agreement on few images does not prove full agreement in general.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.statistics.intervals import Floats, bootstrap_figure, draw, wilson
from medloop.reader_study.weighted_figures import Ints

RESAMPLES, SEED = 2000, 7
"""Bootstrap settings, as in the report. The fixed seed makes the interval reproducible."""


def agreement(calls: Ints, patients: Ints, classes: int, confidence: float) -> dict[str, Any]:
    """Return kappa with its interval for calls [readers, images]; every reader has read every image."""
    readers, images = calls.shape
    sums = _by_patient(calls, patients, classes)
    kappa = cohen if readers == 2 else fleiss
    number = len(sums)
    value, chance = (float(result[0]) for result in kappa(sums, np.ones((1, number)), readers, classes))
    draws, _ = kappa(sums, draw(number, RESAMPLES, SEED).astype(np.float64), readers, classes)
    figure = bootstrap_figure(value, draws, confidence, -1.0, 1.0)
    if figure["low"] is not None:
        best = wilson(1.0, number, confidence)[0]
        figure = {**figure, "low": min(figure["low"], (best - chance) / (1 - chance))}
    return {
        "method": "Cohen" if readers == 2 else "Fleiss",
        "readers": readers,
        "images": images,
        "patients": number,
        "kappa": figure,
    }


def cohen(sums: Floats, weights: Floats, _readers: int, classes: int) -> tuple[Floats, Floats]:
    """Return Cohen's kappa and the chance agreement for each weighting of the patients."""
    table = (weights @ sums).reshape(len(weights), classes, classes)
    total = table.sum(axis=(1, 2))
    observed = np.trace(table, axis1=1, axis2=2) / total
    chance = (table.sum(axis=1) * table.sum(axis=2)).sum(axis=1) / total**2
    return _beyond(observed, chance), chance


def fleiss(sums: Floats, weights: Floats, readers: int, classes: int) -> tuple[Floats, Floats]:
    """Return Fleiss' kappa and the chance agreement for each weighting of the patients."""
    totals = weights @ sums
    images = totals[:, classes + 1]
    observed = totals[:, classes] / images
    chance = ((totals[:, :classes] / (images * readers)[:, None]) ** 2).sum(axis=1)
    return _beyond(observed, chance), chance


def _by_patient(calls: Ints, patients: Ints, classes: int) -> Floats:
    """Return the sums for kappa over each patient's images."""
    readers = len(calls)
    if readers == 2:
        rows = np.eye(classes**2)[calls[0] * classes + calls[1]]
    else:
        votes = np.stack([(calls == k).sum(axis=0) for k in range(classes)], axis=1).astype(np.float64)
        pairs = (votes * (votes - 1)).sum(axis=1) / (readers * (readers - 1))
        rows = np.column_stack([votes, pairs, np.ones(len(votes))])
    _, index = np.unique(patients, return_inverse=True)
    sums = np.zeros((int(index.max()) + 1, rows.shape[1]))
    np.add.at(sums, index, rows)
    return sums


def _beyond(observed: NDArray[np.float64], chance: NDArray[np.float64]) -> Floats:
    """Return the agreement beyond chance; NaN if all calls name one class."""
    room = 1 - chance
    return np.asarray(np.divide(observed - chance, room, out=np.full(room.shape, np.nan), where=room > 1e-12))
