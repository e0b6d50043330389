"""What the model looked at: for a few test images the parts that spoke for its answer, and whether such maps can be
believed.

The map is Grad-CAM, exactly: the graph gives the last feature map and its mean, the features; the float head beside the
graph gives the logits of them. So the gradient of a logit by the feature map is that of a few linear layers, which is
written down here, and no torch is needed. Where there is no such head, or a map of fewer than 3×3 cells, parts of the
image are covered one after another, and the map is how much each of them takes from the logit (occlusion).

A map is worth something only if it depends on what was learned (Adebayo and others, 2018, "Sanity checks for saliency
maps"). So each is made again with a head whose weights are in another order, and with a graph whose last layers' are,
too. The rank correlation of both maps should be low; where it is high, the map shows what stands out in any image.
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
from components.shared.statistics.intervals import Floats
from components.shared.statistics.metrics import Ints, Scored

Layer = tuple[Floats, Floats]
"""Weights and bias of a linear layer."""

KINDS = ("confident right", "confident wrong", "uncertain")
SMALLEST = 3
"""A feature map of fewer cells a side shows no place."""
DRAWS = 5
"""In how many other orders the head's weights are tried."""
LAST = 1 / 3
"""Which share of the graph's layers, from the last one backwards, loses what it learned."""
SIMILAR = 0.5
"""From this mean rank correlation on, a map counts as one that does not depend on what the model learned."""
NUMBERS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
"""The types that weights have."""
WINDOWS = 8
"""Occlusion covers so many places in each direction; each window is two of them wide."""


@dataclass(frozen=True)
class Explained:
    """An image with its explanation: what metrics.json says of it, and the picture."""

    record: dict[str, Any]
    png: bytes


def explanations(
    model: Model, bundle: Path, scored: Scored, image_ids: Sequence[str], views: Any, rows: Ints, each: int, seed: int
) -> list[Explained]:
    """The test images that say most about the model, each with its map, from the surest right ones to the least sure.

    `each` says how many of a kind.
    `views` are those of the data set as this model sees them, `rows` the places of the scored images among them.
    """
    candidates = Candidates.of(scored, model.about["threshold"])
    chosen = [(kind, at) for kind, several in choose(candidates, image_ids, each).items() for at in several]
    if not chosen:
        return []
    of_each = np.array([at for _, at in chosen])
    shown, targets = views[rows[candidates.places[of_each]]], candidates.targets[of_each]
    method, maps, checks = _mapped(model, bundle, shown, targets, seed)
    found = []
    for number, (kind, at) in enumerate(chosen):
        place, target = int(candidates.places[at]), int(candidates.targets[at])
        label, called, probability = said(scored, model.classes, place, target)
        record = {
            "file": f"explanations/{number + 1:02}.png",
            "image_id": image_ids[place],
            "kind": kind,
            "label": label,
            "called": called,
            "probability": probability,
            "method": method,
            "sanity": {name: _mean_likeness(maps[number], others[:, number]) for name, others in checks.items()},
        }
        found.append(Explained(record, overlay(shown[number], positive(maps[number]))))
    return found


def said(scored: Scored, classes: Sequence[str], place: int, target: int) -> tuple[str, str, float]:
    """What is true of an image, what it was called, and how likely that was to the model."""
    if scored.labels.ndim == 1:
        called = int(scored.predicted[place])
        return classes[int(scored.labels[place])], classes[called], float(scored.probabilities[place, called])
    there, found = (bool(each[place, target]) for each in (scored.labels, scored.predicted))
    name, p = classes[target], float(scored.probabilities[place, target])
    return name if there else f"no {name}", name if found else f"no {name}", p if found else 1 - p


@dataclass(frozen=True)
class Candidates:
    """The answers that could be explained: one an image, or one for each finding that it has or was said to have."""

    places: Ints
    """Of which image each is."""
    targets: Ints
    """Which class or finding it is about."""
    sure: Floats
    right: NDArray[np.bool_]
    patients: Ints

    @staticmethod
    def of(scored: Scored, threshold: Any) -> Candidates:
        """All answers to these images; `threshold` is the model's."""
        if scored.labels.ndim == 1:
            places = np.arange(len(scored.labels))
            sure = margins(scored.probabilities, threshold)
            return Candidates(places, scored.predicted, sure, scored.predicted == scored.labels, scored.patients)
        # That a finding is absent where none was said to be has nothing to show.
        places, targets = np.nonzero((scored.labels == 1) | (scored.predicted == 1))
        limits = np.broadcast_to(np.asarray(threshold, np.float64), scored.labels.shape[1:])
        sure = beyond(scored.probabilities, limits)[places, targets]
        right = (scored.labels == scored.predicted)[places, targets]
        return Candidates(places, targets, sure, right, scored.patients[places])


def choose(candidates: Candidates, image_ids: Sequence[str], each: int) -> dict[str, list[int]]:
    """The candidates of each kind: so many of a kind, all of different patients, whatever order they came in.

    The most confident ones are taken in turn from the classes that they are about, so that each of them is seen.
    """
    sure, targets = candidates.sure, candidates.targets
    order = sorted(range(len(sure)), key=lambda at: (-sure[at], image_ids[int(candidates.places[at])], targets[at]))
    taken: set[int] = set()

    def pick(several: list[int]) -> list[int]:
        picked: list[int] = []
        for at in several:
            patient = int(candidates.patients[at])
            if len(picked) < each and patient not in taken:
                taken.add(patient)
                picked.append(at)
        return picked

    def in_turn(which: NDArray[np.bool_]) -> list[int]:
        by_class = [[at for at in order if which[at] and targets[at] == k] for k in np.unique(targets)]
        return [at for several in zip_longest(*by_class) for at in several if at is not None]

    # The wrong ones choose first: they are few, and say most.
    wrong = pick(in_turn(~candidates.right))
    return {KINDS[0]: pick(in_turn(candidates.right)), KINDS[1]: wrong, KINDS[2]: pick(order[::-1])}


def margins(probabilities: Floats, threshold: float | None) -> Floats:
    """How sure each answer is, from 0 (as well another class) to 1.

    With a threshold: how far on its side of it the probability lies; else, how far the likeliest class is ahead.
    """
    if threshold is not None:
        return beyond(probabilities[:, 1], np.float64(threshold))
    ranked = np.sort(probabilities, axis=1)
    return np.asarray(ranked[:, -1] - ranked[:, -2])


def beyond(probabilities: Floats, threshold: Any) -> Floats:
    """How far on its side of the threshold each probability lies, as a share of the way to 0 or 1."""
    above = probabilities - threshold
    return np.asarray(
        np.where(above >= 0, above / np.maximum(1 - threshold, 1e-12), -above / np.maximum(threshold, 1e-12))
    )


def read_head(bundle: Path) -> list[Layer]:
    """The layers of the bundle's float head, from the features to the logits; none where it has none."""
    folder = bundle / "models" / "head"
    layers: list[Layer] = []
    while (folder / f"weight_{len(layers)}.npy").exists():
        weight, bias = (np.load(folder / f"{name}_{len(layers)}.npy") for name in ("weight", "bias"))
        layers.append((np.asarray(weight, np.float64), np.asarray(bias, np.float64)))
    return layers


def gradients(head: Sequence[Layer], features: Floats, targets: Ints) -> Floats:
    """For each image the gradient of its target's logit by the features, through linear layers with ReLU between."""
    passed, found = [], features.astype(np.float64)
    for weight, bias in head[:-1]:
        found = found @ weight.T + bias
        passed.append(found > 0)
        found = np.maximum(found, 0)
    back = head[-1][0][targets]
    for (weight, _), gate in zip(reversed(head[:-1]), reversed(passed), strict=True):
        back = (back * gate) @ weight
    return np.asarray(back)


def gradcam(head: Sequence[Layer], features: Floats, feature_map: Floats, targets: Ints) -> Floats:
    """Grad-CAM before its ReLU: [N, h, w], positive where the image spoke for its target's logit."""
    cells = feature_map.shape[2] * feature_map.shape[3]
    weights = gradients(head, features, targets) / cells  # the features are the mean of the map
    return np.asarray(np.einsum("nf,nfhw->nhw", weights, feature_map))


def positive(heat: Floats) -> Floats:
    """What speaks for the answer, its highest value made 1."""
    kept = np.maximum(heat, 0)
    return np.asarray(kept / kept.max() if kept.max() > 0 else kept)


def shuffled_head(head: Sequence[Layer], seed: int) -> list[Layer]:
    """The head with each layer's weights in another order."""
    rng = np.random.default_rng(seed)
    return [(rng.permutation(weight.ravel()).reshape(weight.shape), bias) for weight, bias in head]


def shuffled_layers(graph: bytes, output: str, share: float, seed: int) -> tuple[bytes, int]:
    """Return an ONNX file with the weights of the last layers before `output` in another order, and their number.

    `share` is the part of the layers with weights, from the last one backwards; at least one is shuffled.
    """
    model, rng = onnx.load_from_string(graph), np.random.default_rng(seed)
    found = weights(model.graph, output)
    last = found[-max(1, round(share * len(found))) :]
    for weight in last:
        weight.raw_data = rng.permutation(numpy_helper.to_array(weight).ravel()).tobytes()
    return model.SerializeToString(), len(last)


def weights(graph: onnx.GraphProto, output: str) -> list[onnx.TensorProto]:
    """Return the matrices and kernels on which an output depends, from input to output; no biases and scales."""
    tensors = {
        each.name: each
        for each in graph.initializer
        if each.raw_data and each.data_type in NUMBERS and sum(size > 1 for size in each.dims) > 1
    }
    needed = {output}
    for node in reversed(graph.node):  # ONNX requires that nodes come after those whose outputs they take
        if needed.intersection(node.output):
            needed.update(node.input)
    nodes = (node for node in graph.node if needed.intersection(node.output))
    return [*{name: tensors[name] for node in nodes for name in node.input if name in tensors}.values()]


def occlusion(logits: Callable[[NDArray[np.uint8]], Floats], view: NDArray[np.uint8], target: int) -> Floats:
    """How much the target's logit loses where the image is covered with its mean gray: [WINDOWS, WINDOWS]."""
    edges = np.linspace(0, len(view), WINDOWS + 1).round().astype(int)
    gray = np.rint(view.mean(axis=(0, 1)))
    covered = np.repeat(view[None], (WINDOWS - 1) ** 2, axis=0)
    places = [(down, across) for down in range(WINDOWS - 1) for across in range(WINDOWS - 1)]
    for copy, (down, across) in zip(covered, places, strict=True):
        copy[edges[down] : edges[down + 2], edges[across] : edges[across + 2]] = gray
    lost = logits(view[None])[0, target] - logits(covered)[:, target]
    total, times = np.zeros((WINDOWS, WINDOWS)), np.zeros((WINDOWS, WINDOWS))
    for (down, across), value in zip(places, lost, strict=True):
        total[down : down + 2, across : across + 2] += value
        times[down : down + 2, across : across + 2] += 1
    return total / times


def likeness(one: Floats, other: Floats) -> float:
    """The rank correlation of two maps (Spearman's, ties sharing their ranks); 0 where one is the same everywhere."""
    ranks = [_ranks(each.ravel()) - (each.size - 1) / 2 for each in (one, other)]
    norm = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / norm if norm else 0.0


def _ranks(values: Floats) -> Floats:
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(times) - (times + 1) / 2)[place])


def _mean_likeness(own: Floats, others: Floats) -> float:
    """The mean size of the rank correlation with several maps: one that is upside down shows the same places."""
    return round(float(np.mean([abs(likeness(own, other)) for other in others])), 3)


def _mapped(
    model: Model, bundle: Path, shown: NDArray[np.uint8], targets: Ints, seed: int
) -> tuple[str, Floats, dict[str, Floats]]:
    """How the maps were made, the maps [N, h, w], and those of each check [draws, N, h, w]."""
    head = read_head(bundle)
    graph, layers = shuffled_layers((bundle / PRECISIONS[model.precision]).read_bytes(), "feature_map", LAST, seed)
    forgetful = Model(bundle, model.precision, graph=graph) if layers else None
    found = model.feature_maps(shown).astype(np.float64) if head else None
    checks: dict[str, Floats] = {}
    if found is None or min(found.shape[2:]) < SMALLEST:
        maps = _occluded(model, shown, targets)
        if forgetful:
            checks["layers"] = _occluded(forgetful, shown, targets)[None]
        return "occlusion", maps, checks
    features = model(shown).features.astype(np.float64)
    heads = [shuffled_head(head, seed + draw) for draw in range(DRAWS)]
    checks["head"] = np.stack([gradcam(other, features, found, targets) for other in heads])
    if forgetful:
        others, means = (part.astype(np.float64) for part in (forgetful.feature_maps(shown), forgetful(shown).features))
        checks["layers"] = np.stack([gradcam(other, means, others, targets) for other in heads])
    return "grad-cam", gradcam(head, features, found, targets), checks


def _occluded(model: Model, shown: NDArray[np.uint8], targets: Ints) -> Floats:
    def logits(views: NDArray[np.uint8]) -> Floats:
        return model(views).logits.astype(np.float64)

    pairs = zip(shown, targets, strict=True)
    return np.stack([occlusion(logits, view, int(target)) for view, target in pairs])


def verdict(explained: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the maps depend on what the model learned: mean rank correlation by check, passed or not, and a sentence.

    `explained` is the list of metrics.json.
    """
    names = {
        "head": "the weights of the head in another order",
        "layers": "those of the graph’s last layers too" if any("head" in e["sanity"] for e in explained) else
        "the weights of the graph’s last layers in another order",
    }  # fmt: skip
    means = {
        name: float(np.mean([entry["sanity"][name] for entry in explained]))
        for name in names
        if explained and all(name in entry["sanity"] for entry in explained)
    }
    passed = all(value < SIMILAR for value in means.values()) if means else None
    told = ", ".join(f"{value:.2f} with {names[name]}" for name, value in means.items())
    if passed is None:
        sentence = (
            "Whether these maps depend on what the model learned could not be checked: its weights cannot be read."
        )
    elif passed:
        sentence = f"With other weights the maps are others, as they should be: their mean rank correlation is {told}."
    else:
        sentence = (
            "Do not rely on these maps: they hardly depend on what the model learned. Their mean rank correlation is "
            f"{told}, and should stay below {SIMILAR:g}."
        )
    return {"likeness": means, "passed": passed, "sentence": sentence}
