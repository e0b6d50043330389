"""The images that a model got wrong, most confident first, with the answers of the model in service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from components.evaluate.explanations import Answers, describe_prediction
from components.shared.statistics.bootstrapped_metrics import Predictions

MAX_LISTED = 20
"""Maximum number of wrong answers on the page."""


def mistakes(
    ours: Predictions, theirs: Predictions | None, classes: Sequence[str], image_ids: Sequence[str], threshold: Any
) -> dict[str, Any]:
    """Count the wrong answers and the images they are on, and list the most confident ones.

    An answer is the class of an image, or whether a finding is present. `threshold` is the model's. With a model in
    service, `service` counts the wrong answers that it has right, and the right answers that it has wrong.
    """
    answers = Answers.of(ours, threshold)
    wrong = np.flatnonzero(~answers.right)
    ids = [image_ids[int(image)] for image in answers.images]
    order = sorted(wrong.tolist(), key=lambda n: (-answers.confidence[n], ids[n], answers.targets[n]))
    rows = []
    for n in order[:MAX_LISTED]:
        image, target = int(answers.images[n]), int(answers.targets[n])
        label, called, probability = describe_prediction(ours, classes, image, target)
        row = {"image_id": ids[n], "label": label, "called": called, "probability": probability}
        rows.append({**row, "service": describe_prediction(theirs, classes, image, target)[1] if theirs else None})
    service = None
    if theirs:
        right = [model.predicted == model.labels for model in (ours, theirs)]
        service = {"right": int((~right[0] & right[1]).sum()), "wrong": int((right[0] & ~right[1]).sum())}
    images = len(np.unique(answers.images[wrong]))
    return {"answers": len(wrong), "images": images, "rows": rows, "service": service}
