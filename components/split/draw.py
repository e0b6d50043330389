"""The draw: new patients go where what they have is most wanted, the rarest first (iterative stratification).

After Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data" (2011), by patients instead of
images, with hashes in the place of chance, and counting those who have a place already.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.shared.contracts import digest
from components.split.columns import TEST, TRAIN, VAL, Codes
from components.split.strata import Features


def lots(ids: pa.Array, seed: int) -> Codes:
    """Each patient's lot: their rank by a hash of seed and id, and so the same in whatever order they come."""
    return np.argsort(np.argsort([digest(f"{seed} {patient}".encode()) for patient in ids.to_pylist()]))


def room_on_sides(new: int, held: Sequence[int], fractions: tuple[float, float], test_is_closed: bool) -> list[int]:
    """How many of the new patients go to test, val and train, so that the shares of all become those asked for."""
    everyone, room = new + sum(held), [0, 0, 0]
    for side, fraction in zip((TEST, VAL), fractions, strict=True):
        wanted = max(1, round(fraction * everyone)) - held[side]
        room[side] = 0 if side == TEST and test_is_closed else min(max(0, wanted), new - sum(room))
    room[TRAIN] = new - sum(room)
    return room


def room_in_folds(new: int, held: Sequence[int]) -> list[int]:
    """How many of the new patients go to each fold, so that the folds become as even as they can."""
    room = [0] * len(held)
    fullness = [(count, fold) for fold, count in enumerate(held)]
    heapq.heapify(fullness)
    for _ in range(new):
        count, fold = fullness[0]
        room[fold] += 1
        heapq.heapreplace(fullness, (count + 1, fold))
    return room


def draw(features: Features, members: NDArray[np.bool_], place: Codes, room: Sequence[int], lot: Codes) -> Codes:
    """The place of every member: those who have one keep it (`place` is not -1), and the others fill the room there is.

    A place wants each feature in the share it has of all patients. A patient goes where the sum of the squared
    distances from that, each relative to what is wanted, falls most.
    """
    place = place.copy()
    order, of_each = _rarest_first(features, members & (place < 0), lot)
    gain, step = _wishes(features, members, place, room)
    left = list(room)
    for patient in order:
        mine = of_each[patient]
        best, to = -np.inf, -1
        for side, free in enumerate(left):
            if free:
                total = sum([gain[feature][side] for feature in mine])
                if total > best:
                    best, to = total, side
        left[to] -= 1
        place[patient] = to
        for feature in mine:
            gain[feature][to] -= step[feature][to]
    return place


def _wishes(
    features: Features, members: NDArray[np.bool_], place: Codes, room: Sequence[int]
) -> tuple[list[list[float]], list[list[float]]]:
    """What one more is worth, by feature and place, and how much less the next one; the last feature is all."""
    sides, number = len(room), len(features.weight) + 1
    who = np.concatenate([features.who, np.arange(len(members))])
    what = np.concatenate([features.what, np.full(len(members), number - 1)])
    weight = np.append(features.weight, features.weight.max(initial=0))[:, None]
    what, at = what[members[who]], place[who[members[who]]]
    held = np.bincount((what * (sides + 1) + at + 1), minlength=number * (sides + 1)).reshape(number, -1)[:, 1:]
    open_ = np.asarray(room) > 0
    size = np.where(open_, held[-1] + room, 0)
    share = size / max(1, size.sum())
    spread = np.bincount(what, minlength=number) - held[:, ~open_].sum(axis=1)  # over the places that take more
    wanted = share * spread[:, None]
    at_least = (spread >= open_.sum()) & (spread > 0)
    wanted = np.where(at_least[:, None], np.maximum(wanted, 1), wanted)  # one each, where there are enough
    scale = np.where(wanted > 0, weight / np.maximum(wanted, 1e-9), 0)
    return (scale * (2 * (wanted - held) - 1)).tolist(), (2 * scale).tolist()


def _rarest_first(features: Features, new: NDArray[np.bool_], lot: Codes) -> tuple[list[int], dict[int, list[int]]]:
    """The new patients in the order of the draw, and the features of each.

    First come all with the finding that is left in the fewest, then those with the next, and so on.
    """
    chosen = new[features.who]
    who, what = features.who[chosen], features.what[chosen]
    everyone = len(features.weight)
    patients = np.flatnonzero(new)[np.argsort(lot[new])]
    bounds = [np.searchsorted(who, patients, side=side).tolist() for side in ("left", "right")]
    listed = what.tolist()
    of_each = {
        patient: [*listed[start:end], everyone] for patient, start, end in zip(patients.tolist(), *bounds, strict=True)
    }
    having: dict[int, list[int]] = defaultdict(list)
    for patient, mine in of_each.items():
        for feature in mine:
            having[feature].append(patient)
    leading = [*np.flatnonzero(features.weight == features.weight.max(initial=0)).tolist(), everyone]
    left = {feature: len(having[feature]) for feature in having}
    order: dict[int, None] = {}
    for _ in leading:
        rarest = min((feature for feature in leading if left.get(feature)), key=lambda f: (left[f], f), default=None)
        if rarest is None:
            break
        for patient in [patient for patient in having[rarest] if patient not in order]:
            order[patient] = None
            for feature in of_each[patient]:
                left[feature] -= 1
    return list(order), of_each
