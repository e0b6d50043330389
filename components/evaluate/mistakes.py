"""The images that a model got wrong, the surest first, and what the model in service says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from components.evaluate.explain import Candidates, said
from components.shared.statistics.metrics import Scored

LISTED = 20
"""At most so many wrong answers stand on the page."""


def mistakes(
    ours: Scored, theirs: Scored | None, classes: Sequence[str], image_ids: Sequence[str], threshold: Any
) -> dict[str, Any]:
    """How many answers are wrong, on how many images, and those of which the model is surest.

    An answer is the class of an image, or whether a finding is there. `threshold` is the model's. With a model in
    service, `service` says how many of these answers it has right, and how many that are right here it has wrong.
    """
    candidates = Candidates.of(ours, threshold)
    wrong = np.flatnonzero(~candidates.right)
    ids = [image_ids[int(place)] for place in candidates.places]
    surest = sorted(wrong.tolist(), key=lambda at: (-candidates.sure[at], ids[at], candidates.targets[at]))
    rows = []
    for at in surest[:LISTED]:
        place, target = int(candidates.places[at]), int(candidates.targets[at])
        label, called, probability = said(ours, classes, place, target)
        row = {"image_id": ids[at], "label": label, "called": called, "probability": probability}
        rows.append({**row, "service": said(theirs, classes, place, target)[1] if theirs else None})
    service = None
    if theirs:
        right = [model.predicted == model.labels for model in (ours, theirs)]
        service = {"right": int((~right[0] & right[1]).sum()), "wrong": int((right[0] & ~right[1]).sum())}
    images = len(np.unique(candidates.places[wrong]))
    return {"answers": len(wrong), "images": images, "rows": rows, "service": service}
