"""Patients who withdrew their consent."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.shared.errors import RefusedError
from components.split.columns import positions
from components.split.history import Owners

SHORTEST = 12
"""The fewest digits of a keyed hash that may stand for a patient."""


def withdrawn_ids(asked: Sequence[str], known: pa.Array) -> pa.Array:
    """The full ids of the patients whom these hashes, or beginnings of hashes, name."""
    ids = known.to_pylist()
    return pa.array(sorted({_named(text, ids) for text in asked}), pa.string())


def _named(text: str, ids: list[str]) -> str:
    shown = text[:SHORTEST] if isinstance(text, str) and re.fullmatch(r"[0-9a-f]+", text) else "a text that is no hash"
    if not isinstance(text, str) or not re.fullmatch(rf"[0-9a-f]{{{SHORTEST},}}", text):
        raise RefusedError(
            f"withdrawn names {shown}, and must name patients by their keyed hash: {SHORTEST} or more of its "
            "digits 0-9 and a-f. Take it from the index of the data set."
        )
    found = [name for name in ids if name.startswith(text)]
    if len(found) != 1:
        raise RefusedError(
            f"withdrawn names {shown}, and {len(found) or 'none'} of the {len(ids)} patients ever seen here "
            f"{'have' if found else 'has'} an id that begins so. Give all its digits, or take it out of the list."
        )
    return found[0]


def withdrawn_images(owners: Owners, ids: pa.Array) -> NDArray[np.bool_]:
    """Which rows show a picture that has ever been seen under one of these patients, whatever patient has it now."""
    return np.asarray(owners.least(ids, np.zeros(len(ids), np.int64), 1) == 0, bool)


def withdrawn_patients(
    present: pa.Array, ids: pa.Array, of: NDArray[np.int64], images: NDArray[np.bool_], open_: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which patients are these, or are taken to be: those that are new (`open_`) and show one of their pictures."""
    named = positions(present, ids) >= 0
    also = np.zeros(len(present), bool)
    also[of[images]] = True
    return named | (also & open_)
