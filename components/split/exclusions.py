"""Exclude images that must not be used in the split of their patient."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.split.codes import NONE, TEST, Codes, distinct, group_minimum, positions

MAX_SHARE = 0.05
"""Share of excluded images above which to warn."""


def exclude_images(
    index: pa.Table, splits: Codes, strictest: Codes, withdrawn: NDArray[np.bool_]
) -> tuple[Codes, NDArray[np.object_]]:
    """Return the split of each image, NONE if excluded, and the reason.

    `splits` has the split of its patient, `strictest` the strictest split of all patients it ever belonged to.
    Duplicates within one split are kept, so that a published test set remains unchanged.
    """
    splits = np.where(withdrawn, NONE, splits)
    reasons = np.where(withdrawn, "withdrawn", "").astype(object)
    content = positions(index["pixel_digest"], pc.unique(index["pixel_digest"]))

    def exclude(mask: NDArray[np.bool_], reason: str) -> None:
        mask &= splits != NONE
        splits[mask], reasons[mask] = NONE, reason

    test_elsewhere = (strictest == TEST) & (splits != TEST)
    in_test = np.isin(content, content[splits == TEST])
    exclude(test_elsewhere & in_test, "duplicate")
    exclude(test_elsewhere, "seen on test")  # with another patient id, under which it no longer occurs
    groups = distinct(index["near"].filter(pc.not_equal(index["near"], "")))
    exclude(_less_strict(positions(index["near"], groups), len(groups), splits), "near duplicate")
    exclude(_less_strict(content, len(content), splits), "duplicate")
    return splits, reasons


def many_left_out(rows: pa.Table) -> list[str]:
    """Return a warning if many images are excluded because they duplicate others."""
    excluded_reasons = rows.filter(pc.equal(rows["side"], ""))["why"].to_pylist()
    counts = Counter(reason for reason in excluded_reasons if reason != "withdrawn")
    if sum(counts.values()) <= MAX_SHARE * len(rows):
        return []
    listing = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    warning = (
        f"{sum(counts.values())} of {len(rows)} images are in no split ({listing}), so the splits differ from the "
        "requested fractions. See them with `medloop data show`; merge_options near_bits sets what counts as a near "
        "duplicate."
    )
    return [warning]


def _less_strict(group: Codes, count: int, splits: Codes) -> NDArray[np.bool_]:
    """Return which images are in a less strict split than others of their group."""
    strictest = np.append(group_minimum(group, splits, count, NONE), NONE)  # the last is for images without a group
    return np.asarray(splits > strictest[group], bool)
