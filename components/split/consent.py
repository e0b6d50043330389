"""Find the patients and images to exclude because consent was withdrawn."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.shared.errors import RefusedError
from components.split.codes import positions
from components.split.history import Owners

MIN_DIGITS = 12
"""Minimum number of digits of a keyed hash that identifies a patient."""


def withdrawn_ids(hashes: Sequence[str], known: pa.Array) -> pa.Array:
    """Return the full ids of the patients with these hashes or prefixes of hashes."""
    ids = known.to_pylist()
    return pa.array(sorted({_full_id(text, ids) for text in hashes}), pa.string())


def _full_id(text: str, ids: list[str]) -> str:
    display = text[:MIN_DIGITS] if isinstance(text, str) and re.fullmatch(r"[0-9a-f]+", text) else "a text, not a hash"
    if not isinstance(text, str) or not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGITS},}}", text):
        raise RefusedError(
            f"withdrawn contains {display}; it must contain patients' keyed hashes, at least {MIN_DIGITS} of their "
            "digits 0-9 and a-f. Copy them from the data set's index."
        )
    matches = [name for name in ids if name.startswith(text)]
    if len(matches) != 1:
        raise RefusedError(
            f"withdrawn contains {display}, but the ids of {len(matches) or 'none'} of the {len(ids)} patients in this "
            "or an earlier data set begin with it. Give all digits, or remove it from the list."
        )
    return matches[0]


def withdrawn_images(owners: Owners, ids: pa.Array) -> NDArray[np.bool_]:
    """Return which rows have an image that ever belonged to one of these patients."""
    return np.asarray(owners.owner_minimum(ids, np.zeros(len(ids), np.int64), 1) == 0, bool)


def withdrawn_patients(
    present: pa.Array,
    ids: pa.Array,
    patient_of_row: NDArray[np.int64],
    images: NDArray[np.bool_],
    can_change: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Return which patients withdrew, or are new and share an image with these."""
    is_withdrawn = positions(present, ids) >= 0
    shows_withdrawn_image = np.zeros(len(present), bool)
    shows_withdrawn_image[patient_of_row[images]] = True
    return is_withdrawn | (shows_withdrawn_image & can_change)
