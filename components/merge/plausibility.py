"""Find patients with implausibly many images, usually because several people share an id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

FACTOR = 10
"""A patient may have at most this many times the images that 19 in 20 patients have."""
ALWAYS_PLAUSIBLE = 30
"""Number of images that is always plausible."""
REMEDY = "Check whether several people share its id"


def find_implausible_patients(patients: Sequence[str], files: Sequence[str], most_images: int) -> dict[str, str]:
    """Return the patients with implausibly many images, each with the reason.

    patients: the patient of each image
    files: the file of each image, or its digest; slices and frames of one file count once
    most_images: the maximum for any patient; the limit is lower if other patients have far fewer images
    """
    files_of: dict[str, set[str]] = defaultdict(set)
    for patient, file in zip(patients, files, strict=True):
        files_of[patient].add(file)
    counts = {patient: len(names) for patient, names in files_of.items()}
    typical = _typical_count(list(counts.values()))
    limit = min(most_images, max(ALWAYS_PLAUSIBLE, FACTOR * typical)) if typical else most_images
    source = "the limit for any patient" if limit == most_images else f"19 patients in 20 have {typical} or fewer"
    return {
        patient: f"{count} images of one patient; at most {limit} are plausible: {source}. {REMEDY}"
        for patient, count in sorted(counts.items())
        if count > limit
    }


def _typical_count(counts: list[int]) -> int:
    """Return the number of images that 19 in 20 patients do not exceed."""
    ordered = np.sort(np.array(counts, dtype=np.int64))
    return int(ordered[(len(ordered) - 1) * 19 // 20]) if len(ordered) > 1 else 0
