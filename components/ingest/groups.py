"""Which files share a shard."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from components.shared.errors import RefusedError
from components.shared.storage.source import Entry

GROUP = 128
"""The mean number of files in a shard."""
FIRST = "first"
"""The name of the group that begins before every hash."""


@dataclass(frozen=True)
class Group:
    """Neighbours in the order of their names' keyed hashes. Its own name is the hash after which it begins."""

    name: str
    members: list[tuple[str, Entry]]


def group(files: Sequence[tuple[str, Entry]]) -> list[Group]:
    """Files, each with its hash, in groups that do not depend on the order or the time of their arrival.

    A group ends after a hash that happens to be a multiple of GROUP, so a new file changes the group it falls into
    and leaves the others, and their shards, as they were.
    """
    groups = [Group(FIRST, [])]
    for file in sorted(files):
        groups[-1].members.append(file)
        if int(file[0][:12], 16) % GROUP == 0:
            groups.append(Group(file[0], []))
    return [found for found in groups if found.members]


def partition(groups: Sequence[Group], part: str) -> list[Group]:
    """The share of the groups that falls to a part such as "2/8"."""
    number, slash, count = part.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise RefusedError(f"part is {part!r}, and must be one such as 2/8: the second of eight. Give it in that form.")
    return list(groups[int(number) - 1 :: int(count)])


def overlapping(names: Sequence[str], group: Group) -> list[str]:
    """Of the names of earlier groups, sorted, those that may hold a file of this one: groups part and join."""
    starts = [name for name in names if name != FIRST]
    first = "" if group.name == FIRST else group.name
    low, high = bisect_right(starts, first), bisect_left(starts, group.members[-1][0])
    covering = starts[low - 1] if low else FIRST
    return [covering, *starts[low:high]]
