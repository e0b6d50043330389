"""Assign files to groups; each group has its own shards."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from components.shared.errors import RefusedError
from components.shared.storage.image_source import Entry

GROUP = 128
"""Mean number of files in a group."""
FIRST = "first"
"""Name of the group that starts before every hash."""


@dataclass(frozen=True)
class Group:
    """Files with consecutive hashes, named after the hash that precedes them."""

    name: str
    members: list[tuple[str, Entry]]


def group_files(files: Sequence[tuple[str, Entry]]) -> list[Group]:
    """Group files by their hashes, independently of the order of arrival.

    A group ends after a hash that is a multiple of GROUP, so a new file changes only its own group and its shards.
    """
    groups = [Group(FIRST, [])]
    for file in sorted(files):
        groups[-1].members.append(file)
        if int(file[0][:12], 16) % GROUP == 0:
            groups.append(Group(file[0], []))
    return [group for group in groups if group.members]


def partition(groups: Sequence[Group], part: str) -> list[Group]:
    """Return the groups of a part such as "2/8"."""
    number, slash, count = part.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise RefusedError(f"part is {part!r}; it must have the form 2/8, which is the second of eight parts.")
    return list(groups[int(number) - 1 :: int(count)])


def overlapping(names: Sequence[str], current: Group) -> list[str]:
    """Return which earlier groups may contain a file of the current one."""
    starts = [name for name in names if name != FIRST]
    first = "" if current.name == FIRST else current.name
    low, high = bisect_right(starts, first), bisect_left(starts, current.members[-1][0])
    covering = starts[low - 1] if low else FIRST
    return [covering, *starts[low:high]]
