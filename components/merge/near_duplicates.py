"""Find near duplicates among all images of a data set by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from components.shared.errors import RefusedError

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

BITS = 256
BANDS = 12
MAX_PAIRS = 1_000_000
"""Maximum number of pairs compared at once."""
CROWDED_BUCKET = 256
"""In a larger bucket each hash is first compared with a few others: usually all of them are near duplicates."""
STEPS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144)
MAX_COMPARISONS = 5_000
"""Maximum number of hashes in a bucket with which one hash is compared."""


def group_near_duplicates(hashes: Sequence[str], max_bits: int = 23) -> Ints:
    """Return the number of each image's group of near duplicates, or -1.

    hashes: perceptual hashes of 64 hexadecimal digits, or "" for an image without one
    max_bits: two images are near duplicates if at most this many of the 256 bits differ

    Chains of such pairs form a group. Groups are numbered by their first image; their members do not depend on the
    order of images. All pairs are found, except among thousands of different hashes that share a twelfth of their bits.
    """
    positions, words = _words(hashes)
    different, hash_of_image = _distinct(words)
    labels = _connected(different, max_bits)[hash_of_image]
    shared = np.bincount(labels, minlength=1)[labels] > 1
    result = np.full(len(hashes), -1, dtype=np.int64)
    _, first, inverse = np.unique(labels[shared], return_index=True, return_inverse=True)
    result[positions[shared]] = np.argsort(np.argsort(first))[inverse]
    return result


def group_names(groups_: Ints, image_ids: Sequence[str]) -> list[str]:
    """Return the smallest image id in each image's group, or "" if it is in none."""
    first_id: dict[int, str] = {}
    for number, image_id in zip(groups_.tolist(), image_ids, strict=True):
        first_id[number] = min(image_id, first_id.get(number, image_id))
    return [first_id[number] if number >= 0 else "" for number in groups_.tolist()]


def _words(hashes: Sequence[str]) -> tuple[Ints, Words]:
    """Return the positions of images with a hash, and their hashes of 4 words each."""
    sizes = np.fromiter(map(len, hashes), dtype=np.int64, count=len(hashes))
    invalid = np.flatnonzero((sizes > 0) & (sizes != BITS // 4))
    if invalid.size:
        raise RefusedError(
            f"A perceptual hash has {sizes[invalid[0]]} digits; it must have {BITS // 4}. The portions were made by "
            "different versions of medloop; ingest all of them with this one."
        )
    data = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=">u8")
    return np.flatnonzero(sizes), data.astype(np.uint64).reshape(-1, BITS // 64)


def _distinct(words: Words) -> tuple[Words, Ints]:
    """Return the sorted distinct hashes, and the position of each image's hash."""
    order = np.lexsort(words.T)
    ordered = words[order]
    new = np.ones(len(words), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    hash_of_image = np.empty(len(words), dtype=np.int64)
    hash_of_image[order] = np.cumsum(new) - 1
    return ordered[new], hash_of_image


def _connected(words: Words, max_bits: int) -> Ints:
    """Return a label for each hash, equal for hashes that a chain of pairs connects.

    The bits are distributed over bands. Hashes that differ in two or more bits of every band differ in more than
    `max_bits` bits in total, so only hashes that differ in at most one bit of some band are compared.
    """
    labels = np.arange(len(words), dtype=np.int64)
    bands = max(BANDS, max_bits // 2 + 1)
    for first in range(bands):
        bits = range(first, BITS, bands)
        keys = _keys(words, bits)
        order = np.argsort(keys, kind="stable")
        keys, starts, sizes = np.unique(keys[order], return_index=True, return_counts=True)
        for step in STEPS:
            labels = _join(words, labels, *_at_distance(order, starts, sizes, step), max_bits)
        for flip in (0, *(1 << position for position in range(len(bits)))):
            left, right = _partners(keys, sizes, flip)
            left, right = _unconnected(labels[order], starts, left, right)
            for left_item, right_item in _pairs(starts, sizes, left, right):
                labels = _join(words, labels, order[left_item], order[right_item], max_bits)
    return labels


def _keys(words: Words, bits: Sequence[int]) -> NDArray[np.uint32]:
    keys = np.zeros(len(words), dtype=np.uint64)
    for position, bit in enumerate(bits):
        keys |= ((words[:, bit // 64] >> np.uint64(63 - bit % 64)) & np.uint64(1)) << np.uint64(position)
    return keys.astype(np.uint32)


def _at_distance(order: Ints, starts: Ints, sizes: Ints, step: int) -> tuple[Ints, Ints]:
    """Pair each hash of a crowded bucket with the one `step` positions later."""
    crowded = sizes > CROWDED_BUCKET
    position = _runs(starts[crowded], sizes[crowded] - step)
    return order[position], order[position + step]


def _partners(keys: NDArray[np.uint32], sizes: Ints, flip: int) -> tuple[Ints, Ints]:
    """Pair the buckets whose keys differ in the bit `flip`; 0 pairs each with itself."""
    if flip == 0:
        several = np.flatnonzero(sizes > 1)
        return several, several
    without = np.flatnonzero((keys & np.uint32(flip)) == 0)
    partner = keys[without] | np.uint32(flip)
    position = np.minimum(np.searchsorted(keys, partner), len(keys) - 1)
    exists = keys[position] == partner
    return without[exists], position[exists]


def _unconnected(labels: Ints, starts: Ints, left: Ints, right: Ints) -> tuple[Ints, Ints]:
    """Return the pairs of buckets whose hashes are not all connected yet."""
    if not len(labels):
        return left, right
    lowest, highest = np.minimum.reduceat(labels, starts), np.maximum.reduceat(labels, starts)
    needed = np.minimum(lowest[left], lowest[right]) != np.maximum(highest[left], highest[right])
    return left[needed], right[needed]


def _pairs(starts: Ints, sizes: Ints, left: Ints, right: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield, in chunks, the positions of all hashes to compare in pairs of buckets."""
    left_item = _runs(starts[left], sizes[left])
    bucket = np.repeat(np.arange(len(left)), sizes[left])
    own = left[bucket] == right[bucket]
    first_partner = np.where(own, left_item + 1, starts[right][bucket])
    count = np.minimum((starts + sizes)[right][bucket] - first_partner, MAX_COMPARISONS)
    total = np.cumsum(count)
    cuts = np.searchsorted(total, np.arange(MAX_PAIRS, total[-1] if len(total) else 0, MAX_PAIRS))
    for part in np.split(np.arange(len(left_item)), cuts):
        yield np.repeat(left_item[part], count[part]), _runs(first_partner[part], count[part])


def _runs(starts: Ints, sizes: Ints) -> Ints:
    """Return for each start as many consecutive numbers as its size."""
    before = np.cumsum(sizes) - sizes
    return np.asarray(np.arange(sizes.sum()) + np.repeat(starts - before, sizes), dtype=np.int64)


def _join(words: Words, labels: Ints, left_item: Ints, right_item: Ints, max_bits: int) -> Ints:
    """Connect the labels of those of these pairs that are near duplicates."""
    unconnected = labels[left_item] != labels[right_item]
    left_item, right_item = left_item[unconnected], right_item[unconnected]
    differing = np.bitwise_count(words[left_item, 0] ^ words[right_item, 0]).astype(np.int64)
    for word in range(1, BITS // 64):  # the first word rules out most pairs
        near = differing <= max_bits
        left_item, right_item = left_item[near], right_item[near]
        differing = differing[near] + np.bitwise_count(words[left_item, word] ^ words[right_item, word])
    near = differing <= max_bits
    left_item, right_item = left_item[near], right_item[near]
    while len(left_item):
        low, high = np.sort(np.stack([labels[left_item], labels[right_item]]), axis=0)
        parent = np.arange(len(labels))
        np.minimum.at(parent, high, low)
        while (parent[parent] != parent).any():
            parent = parent[parent]
        labels = parent[labels]
        unconnected = labels[left_item] != labels[right_item]
        left_item, right_item = left_item[unconnected], right_item[unconnected]
    return labels
