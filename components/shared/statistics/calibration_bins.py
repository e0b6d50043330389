"""The bins of the calibration error and of the calibration plot."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def calibration_bins(probabilities: NDArray[np.float64]) -> NDArray[Any]:
    """Return the bin of each probability: up to ten bins with about equally many images."""
    number = min(10, max(2, len(probabilities) // 20))
    edges = np.quantile(probabilities, np.linspace(0, 1, number + 1))
    return np.searchsorted(edges[1:-1], probabilities)
