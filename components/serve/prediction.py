"""From the bytes of an image to an answer, the same way as in evaluation: master, view, model, decision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.shared import pixels, work
from components.shared.runtime import Model
from components.shared.views import blank_views, framing, view


def look_at(data: bytes, model: Model) -> NDArray[np.uint8]:
    """What the model sees of an image file; a ValueError says in a sentence why the file cannot be used."""
    try:
        master = pixels.decode_image(data, pixels.Decoding(**model.preprocess["decoding"]))
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{reason[:1].upper()}{reason[1:]}.") from None
    except MemoryError:
        raise
    except Exception as error:
        # Decoders fail in many ways. Their messages may quote a header's value, so only the kind is logged.
        work.event("undecodable", "serve", error=type(error).__name__)
        raise ValueError("The file is malformed and cannot be decoded.") from None
    return view(master.pixels, *framing(model.preprocess))


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
