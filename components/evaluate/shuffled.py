"""A graph that has forgotten what it learned: an ONNX file's weights put into another order, its structure as it was.

The stage's image has no package that writes ONNX files, and none is needed: weights stand in the file as plain bytes,
and as many bytes take their place. Of the format (protobuf) this reads as much as finds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.shared.errors import RefusedError

GRAPH, NODE, INITIALIZER = 7, 1, 5
"""Where a model holds its graph, and a graph its nodes and weights."""
NODE_INPUT, NODE_OUTPUT = 1, 2
DIMS, KIND, NAME, RAW = 1, 2, 8, 9
"""The fields of a weight: its shape, the type of its numbers, its name, and its bytes."""
TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1"), 10: np.dtype("<f2")}
"""The types of numbers that weights have: float32, and in smaller graphs uint8, int8 and float16."""


@dataclass(frozen=True)
class Weight:
    """Where in a file the numbers of a layer stand."""

    name: str
    type: np.dtype[Any]
    start: int
    end: int


def shuffled(graph: bytes, output: str, share: float, seed: int) -> tuple[bytes, int]:
    """The graph with the weights of the last layers before `output` in another order, and of how many it did so.

    `share` is how many of the layers that have weights, from the last one backwards; at least one.
    """
    found = weights(graph, output)
    last = found[len(found) - max(1, round(share * len(found))) :] if found else []
    changed, rng = bytearray(graph), np.random.default_rng(seed)
    for weight in last:
        numbers = np.frombuffer(graph[weight.start : weight.end], weight.type)
        changed[weight.start : weight.end] = rng.permutation(numbers).tobytes()
    return bytes(changed), len(last)


def weights(graph: bytes, output: str) -> list[Weight]:
    """The weights on which that output depends, from input to output: matrices and kernels, no biases and scales."""
    nodes: list[tuple[list[str], list[str]]] = []
    tensors: dict[str, Weight] = {}
    for number, start, end in _fields(graph, 0, len(graph)):
        if number != GRAPH:
            continue
        for part, first, last in _fields(graph, start, end):
            if part == NODE:
                nodes.append(_node(graph, first, last))
            elif part == INITIALIZER and (weight := _weight(graph, first, last)):
                tensors[weight.name] = weight
    wanted, before = {output}, []
    for inputs, outputs in reversed(nodes):  # a graph's nodes stand in an order in which they can be worked through
        if wanted.isdisjoint(outputs):
            continue
        wanted.update(inputs)
        before.append([tensors[name] for name in inputs if name in tensors])
    seen: dict[str, Weight] = {}
    for found in reversed(before):
        seen |= {weight.name: weight for weight in found if weight.name not in seen}
    return list(seen.values())


def _node(data: bytes, start: int, end: int) -> tuple[list[str], list[str]]:
    inputs: list[str] = []
    outputs: list[str] = []
    for number, first, last in _fields(data, start, end):
        if number in (NODE_INPUT, NODE_OUTPUT):
            (inputs if number == NODE_INPUT else outputs).append(data[first:last].decode())
    return inputs, outputs


def _weight(data: bytes, start: int, end: int) -> Weight | None:
    """A weight whose numbers stand there as bytes and have an order to lose, or None."""
    dims: list[int] = []
    kind, name, place = 0, "", (0, 0)
    for number, first, last in _fields(data, start, end):
        if number == DIMS:
            at = first
            while at < last:  # one number, or several packed together
                size, at = _number(data, at)
                dims.append(size)
        elif number == KIND:
            kind = _number(data, first)[0]
        elif number == NAME:
            name = data[first:last].decode()
        elif number == RAW:
            place = (first, last)
    several = sum(size > 1 for size in dims) > 1
    full = kind in TYPES and place[1] - place[0] == int(np.prod(dims)) * TYPES[kind].itemsize
    return Weight(name, TYPES[kind], *place) if several and full else None


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of each field of a message, and where its content begins and ends."""
    at = start
    while at < end:
        key, at = _number(data, at)
        first = at
        match key & 7:
            case 0:
                at = _number(data, at)[1]
            case 1:
                at += 8
            case 2:
                size, first = _number(data, at)
                at = first + size
            case 5:
                at += 4
            case other:
                raise RefusedError(
                    f"The model's graph is no ONNX file: it holds a field of the type {other} at byte {first:,}, and "
                    "the types 0, 1, 2 and 5 are known. Export the model again."
                )
        yield key >> 3, first, at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
