"""Which files share a shard depends on their names' hashes, and on nothing else."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.ingest.shard_groups import FIRST, GROUP, Group, group_files, overlapping, partition
from components.shared.contracts import digest
from components.shared.storage.image_source import Entry

Files = list[tuple[str, Entry]]


def files(*numbers: int) -> Files:
    return [(digest(f"{number}".encode())[:32], Entry(f"A/{number}.png", 1, 1)) for number in numbers]


def test_groups_hold_every_file_once_and_are_of_the_size_meant() -> None:
    found = group_files(files(*range(20_000)))
    assert sorted(member for each in found for member in each.members) == sorted(files(*range(20_000)))
    assert 0.8 * GROUP < 20_000 / len(found) < 1.2 * GROUP


@given(st.lists(st.integers(0, 3000), unique=True, max_size=400), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(numbers: list[int], chance: random.Random) -> None:
    mixed = list(numbers)
    chance.shuffle(mixed)
    assert group_files(files(*mixed)) == group_files(files(*numbers))


@pytest.mark.slow
def test_a_new_file_changes_the_group_it_falls_into_and_no_other() -> None:
    before = {each.name: each.members for each in group_files(files(*range(3000)))}
    for new in range(3000, 3100):
        after = {each.name: each.members for each in group_files(files(*range(3000), new))}
        changed = {name for name in after if after[name] != before.get(name)}
        assert len(changed) <= 2, "one, or two where the new file parts a group"


@given(st.integers(1, 9))
def test_parts_share_the_groups_and_each_has_its_own(count: int) -> None:
    found = group_files(files(*range(2000)))
    parts = [partition(found, f"{number}/{count}") for number in range(1, count + 1)]
    assert sorted(each.name for part in parts for each in part) == sorted(each.name for each in found)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("part", ["", "1", "0/3", "4/3", "a/b", "1/0", "-1/2", "1/2/3", "1.0/2"])
def test_a_part_that_is_none_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="must have the form 2/8"):
        partition([], part)


@given(st.sets(st.integers(0, 1500), min_size=1), st.sets(st.integers(0, 1500)), st.sets(st.integers(0, 1500)))
def test_earlier_groups_that_may_hold_a_file_are_found_however_groups_parted_and_joined(
    now: set[int], gone: set[int], new: set[int]
) -> None:
    earlier = group_files(files(*(now | gone) - new))
    where = {file: each.name for each in earlier for file, _ in each.members}
    names = sorted(each.name for each in earlier)
    for each in group_files(files(*now)):
        wanted = {where[file] for file, _ in each.members if file in where}
        assert wanted <= set(overlapping(names, each))


def test_where_nothing_was_before_the_first_group_is_asked_for() -> None:
    assert overlapping([], Group("abc", files(1))) == [FIRST]
