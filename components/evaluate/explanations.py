"""Explanation maps of a few test images, with a check whether the maps are reliable.

The maps are Grad-CAM, computed exactly: the graph returns the last feature map and its mean, the features, and the
float head beside the graph maps features to logits. The gradient of a logit with respect to the feature map is
therefore that of a few linear layers, which is computed here without torch. If there is no such head, or the feature
map has fewer than 3×3 cells, parts of the image are covered in turn, and the map shows how much the logit drops
(occlusion).

A map is informative only if it depends on what the model learned (Adebayo et al. 2018, "Sanity checks for saliency
maps"). Each map is therefore computed again with shuffled weights in the head, and with shuffled weights in the last
layers of the graph as well. The rank correlation with the original map should be low; a high one means that the map
shows what stands out in any image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from components.evaluate.overlay import overlay
from components.shared.inference import PRECISIONS, Model
from components.shared.statistics.bootstrapped_metrics import Ints, Predictions
from components.shared.statistics.intervals import Floats

Layer = tuple[Floats, Floats]
"""Weights and bias of a linear layer."""

KINDS = ("confident right", "confident wrong", "uncertain")
SMALLEST = 3
"""A feature map with fewer rows or columns is too coarse to localise anything."""
SHUFFLES = 5
"""How often the weights of the head are shuffled."""
LAST_SHARE = 1 / 3
"""Share of the graph's layers, counted from the last, whose weights are shuffled."""
MAX_CORRELATION = 0.5
"""Mean rank correlation from which maps count as independent of what the model learned."""
WEIGHT_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
"""Data types of weights."""
WINDOWS = 8
"""Grid cells in each direction for occlusion; each window covers two by two of them."""


@dataclass(frozen=True)
class Explanation:
    """The explanation of an image: its record in metrics.json, and the PNG."""

    record: dict[str, Any]
    png: bytes


def explanations(
    model: Model,
    bundle: Path,
    predictions: Predictions,
    image_ids: Sequence[str],
    views: Any,
    rows: Ints,
    each: int,
    seed: int,
) -> list[Explanation]:
    """Explain the test images that reveal most about the model: confident right, confident wrong and uncertain ones.

    each: number of images of each kind
    views: the data set's images, preprocessed for this model
    rows: position of each scored image in `views`
    """
    answers = Answers.of(predictions, model.about["threshold"])
    chosen = [(kind, n) for kind, numbers in choose_answers(answers, image_ids, each).items() for n in numbers]
    if not chosen:
        return []
    numbers = np.array([n for _, n in chosen])
    images, targets = answers.images[numbers], answers.targets[numbers]
    shown = views[rows[images]]
    method, maps, checks = _make_maps(model, bundle, shown, targets, seed)
    result = []
    for row, ((kind, _), image, target) in enumerate(zip(chosen, images.tolist(), targets.tolist(), strict=True)):
        label, called, probability = describe_prediction(predictions, model.classes, image, target)
        record = {
            "file": f"explanations/{row + 1:02}.png",
            "image_id": image_ids[image],
            "kind": kind,
            "label": label,
            "called": called,
            "probability": probability,
            "method": method,
            "sanity": {name: _mean_correlation(maps[row], others[:, row]) for name, others in checks.items()},
        }
        result.append(Explanation(record, overlay(shown[row], positive(maps[row]))))
    return result


def describe_prediction(
    predictions: Predictions, classes: Sequence[str], image: int, target: int
) -> tuple[str, str, float]:
    """Return label and predicted class of an image, and the probability of the predicted class."""
    if not predictions.multilabel:
        k = int(predictions.predicted[image])
        return classes[int(predictions.labels[image])], classes[k], float(predictions.probabilities[image, k])
    name, p = classes[target], float(predictions.probabilities[image, target])
    label, called = (
        name if values[image, target] else f"no {name}" for values in (predictions.labels, predictions.predicted)
    )
    return label, called, p if predictions.predicted[image, target] else 1 - p


@dataclass(frozen=True)
class Answers:
    """Answers that can be explained: one for each image, or one for each finding that is present or predicted."""

    images: Ints
    """Position of the image."""
    targets: Ints
    """Class or finding."""
    confidence: Floats
    right: NDArray[np.bool_]
    patients: Ints

    @staticmethod
    def of(predictions: Predictions, threshold: Any) -> Answers:
        """Return all answers to these images; `threshold` is the model's."""
        correct = predictions.labels == predictions.predicted
        if not predictions.multilabel:
            images = np.arange(len(predictions.labels))
            confidence = confidences(predictions.probabilities, threshold)
            return Answers(images, predictions.predicted, confidence, correct, predictions.patients)
        # A finding that is neither present nor predicted has nothing to show.
        images, targets = np.nonzero((predictions.labels == 1) | (predictions.predicted == 1))
        limits = np.broadcast_to(np.asarray(threshold, np.float64), predictions.labels.shape[1:])
        confidence = beyond_threshold(predictions.probabilities, limits)[images, targets]
        return Answers(images, targets, confidence, correct[images, targets], predictions.patients[images])


def choose_answers(answers: Answers, image_ids: Sequence[str], each: int) -> dict[str, list[int]]:
    """Choose up to `each` answers of each kind, all from different patients, independent of the order of the images.

    The most confident ones are taken from each class in turn, so that every class is represented.
    """
    confidence, targets = answers.confidence, answers.targets
    order = sorted(
        range(len(confidence)), key=lambda n: (-confidence[n], image_ids[int(answers.images[n])], targets[n])
    )
    patients: set[int] = set()

    def pick(numbers: list[int]) -> list[int]:
        picked: list[int] = []
        for n in numbers:
            patient = int(answers.patients[n])
            if len(picked) < each and patient not in patients:
                patients.add(patient)
                picked.append(n)
        return picked

    def in_turn(selected: NDArray[np.bool_]) -> list[int]:
        by_class = [[n for n in order if selected[n] and targets[n] == k] for k in np.unique(targets)]
        return [n for one_of_each in zip_longest(*by_class) for n in one_of_each if n is not None]

    wrong = pick(in_turn(~answers.right))  # first, because they are few and most informative
    return {KINDS[0]: pick(in_turn(answers.right)), KINDS[1]: wrong, KINDS[2]: pick(order[::-1])}


def confidences(probabilities: Floats, threshold: float | None) -> Floats:
    """Return the confidence of each answer, from 0 (undecided) to 1.

    With a threshold it is the distance from the threshold, otherwise the lead of the most probable class.
    """
    if threshold is not None:
        return beyond_threshold(probabilities[:, 1], np.float64(threshold))
    ranked = np.sort(probabilities, axis=1)
    return np.asarray(ranked[:, -1] - ranked[:, -2])


def beyond_threshold(probabilities: Floats, threshold: Any) -> Floats:
    """Return the distance of each probability from the threshold, as a share of the distance from there to 0 or 1."""
    above = probabilities - threshold
    return np.asarray(
        np.where(above >= 0, above / np.maximum(1 - threshold, 1e-12), -above / np.maximum(threshold, 1e-12))
    )


def read_head(bundle: Path) -> list[Layer]:
    """Return the layers of the bundle's float head, from features to logits; empty if it has none."""
    folder = bundle / "models" / "head"
    layers: list[Layer] = []
    while (folder / f"weight_{len(layers)}.npy").exists():
        weight, bias = (np.load(folder / f"{name}_{len(layers)}.npy") for name in ("weight", "bias"))
        layers.append((np.asarray(weight, np.float64), np.asarray(bias, np.float64)))
    return layers


def gradients(head: Sequence[Layer], features: Floats, targets: Ints) -> Floats:
    """Return the gradient of each image's target logit with respect to the features: linear layers and ReLU."""
    active, values = [], features.astype(np.float64)
    for weight, bias in head[:-1]:
        values = values @ weight.T + bias
        active.append(values > 0)
        values = np.maximum(values, 0)
    gradient = head[-1][0][targets]
    for (weight, _), mask in zip(reversed(head[:-1]), reversed(active), strict=True):
        gradient = (gradient * mask) @ weight
    return np.asarray(gradient)


def gradcam(head: Sequence[Layer], features: Floats, feature_map: Floats, targets: Ints) -> Floats:
    """Return Grad-CAM maps before the ReLU, [N, h, w]: positive where the image supports its target."""
    cells = feature_map.shape[2] * feature_map.shape[3]
    weights = gradients(head, features, targets) / cells  # the features are the mean of the map
    return np.asarray(np.einsum("nf,nfhw->nhw", weights, feature_map))


def positive(heat: Floats) -> Floats:
    """Return the positive part of a map, scaled to a maximum of 1."""
    kept = np.maximum(heat, 0)
    return np.asarray(kept / kept.max() if kept.max() > 0 else kept)


def shuffle_head(head: Sequence[Layer], seed: int) -> list[Layer]:
    """Return the head with the weights of each layer shuffled."""
    rng = np.random.default_rng(seed)
    return [(rng.permutation(weight.ravel()).reshape(weight.shape), bias) for weight, bias in head]


def shuffle_layers(graph: bytes, output: str, share: float, seed: int) -> tuple[bytes, int]:
    """Return an ONNX file with shuffled weights in the last layers before `output`, and the number of these layers.

    `share` is the part of the layers with weights, from the last one backwards; at least one is shuffled.
    """
    model, rng = onnx.load_from_string(graph), np.random.default_rng(seed)
    tensors = weights(model.graph, output)
    last = tensors[-max(1, round(share * len(tensors))) :]
    for weight in last:
        weight.raw_data = rng.permutation(numpy_helper.to_array(weight).ravel()).tobytes()
    return model.SerializeToString(), len(last)


def weights(graph: onnx.GraphProto, output: str) -> list[onnx.TensorProto]:
    """Return the matrices and kernels on which an output depends, from input to output; no biases and scales."""
    tensors = {
        each.name: each
        for each in graph.initializer
        if each.raw_data and each.data_type in WEIGHT_TYPES and sum(size > 1 for size in each.dims) > 1
    }
    needed = {output}
    for node in reversed(graph.node):  # ONNX requires that nodes come after those whose outputs they take
        if needed.intersection(node.output):
            needed.update(node.input)
    nodes = (node for node in graph.node if needed.intersection(node.output))
    return [*{name: tensors[name] for node in nodes for name in node.input if name in tensors}.values()]


def occlusion(logits: Callable[[NDArray[np.uint8]], Floats], view: NDArray[np.uint8], target: int) -> Floats:
    """Return the drop of the target logit where the image is covered with its mean gray: [WINDOWS, WINDOWS]."""
    edges = np.linspace(0, len(view), WINDOWS + 1).round().astype(int)
    gray = np.rint(view.mean(axis=(0, 1)))
    covered = np.repeat(view[None], (WINDOWS - 1) ** 2, axis=0)
    windows = [(down, across) for down in range(WINDOWS - 1) for across in range(WINDOWS - 1)]
    for copy, (down, across) in zip(covered, windows, strict=True):
        copy[edges[down] : edges[down + 2], edges[across] : edges[across + 2]] = gray
    lost = logits(view[None])[0, target] - logits(covered)[:, target]
    total, times = np.zeros((WINDOWS, WINDOWS)), np.zeros((WINDOWS, WINDOWS))
    for (down, across), value in zip(windows, lost, strict=True):
        total[down : down + 2, across : across + 2] += value
        times[down : down + 2, across : across + 2] += 1
    return total / times


def rank_correlation(one: Floats, other: Floats) -> float:
    """Return Spearman's rank correlation of two maps; 0 if one of them is constant."""
    ranks = [_ranks(each.ravel()) - (each.size - 1) / 2 for each in (one, other)]
    norm = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / norm if norm else 0.0


def _ranks(values: Floats) -> Floats:
    _, number, times = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(times) - (times + 1) / 2)[number])


def _mean_correlation(own: Floats, others: Floats) -> float:
    """Return the mean absolute rank correlation with several maps; an inverted map marks the same regions."""
    return round(float(np.mean([abs(rank_correlation(own, other)) for other in others])), 3)


def _make_maps(
    model: Model, bundle: Path, shown: NDArray[np.uint8], targets: Ints, seed: int
) -> tuple[str, Floats, dict[str, Floats]]:
    """Return the method, the maps [N, h, w], and the maps of each check [shuffles, N, h, w]."""
    head = read_head(bundle)
    graph, layers = shuffle_layers((bundle / PRECISIONS[model.precision]).read_bytes(), "feature_map", LAST_SHARE, seed)
    shuffled = Model(bundle, model.precision, graph=graph) if layers else None
    feature_maps = model.feature_maps(shown).astype(np.float64) if head else None
    checks: dict[str, Floats] = {}
    if feature_maps is None or min(feature_maps.shape[2:]) < SMALLEST:
        maps = _occlusion_maps(model, shown, targets)
        if shuffled:
            checks["layers"] = _occlusion_maps(shuffled, shown, targets)[None]
        return "occlusion", maps, checks
    features = model(shown).features.astype(np.float64)
    heads = [shuffle_head(head, seed + draw) for draw in range(SHUFFLES)]
    checks["head"] = np.stack([gradcam(other, features, feature_maps, targets) for other in heads])
    if shuffled:
        others, means = (part.astype(np.float64) for part in (shuffled.feature_maps(shown), shuffled(shown).features))
        checks["layers"] = np.stack([gradcam(other, means, others, targets) for other in heads])
    return "grad-cam", gradcam(head, features, feature_maps, targets), checks


def _occlusion_maps(model: Model, shown: NDArray[np.uint8], targets: Ints) -> Floats:
    def logits(views: NDArray[np.uint8]) -> Floats:
        return model(views).logits.astype(np.float64)

    pairs = zip(shown, targets, strict=True)
    return np.stack([occlusion(logits, view, int(target)) for view, target in pairs])


def verdict(explained: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return whether the maps depend on what the model learned: mean correlation by check, result and a sentence.

    `explained` is the list in metrics.json.
    """
    with_head = any("head" in entry["sanity"] for entry in explained)
    names = {
        "head": "shuffled weights in the head",
        "layers": f"shuffled weights in the {'head and the ' if with_head else ''}graph’s last layers",
    }
    means = {
        name: float(np.mean([entry["sanity"][name] for entry in explained]))
        for name in names
        if explained and all(name in entry["sanity"] for entry in explained)
    }
    passed = all(value < MAX_CORRELATION for value in means.values()) if means else None
    correlations = ", ".join(f"{value:.2f} with {names[name]}" for name, value in means.items())
    if passed is None:
        sentence = "The maps could not be checked, because the weights of the model cannot be read."
    elif passed:
        sentence = (
            "The maps depend on what the model learned: after shuffling weights they differ. Their mean rank "
            f"correlation with the original maps is {correlations}."
        )
    else:
        sentence = (
            "Do not rely on these maps: they hardly depend on what the model learned. After shuffling weights, their "
            f"mean rank correlation with the original maps is {correlations}; it should be below {MAX_CORRELATION:g}."
        )
    return {"likeness": means, "passed": passed, "sentence": sentence}
