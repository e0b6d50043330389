"""Finds patients with more images than one patient plausibly has: mostly an id that stands for many people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

TIMES = 10
"""A patient is out of proportion with more than this many times the images of 19 patients in 20."""
FEW = 30
"""Up to this many images a patient is plausible whatever others have."""


def crowds(patients: Sequence[str], files: Sequence[str], most: int) -> dict[str, str]:
    """The patients with implausibly many images, each with the reason in a sentence.

    patients: the patient of each image
    files: the file (or the digest of it) that each image came from; slices and frames of one file count once
    most: the largest plausible number for any patient; fewer are implausible, too, where the others have far fewer
    """
    held: dict[str, set[str]] = defaultdict(set)
    for patient, file in zip(patients, files, strict=True):
        held[patient].add(file)
    counts = {patient: len(names) for patient, names in held.items()}
    usual = _usual(list(counts.values()))
    limit = min(most, max(FEW, TIMES * usual)) if usual else most
    return {
        patient: f"{count} images of one patient, and at most {limit} are plausible: {_why(limit, most, usual)}"
        for patient, count in sorted(counts.items())
        if count > limit
    }


def _usual(counts: list[int]) -> int:
    """How many images 19 patients in 20 have at most, never the number of the one with the most; 0 for one patient."""
    ordered = np.sort(np.array(counts, dtype=np.int64))
    return int(ordered[(len(ordered) - 1) * 19 // 20]) if len(ordered) > 1 else 0


def _why(limit: int, most: int, usual: int) -> str:
    """Where the limit comes from, and what to look at."""
    source = "the limit for any patient" if limit == most else f"19 patients in 20 have {usual} or fewer"
    return f"{source}. Look whether several people share its id"
