"""Which images of a data set are looked at: a few of each class and site, spread over patients, out of few shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medloop.dataset_report.groups import SIDES, Group, Mask, Rows
from medloop.dataset_report.show import near_groups

SHOWN = 24
"""Pictures on the contact sheet of a class."""
SHOWN_IN_ALL = 400
"""Pictures on all contact sheets together: the page must stay small."""
MEASURED = 150
"""Images of a class or site of which the brightness is measured."""
PAIRS = 6
"""Pairs of images that look alike, of each kind."""
SHARDS = 12
BYTES = 1_000_000_000
"""The most that is read of a data set for the pictures: shards, and bytes; as much again at most for the pairs."""


@dataclass(frozen=True)
class Sample:
    """Rows of the index: pictures for each class, what is measured of each group, pairs that look alike, and of the
    rows that were asked for those that are at hand.
    """

    sheets: list[list[int]]
    measured: list[list[int]]
    identical: list[tuple[int, int]]
    near: list[tuple[int, int]]
    asked: list[int]
    shards: list[int] = field(default_factory=list)


def draw(rows: Rows, groups: Sequence[Group], asked: Sequence[int] = ()) -> Sample:
    """The sample of a data set, and those rows too where there is room: the same whenever it is drawn."""
    shelf = _Shelf(rows)
    first = rows.roots < 0  # of identical images one is enough
    wanted = [Group(group.name, group.mask & first) for group in groups]
    shelf.take_for(wanted)
    each = max(3, min(SHOWN, SHOWN_IN_ALL // max(1, len(rows.classes))))
    return Sample(
        [_spread(rows, shelf.within(group.mask & first), each) for group in rows.classes],
        [_spread(rows, shelf.within(group.mask), MEASURED) for group in wanted],
        shelf.pairs((row, int(rows.roots[row])) for row in np.flatnonzero(rows.roots >= 0).tolist()),
        shelf.pairs(_two(rows, members) for members in near_groups(rows)),
        shelf.reach(asked),
        sorted(shelf.taken),
    )


class _Shelf:
    """The shards that are read, so many and no more."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.shard: NDArray[np.int64] = rows.data.column("shard").astype(np.int64)
        self.bytes = np.array([shard["bytes"] for shard in rows.data.about["shards"]])
        self.taken: set[int] = set()
        self.room = (SHARDS, BYTES)

    def take_for(self, groups: Sequence[Group]) -> None:
        """Take shards until each group has enough images in them, those first that serve most groups best."""
        held = np.stack([np.bincount(self.shard[group.mask], minlength=len(self.bytes)) for group in groups])
        needs = np.minimum(held.sum(axis=1), MEASURED).astype(float)
        needed, whole = needs.copy(), np.maximum(needs, 1)
        while len(self.taken) < len(self.bytes) and needed.any():
            gain = (np.minimum(held, needed[:, None]) / whole[:, None]).sum(axis=0)
            gain[list(self.taken)] = -1
            best = int(gain.argmax())
            if gain[best] <= 0 or (self.taken and not self._fits({best})):
                break
            self.taken.add(best)
            needed = np.maximum(0, needed - held[:, best])
        self.room = (len(self.taken) + SHARDS // 2, int(self.bytes[list(self.taken)].sum()) + BYTES // 2)

    def within(self, mask: Mask) -> NDArray[np.int64]:
        """The rows of these images that lie in a shard that is read."""
        return np.flatnonzero(mask & np.isin(self.shard, list(self.taken)))

    def pairs(self, found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Some of the pairs: those on two sides first, then those of two patients."""
        side, patients, ids = self.rows.side, self.rows.patients, self.rows.ids

        def rank(pair: tuple[int, int]) -> tuple[bool, bool, str]:
            one, other = pair
            sides = {int(side[one]), int(side[other])}
            return (
                not (len(sides) == 2 and sides <= set(range(len(SIDES)))),
                bool(patients[one] == patients[other]),
                ids[one],
            )

        chosen: list[tuple[int, int]] = []
        for pair in sorted(found, key=rank):
            shards = {int(self.shard[row]) for row in pair}
            if len(chosen) < PAIRS and (shards <= self.taken or self._fits(shards)):
                self.taken |= shards
                chosen.append(pair)
        return chosen

    def reach(self, asked: Sequence[int]) -> list[int]:
        """Those of the rows whose shard is read, or can be."""
        reached = []
        for row in asked:
            shard = {int(self.shard[row])}
            if shard <= self.taken or self._fits(shard):
                self.taken |= shard
                reached.append(row)
        return reached

    def _fits(self, more: set[int]) -> bool:
        after = self.taken | more
        return len(after) <= self.room[0] and int(self.bytes[list(after)].sum()) <= self.room[1]


def _spread(rows: Rows, found: NDArray[np.int64], number: int) -> list[int]:
    """So many of these rows: one of each patient first, then a second, in the order of their ids, which is none."""
    met: Counter[int] = Counter()
    ranked: list[tuple[int, int, int]] = []
    for row in sorted(found.tolist(), key=rows.ids.__getitem__):
        patient = int(rows.patients[row])
        ranked.append((met[patient], len(ranked), row))
        met[patient] += 1
    return [row for _, _, row in sorted(ranked)[:number]]


def _two(rows: Rows, members: list[int]) -> tuple[int, int]:
    """Two images of such a group that are not identical; on two sides or of two patients where some are."""
    digests = rows.index["pixel_digest"]
    first = members[0]
    others = [row for row in members[1:] if digests[row] != digests[first]]
    apart = [row for row in others if rows.side[row] != rows.side[first]]
    apart = apart or [row for row in others if rows.patients[row] != rows.patients[first]]
    return first, (apart or others)[0]
