"""Which images are used on the side of their patient, and which are left out, and why."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.split.columns import NONE, TEST, Codes, distinct, least, positions

MUCH = 0.05
"""The share of images from which on it is told that they were left out."""


def leave_out(
    index: pa.Table, side: Codes, strictest: Codes, withdrawn: NDArray[np.bool_]
) -> tuple[Codes, NDArray[np.object_]]:
    """The side of each image, NONE where it is left out, and what left it out, or "".

    `side` is that of its patient, and `strictest` the least side of all patients whom the same picture has ever been
    seen under. Copies and look-alikes on one side stay; a published test set stays as it was published.
    """
    side = np.where(withdrawn, NONE, side)
    why = np.where(withdrawn, "withdrawn", "").astype(object)
    pixels = positions(index["pixel_digest"], pc.unique(index["pixel_digest"]))

    def leave(which: NDArray[np.bool_], reason: str) -> None:
        which &= side != NONE
        side[which], why[which] = NONE, reason

    tested = (strictest == TEST) & (side != TEST)
    there = np.isin(pixels, pixels[side == TEST])
    leave(tested & there, "duplicate")
    leave(tested, "seen on test")  # under another patient id, and gone from there
    groups = distinct(index["near"].filter(pc.not_equal(index["near"], "")))
    leave(_weaker(positions(index["near"], groups), len(groups), side), "near duplicate")
    leave(_weaker(pixels, len(pixels), side), "duplicate")
    return side, why


def much_left_out(placed: pa.Table) -> list[str]:
    """A sentence where more than a few images are on no side because of what they look like."""
    reasons = placed.filter(pc.equal(placed["side"], ""))["why"].to_pylist()
    counts = Counter(reason for reason in reasons if reason != "withdrawn")
    if sum(counts.values()) <= MUCH * len(placed):
        return []
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    sentence = (
        f"{sum(counts.values())} of {len(placed)} images are on no side ({told}), so the shares are not those asked "
        "for. Look at them with `medloop data show`; merge_options near_bits says how alike is too alike."
    )
    return [sentence]


def _weaker(group: Codes, count: int, side: Codes) -> NDArray[np.bool_]:
    """Images on a weaker side than the strictest in their group; -1 is no group."""
    strictest = np.append(least(group, side, count, NONE), NONE)  # the last for those in no group
    return np.asarray(side > strictest[group], bool)
