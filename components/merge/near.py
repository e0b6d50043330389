"""Finds the images that look the same among all images of a data set, by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from components.shared.errors import RefusedError

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

BITS = 256
BANDS = 12
CHUNK = 1_000_000
"""How many pairs are compared at once."""
CROWD = 256
"""In a bucket with more looks than this, each is compared with a few first: mostly all of them look the same."""
STEPS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144)
FAR = 5_000
"""With how many looks of a bucket one look is compared at most."""


def groups(looks: Sequence[str], within: int = 23) -> Ints:
    """For each image the number of its group of images that look the same, or -1 where no other looks like it.

    looks: perceptual hashes of 64 hexadecimal digits, or "" for an image without
    within: two images look the same when at most this many of the 256 bits differ

    A chain of such pairs makes a group. Groups are numbered by their first images; which images are together does not
    depend on the order. Every pair is found, except among thousands of looks that are alike in a twelfth of their bits
    and do not look the same.
    """
    places, words = _words(looks)
    different, which = _distinct(words)
    label = _connected(different, within)[which]
    shared = np.bincount(label, minlength=1)[label] > 1
    result = np.full(len(looks), -1, dtype=np.int64)
    _, first, inverse = np.unique(label[shared], return_index=True, return_inverse=True)
    result[places[shared]] = np.argsort(np.argsort(first))[inverse]
    return result


def named(numbers: Ints, image_ids: Sequence[str]) -> list[str]:
    """For each image the least image id in its group, or "" where it is in none."""
    least: dict[int, str] = {}
    for number, image_id in zip(numbers.tolist(), image_ids, strict=True):
        least[number] = min(image_id, least.get(number, image_id))
    return [least[number] if number >= 0 else "" for number in numbers.tolist()]


def _words(looks: Sequence[str]) -> tuple[Ints, Words]:
    """The places of the images that have a look, and their looks, 4 words each."""
    sizes = np.fromiter(map(len, looks), dtype=np.int64, count=len(looks))
    wrong = np.flatnonzero((sizes > 0) & (sizes != BITS // 4))
    if wrong.size:
        raise RefusedError(
            f"A perceptual hash has {sizes[wrong[0]]} digits, and must have {BITS // 4}: the portions were made by "
            "different versions. Ingest all of them with this one."
        )
    data = np.frombuffer(bytes.fromhex("".join(looks)), dtype=">u8")
    return np.flatnonzero(sizes), data.astype(np.uint64).reshape(-1, BITS // 64)


def _distinct(words: Words) -> tuple[Words, Ints]:
    """The different looks in order, and which of them each image has."""
    order = np.lexsort(words.T)
    ordered = words[order]
    new = np.ones(len(words), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    which = np.empty(len(words), dtype=np.int64)
    which[order] = np.cumsum(new) - 1
    return ordered[new], which


def _connected(words: Words, within: int) -> Ints:
    """A label for each of these looks, the same for those that a chain of pairs connects.

    The bits are dealt to bands. Two looks with two or more different bits in every band differ in more than `within`
    bits altogether; so only those are compared that differ in one bit at most of some band.
    """
    labels = np.arange(len(words), dtype=np.int64)
    bands = max(BANDS, within // 2 + 1)
    for first in range(bands):
        bits = range(first, BITS, bands)
        keys = _keys(words, bits)
        order = np.argsort(keys, kind="stable")
        keys, starts, sizes = np.unique(keys[order], return_index=True, return_counts=True)
        for step in STEPS:
            labels = _join(words, labels, *_in_a_row(order, starts, sizes, step), within)
        for flip in (0, *(1 << place for place in range(len(bits)))):
            left, right = _partners(keys, sizes, flip)
            left, right = _not_yet_one(labels[order], starts, left, right)
            for one, other in _pairs(starts, sizes, left, right):
                labels = _join(words, labels, order[one], order[other], within)
    return labels


def _keys(words: Words, bits: Sequence[int]) -> NDArray[np.uint32]:
    """These bits of each look as a number."""
    keys = np.zeros(len(words), dtype=np.uint64)
    for place, bit in enumerate(bits):
        keys |= ((words[:, bit // 64] >> np.uint64(63 - bit % 64)) & np.uint64(1)) << np.uint64(place)
    return keys.astype(np.uint32)


def _in_a_row(order: Ints, starts: Ints, sizes: Ints, step: int) -> tuple[Ints, Ints]:
    """Each look of a crowded bucket with the one that comes so many places later."""
    crowded = sizes > CROWD
    place = _runs(starts[crowded], sizes[crowded] - step)
    return order[place], order[place + step]


def _partners(keys: NDArray[np.uint32], sizes: Ints, flip: int) -> tuple[Ints, Ints]:
    """The buckets whose keys differ in that one bit, each pair once; with flip 0 each bucket and itself."""
    if flip == 0:
        several = np.flatnonzero(sizes > 1)
        return several, several
    without = np.flatnonzero((keys & np.uint32(flip)) == 0)
    wanted = keys[without] | np.uint32(flip)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    there = keys[place] == wanted
    return without[there], place[there]


def _not_yet_one(labels: Ints, starts: Ints, left: Ints, right: Ints) -> tuple[Ints, Ints]:
    """The pairs of buckets without those whose looks are all connected already."""
    if not len(labels):
        return left, right
    lowest, highest = np.minimum.reduceat(labels, starts), np.maximum.reduceat(labels, starts)
    needed = np.minimum(lowest[left], lowest[right]) != np.maximum(highest[left], highest[right])
    return left[needed], right[needed]


def _pairs(starts: Ints, sizes: Ints, left: Ints, right: Ints) -> Iterator[tuple[Ints, Ints]]:
    """The places of the looks to compare, a chunk at a time: all of each left bucket with all of its right one."""
    one = _runs(starts[left], sizes[left])
    bucket = np.repeat(np.arange(len(left)), sizes[left])
    own = left[bucket] == right[bucket]
    begin = np.where(own, one + 1, starts[right][bucket])
    count = np.minimum((starts + sizes)[right][bucket] - begin, FAR)
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(CHUNK, total[-1] if len(total) else 0, CHUNK))
    for part in np.split(np.arange(len(one)), cuts):
        yield np.repeat(one[part], count[part]), _runs(begin[part], count[part])


def _runs(starts: Ints, sizes: Ints) -> Ints:
    """The numbers from each start on, as many as its size says."""
    before = np.cumsum(sizes) - sizes
    return np.asarray(np.arange(sizes.sum()) + np.repeat(starts - before, sizes), dtype=np.int64)


def _join(words: Words, labels: Ints, one: Ints, other: Ints, within: int) -> Ints:
    """The labels when all of these pairs that look the same are connected."""
    apart = labels[one] != labels[other]
    one, other = one[apart], other[apart]
    differing = np.bitwise_count(words[one, 0] ^ words[other, 0]).astype(np.int64)
    for word in range(1, BITS // 64):  # most pairs are out after the first word
        near = differing <= within
        one, other = one[near], other[near]
        differing = differing[near] + np.bitwise_count(words[one, word] ^ words[other, word])
    near = differing <= within
    one, other = one[near], other[near]
    while len(one):
        low, high = np.sort(np.stack([labels[one], labels[other]]), axis=0)
        parent = np.arange(len(labels))
        np.minimum.at(parent, high, low)
        while (parent[parent] != parent).any():
            parent = parent[parent]
        labels = parent[labels]
        apart = labels[one] != labels[other]
        one, other = one[apart], other[apart]
    return labels
