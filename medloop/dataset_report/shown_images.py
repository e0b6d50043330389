"""Sample of a data set for its report: images of each class and site, over many patients, from few shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medloop.dataset_report.counts import SPLITS, Group, Mask, Rows
from medloop.dataset_report.statistics import near_groups

SHOWN = 24
"""Images shown per class."""
MAX_SHOWN = 400
"""Images shown in total, to limit the size of the page."""
MEASURED = 150
"""Images per class or site whose brightness is measured."""
PAIRS = 6
"""Pairs of identical and of nearly identical images."""
SHARDS = 12
BYTES = 1_000_000_000
"""Maximum number of shards and bytes that are read for the images; the pairs may add half of that."""


@dataclass(frozen=True)
class Sample:
    """Rows of the index: images per class, measured images per group, duplicate pairs, and requested rows."""

    sheets: list[list[int]]
    measured: list[list[int]]
    identical: list[tuple[int, int]]
    near: list[tuple[int, int]]
    requested: list[int]
    shards: list[int] = field(default_factory=list)


def draw(rows: Rows, groups: Sequence[Group], requested: Sequence[int] = ()) -> Sample:
    """Return a deterministic sample, including the requested rows within the limits on shards and bytes."""
    shards = _ShardSelection(rows)
    first = rows.roots < 0  # one of several identical images is enough
    unique = [Group(group.name, group.mask & first) for group in groups]
    shards.select_for(unique)
    per_class = max(3, min(SHOWN, MAX_SHOWN // max(1, len(rows.classes))))
    return Sample(
        [_spread(rows, shards.rows_of(group.mask & first), per_class) for group in rows.classes],
        [_spread(rows, shards.rows_of(group.mask), MEASURED) for group in unique],
        shards.pairs((row, int(rows.roots[row])) for row in np.flatnonzero(rows.roots >= 0).tolist()),
        shards.pairs(_near_pair(rows, members) for members in near_groups(rows)),
        shards.add(requested),
        sorted(shards.selected),
    )


class _ShardSelection:
    """The shards to read, limited in number and size."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.shard: NDArray[np.int64] = rows.data.column("shard").astype(np.int64)
        self.bytes = np.array([shard["bytes"] for shard in rows.data.about["shards"]])
        self.selected: set[int] = set()
        self.limits = (SHARDS, BYTES)

    def select_for(self, groups: Sequence[Group]) -> None:
        """Select shards until each group has enough images, starting with those that cover most of the groups."""
        available = np.stack([np.bincount(self.shard[group.mask], minlength=len(self.bytes)) for group in groups])
        targets = np.minimum(available.sum(axis=1), MEASURED).astype(float)
        missing, scale = targets.copy(), np.maximum(targets, 1)
        while len(self.selected) < len(self.bytes) and missing.any():
            gain = (np.minimum(available, missing[:, None]) / scale[:, None]).sum(axis=0)
            gain[list(self.selected)] = -1
            best = int(gain.argmax())
            if gain[best] <= 0 or (self.selected and not self._fits({best})):
                break
            self.selected.add(best)
            missing = np.maximum(0, missing - available[:, best])
        self.limits = (len(self.selected) + SHARDS // 2, int(self.bytes[list(self.selected)].sum()) + BYTES // 2)

    def rows_of(self, mask: Mask) -> NDArray[np.int64]:
        """Return the rows of these images that are in selected shards."""
        return np.flatnonzero(mask & np.isin(self.shard, list(self.selected)))

    def pairs(self, candidates: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return up to PAIRS pairs: those in two splits first, then those of two patients."""
        split, patients, ids = self.rows.split, self.rows.patients, self.rows.ids

        def rank(pair: tuple[int, int]) -> tuple[bool, bool, str]:
            one, other = pair
            splits = {int(split[one]), int(split[other])}
            return (
                not (len(splits) == 2 and splits <= set(range(len(SPLITS)))),
                bool(patients[one] == patients[other]),
                ids[one],
            )

        chosen: list[tuple[int, int]] = []
        for pair in sorted(candidates, key=rank):
            if len(chosen) < PAIRS and self._add({int(self.shard[row]) for row in pair}):
                chosen.append(pair)
        return chosen

    def add(self, rows: Sequence[int]) -> list[int]:
        """Select the shards of these rows within the limits, and return the rows in selected shards."""
        return [row for row in rows if self._add({int(self.shard[row])})]

    def _add(self, shards: set[int]) -> bool:
        """Select these shards if they fit; return whether all of them are selected."""
        if not (shards <= self.selected or self._fits(shards)):
            return False
        self.selected |= shards
        return True

    def _fits(self, more: set[int]) -> bool:
        after = self.selected | more
        return len(after) <= self.limits[0] and int(self.bytes[list(after)].sum()) <= self.limits[1]


def _spread(rows: Rows, candidates: NDArray[np.int64], number: int) -> list[int]:
    """Return rows spread over patients: one of each patient, then a second, ordered by their (random) ids."""
    counts: Counter[int] = Counter()
    ranked: list[tuple[int, int, int]] = []
    for row in sorted(candidates.tolist(), key=rows.ids.__getitem__):
        patient = int(rows.patients[row])
        ranked.append((counts[patient], len(ranked), row))
        counts[patient] += 1
    return [row for _, _, row in sorted(ranked)[:number]]


def _near_pair(rows: Rows, members: list[int]) -> tuple[int, int]:
    """Return two images of a group that are not identical, if possible in two splits or of two patients."""
    digests = rows.index["pixel_digest"]
    first = members[0]
    others = [row for row in members[1:] if digests[row] != digests[first]]
    apart = [row for row in others if rows.split[row] != rows.split[first]]
    apart = apart or [row for row in others if rows.patients[row] != rows.patients[first]]
    return first, (apart or others)[0]
