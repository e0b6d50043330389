"""Assign new patients to splits or folds by iterative stratification.

See Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data" (2011). Here patients are assigned
instead of images, hashes replace random numbers, and patients who already have an assignment count.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.shared.contracts import digest
from components.split.codes import TEST, TRAIN, VAL, Codes
from components.split.strata import Features


def draw_ranks(ids: pa.Array, seed: int) -> Codes:
    """Return each patient's rank by a hash of seed and id."""
    return np.argsort(np.argsort([digest(f"{seed} {patient}".encode()) for patient in ids.to_pylist()]))


def places_per_split(
    new: int, assigned: Sequence[int], fractions: tuple[float, float], test_is_fixed: bool
) -> list[int]:
    """Return how many new patients each split needs to reach the fractions."""
    total, places = new + sum(assigned), [0, 0, 0]
    for target, fraction in zip((TEST, VAL), fractions, strict=True):
        missing = max(1, round(fraction * total)) - assigned[target]
        places[target] = 0 if target == TEST and test_is_fixed else min(max(0, missing), new - sum(places))
    places[TRAIN] = new - sum(places)
    return places


def places_per_fold(new: int, assigned: Sequence[int]) -> list[int]:
    """Return how many new patients each fold needs to become equally large."""
    places = [0] * len(assigned)
    sizes = [(count, fold) for fold, count in enumerate(assigned)]
    heapq.heapify(sizes)
    for _ in range(new):
        count, fold = sizes[0]
        places[fold] += 1
        heapq.heapreplace(sizes, (count + 1, fold))
    return places


def draw(
    features: Features, members: NDArray[np.bool_], assignment: Codes, places: Sequence[int], rank: Codes
) -> Codes:
    """Assign members without an assignment (-1) to targets that have `places`.

    Each target should have each feature in proportion to its share of all patients. A patient is assigned to the target
    where this most reduces the sum of squared deviations, each relative to the desired count.
    """
    assignment = assignment.copy()
    order, features_of = _rarest_first(features, members & (assignment < 0), rank)
    gain, step = _gains(features, members, assignment, places)
    remaining = list(places)
    for patient in order:
        own_features = features_of[patient]
        best_gain, best_target = -np.inf, -1
        for target, free in enumerate(remaining):
            if free:
                total = sum([gain[feature][target] for feature in own_features])
                if total > best_gain:
                    best_gain, best_target = total, target
        remaining[best_target] -= 1
        assignment[patient] = best_target
        for feature in own_features:
            gain[feature][best_target] -= step[feature][best_target]
    return assignment


def _gains(
    features: Features, members: NDArray[np.bool_], assignment: Codes, places: Sequence[int]
) -> tuple[list[list[float]], list[list[float]]]:
    """Return the gain of one more patient per feature and target, and its decrease.

    The last feature is one that all patients have.
    """
    targets, feature_count = len(places), len(features.weight) + 1
    patient_index = np.concatenate([features.patient_index, np.arange(len(members))])
    feature_index = np.concatenate([features.feature_index, np.full(len(members), feature_count - 1)])
    weight = np.append(features.weight, features.weight.max(initial=0))[:, None]
    is_member = members[patient_index]
    feature_index, assigned_to = feature_index[is_member], assignment[patient_index[is_member]]
    cells = np.bincount(feature_index * (targets + 1) + assigned_to + 1, minlength=feature_count * (targets + 1))
    assigned = cells.reshape(feature_count, -1)[:, 1:]  # without the patients who have no assignment
    has_places = np.asarray(places) > 0
    final_size = np.where(has_places, assigned[-1] + places, 0)
    share = final_size / max(1, final_size.sum())
    # Patients to distribute over the targets that have places.
    open_patients = np.bincount(feature_index, minlength=feature_count) - assigned[:, ~has_places].sum(axis=1)
    desired = share * open_patients[:, None]
    enough_for_all = (open_patients >= has_places.sum()) & (open_patients > 0)
    desired = np.where(enough_for_all[:, None], np.maximum(desired, 1), desired)  # one per target if there are enough
    scale = np.where(desired > 0, weight / np.maximum(desired, 1e-9), 0)
    return (scale * (2 * (desired - assigned) - 1)).tolist(), (2 * scale).tolist()


def _rarest_first(features: Features, new: NDArray[np.bool_], rank: Codes) -> tuple[list[int], dict[int, list[int]]]:
    """Return the new patients in the order of assignment, and the features of each.

    The order starts with all patients who have the rarest finding among those remaining, and so on.
    """
    is_new = new[features.patient_index]
    patient_index, feature_index = features.patient_index[is_new], features.feature_index[is_new]
    common_feature = len(features.weight)
    patients = np.flatnonzero(new)[np.argsort(rank[new])]
    bounds = [np.searchsorted(patient_index, patients, side=side).tolist() for side in ("left", "right")]
    feature_list = feature_index.tolist()
    features_of = {
        patient: [*feature_list[start:end], common_feature]
        for patient, start, end in zip(patients.tolist(), *bounds, strict=True)
    }
    patients_with: dict[int, list[int]] = defaultdict(list)
    for patient, own_features in features_of.items():
        for feature in own_features:
            patients_with[feature].append(patient)
    primary_features = [*np.flatnonzero(features.weight == features.weight.max(initial=0)).tolist(), common_feature]
    remaining = {feature: len(patients_with[feature]) for feature in patients_with}
    order: dict[int, None] = {}
    for _ in primary_features:
        candidates = [feature for feature in primary_features if remaining.get(feature)]
        if not candidates:
            break
        rarest = min(candidates, key=lambda feature: (remaining[feature], feature))
        for patient in [patient for patient in patients_with[rarest] if patient not in order]:
            order[patient] = None
            for feature in features_of[patient]:
                remaining[feature] -= 1
    return list(order), features_of
