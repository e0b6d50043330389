"""From views to answers, the same way as in evaluation: model, then decision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.imaging.views import blank_views
from components.shared.inference import Model


def answer(model: Model, views: NDArray[np.uint8], with_features: bool = False) -> list[dict[str, Any]]:
    """For each view the decided class, its probability, and the probability of each class."""
    outcome = model(views)
    probabilities = model.probabilities(outcome.logits)
    if not np.isfinite(probabilities).all():
        raise ArithmeticError("the model gave a probability that is not a number")
    answers = []
    for row, chosen in enumerate(model.decide(probabilities)):
        found: dict[str, Any] = {
            "prediction": model.classes[chosen],
            "confidence": float(probabilities[row, chosen]),
            "probabilities": dict(zip(model.classes, probabilities[row].tolist(), strict=True)),
        }
        if with_features:
            found["features"] = outcome.features[row].tolist()
        answers.append(found)
    return answers


def rehearse(model: Model) -> None:
    """Have the model answer for two blank images, so that one that cannot is found before it is in service."""
    answer(model, blank_views(2, model.preprocess))
