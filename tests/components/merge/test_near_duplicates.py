"""Groups of images that look the same are those of a comparison of all with all, in any order and at any size."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.merge.near_duplicates import group_names, group_near_duplicates

Bits = NDArray[np.bool_]


def text(bits: Bits) -> str:
    return np.packbits(bits).tobytes().hex()


def flipped(bits: Bits, places: list[int]) -> Bits:
    changed = bits.copy()
    changed[places] ^= True
    return changed


def family(seed: int, flips: list[int]) -> list[str]:
    """A look, and others with so many bits of it changed."""
    rng = np.random.default_rng(seed)
    first = rng.random(256) < 0.5
    return [text(flipped(first, list(rng.choice(256, number, replace=False)))) for number in flips]


def by_hand(looks: list[str], within: int) -> list[int]:
    """The same by comparing every look with every other."""
    number = [-1] * len(looks)
    values = [int(look, 16) if look else None for look in looks]
    for place, value in enumerate(values):
        waiting = [place] if value is not None and number[place] < 0 else []
        while waiting:
            one = values[waiting.pop()]
            assert one is not None
            for other, candidate in enumerate(values):
                if candidate is not None and number[other] < 0 and (one ^ candidate).bit_count() <= within:
                    number[other] = place
                    waiting.append(other)
    sizes = {name: number.count(name) for name in number}
    names = list(dict.fromkeys(name for name in number if name >= 0 and sizes[name] > 1))
    return [names.index(name) if name in names else -1 for name in number]


LOOKS = st.lists(
    st.one_of(
        st.just([""]),
        st.builds(family, st.integers(0, 5), st.lists(st.integers(0, 34), min_size=1, max_size=6)),
    ),
    max_size=8,
).map(lambda families: [look for members in families for look in members])


@pytest.mark.slow
@given(LOOKS, st.sampled_from([0, 1, 7, 22, 23, 24, 31]), st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_groups_are_those_of_comparing_all_with_all_in_any_order(
    looks: list[str], within: int, random: object
) -> None:
    random.shuffle(looks)  # type: ignore[attr-defined]
    assert group_near_duplicates(looks, within).tolist() == by_hand(looks, within)


@pytest.mark.parametrize("seed", range(6))
def test_a_pair_at_the_limit_is_found_wherever_its_bits_differ(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.random(256) < 0.5
    spread = list(range(seed, 256, 11))[:23]  # as even over the bands as can be
    pairs = [(first, flipped(first, spread)), *((b, flipped(b, list(rng.choice(256, 23, replace=False)))) for b in
             rng.random((50, 256)) < 0.5)]  # fmt: skip
    looks = [text(bits) for pair in pairs for bits in pair]
    assert group_near_duplicates(looks).tolist() == [place // 2 for place in range(len(looks))]
    further = [text(pairs[0][0]), text(flipped(pairs[0][1], [next(iter(set(range(256)) - set(spread)))]))]
    assert group_near_duplicates(further).tolist() == [-1, -1]


def test_a_chain_of_pairs_is_one_group() -> None:
    first = np.zeros(256, dtype=bool)
    chain = [text(flipped(first, list(range(20 * number)))) for number in range(5)]
    assert group_near_duplicates(chain).tolist() == [0] * 5
    assert group_near_duplicates([chain[0], chain[2], chain[4]]).tolist() == [-1] * 3


def test_a_group_is_named_by_its_least_image_id() -> None:
    assert group_names(np.array([0, -1, 1, 0, 1]), ["d", "a", "c", "b", "e"]) == ["b", "", "c", "b", "c"]


def test_images_without_a_look_are_in_no_group() -> None:
    assert group_near_duplicates(["", "", ""]).tolist() == [-1] * 3
    assert group_near_duplicates([]).tolist() == []


def test_a_look_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 16 digits; it must have 64\. .* ingest all of them"):
        group_near_duplicates(["0" * 64, "0" * 16])


def test_thousands_of_different_looks_that_are_nearly_one_are_one_group() -> None:
    rng = np.random.default_rng(4)
    first = rng.random(256) < 0.5
    looks = [text(first ^ (rng.random(256) < 0.02)) for _ in range(3000)]
    apart = [text(bits) for bits in rng.random((50, 256)) < 0.5]
    assert group_near_duplicates([*looks, *apart]).tolist() == [0] * 3000 + [-1] * 50


def test_a_hundred_thousand_equal_looks_take_no_longer_than_reading_them() -> None:
    looks = [family(1, [0])[0]] * 100_000
    begun = time.process_time()
    assert group_near_duplicates(looks).tolist() == [0] * 100_000
    assert time.process_time() - begun < 2
