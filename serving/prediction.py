"""Predictions for views, computed as in evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared.imaging.views import blank_views
from components.shared.inference import Model


def predict(model: Model, views: NDArray[np.uint8], with_features: bool = False) -> list[dict[str, Any]]:
    """Return for each view the predicted class, its probability, the probability of each class, and the threshold.

    In a multilabel task the prediction is the list of findings that are present, and the confidence is the probability
    of the least certain of these decisions. The threshold is that of the positive class (the second of two), or a
    mapping with that of each finding; with more classes both are None.
    """
    output = model(views)
    probabilities = model.probabilities(output.logits)
    if not np.isfinite(probabilities).all():
        raise ArithmeticError("the model returned a probability that is not finite")
    predictions = []
    for row, decision in enumerate(model.decide(probabilities)):
        prediction: dict[str, Any] = {
            **_summarise(model, decision, probabilities[row]),
            "probabilities": dict(zip(model.classes, probabilities[row].tolist(), strict=True)),
            **thresholds(model),
        }
        if with_features:
            prediction["features"] = output.features[row].tolist()
        predictions.append(prediction)
    return predictions


def _summarise(model: Model, decision: Any, probabilities: NDArray[np.float64]) -> dict[str, Any]:
    """Return the prediction for one view and its confidence."""
    if model.about["task"] != "multilabel":
        return {"prediction": model.classes[decision], "confidence": float(probabilities[decision])}
    present = [name for name, is_present in zip(model.classes, decision, strict=True) if is_present]
    return {"prediction": present, "confidence": float(np.where(decision, probabilities, 1 - probabilities).min())}


def thresholds(model: Model) -> dict[str, Any]:
    """Return the threshold from validation, and the class whose probability is compared with it."""
    threshold = model.about["threshold"]
    if model.about["task"] == "multilabel":
        return {"positive": None, "threshold": dict(zip(model.classes, threshold, strict=True))}
    return {"positive": None if threshold is None else model.classes[1], "threshold": threshold}


def check_model(model: Model) -> None:
    """Run the model on two blank images; raise an exception if it fails, before it is in service."""
    predict(model, blank_views(2, model.preprocess))
