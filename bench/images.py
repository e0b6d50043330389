"""Measures the images: how large each is, and how soon after `docker run` its stage begins to work."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import time
from collections.abc import Sequence

from components.shared.runtime.stage_interface import Parameter, read
from images.build import SERVE, names, reference, size

PEER = "peer"
TORCH = {"train"}
"""Stages with torch, for which the bars do not hold."""


def until_line(image: str, *words: str) -> tuple[float, str]:
    """The seconds from `docker run` to the first line that the container writes to standard error, and that line."""
    isolated = ["--network=none", "--read-only", "--tmpfs=/tmp"]
    begun = time.perf_counter()
    with subprocess.Popen(
        ["docker", "run", "--rm", *isolated, *words[:-1], image, *shlex.split(words[-1])],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        line = process.stderr.readline()
        taken = time.perf_counter() - begun
        process.terminate()
        process.stderr.read()
    return taken, line


def until_work(image: str, name: str) -> float:
    """The seconds to the line in which a stage says that it has read its inputs and begins; or the service's first."""
    taken, line = until_line(image, shlex.join(arguments(name)))
    if name != SERVE and json.loads(line)["event"] != "started":
        raise RuntimeError(f"{image} began with {line!r} and not with the event 'started'.")
    return taken


def until_python(image: str, code: str) -> float:
    """The seconds to the first line of a Python program that does this much before it."""
    program = f"import sys; {code}; print('there', file=sys.stderr)"
    taken, line = until_line(image, "--entrypoint=python3", shlex.join(["-c", program]))
    if line != "there\n":
        raise RuntimeError(f"{image} cannot run {code!r}: {line}")
    return taken


def arguments(stage: str) -> list[str]:
    """A call of the stage that its interface accepts, with a directory without files for every input."""
    if stage == SERVE:
        return ["--store=/tmp/store"]
    interface = read(stage)
    given = ["--store=/tmp/store"]
    given += [f"--{name}=/media" for name in interface.inputs]
    given += [f"--{name}=/tmp/{name}.json" for name in interface.outputs]
    needed = [parameter for parameter in interface.parameters.values() if parameter.required]
    return given + [f"--{parameter.name.replace('_', '-')}={_some(parameter)}" for parameter in needed]


def _some(parameter: Parameter) -> str:
    if parameter.choices:
        return parameter.choices[0]
    if parameter.limit:
        return json.dumps(parameter.type(parameter.limit[0]))
    return json.dumps(parameter.type()) if parameter.type is not str else "x"


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.images", description=__doc__)
    parser.add_argument("--tag", default="latest")
    parser.add_argument("--registry", default="")
    parser.add_argument("--base", default="python:3.11-slim-bookworm", help="the peer: what the images were built on")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    images = {name: reference(name, asked.registry, asked.tag) for name in names()}
    try:
        sizes = {name: f"{size(image) / 1e6:,.0f} MB" for name, image in [*images.items(), (PEER, asked.base)]}
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"Not measured: {getattr(error, 'stderr', None) or 'there is no docker command'}".strip())
        print("Build the images with `make images`, and name their base with --base.")
        return
    peer: list[float] = []
    starts: dict[str, list[float]] = {name: [] for name in images}
    loads: dict[str, list[float]] = {name: [] for name in images}
    for count in range(asked.rounds + 1):
        for name, image in images.items():
            bare = until_python(asked.base, "pass")
            start, load = until_work(image, name), until_python(image, f"import components.{name}.{name}")
            if count:  # the first reads from disk what the others find in memory
                peer.append(bare)
                starts[name].append(start)
                loads[name].append(load)
    print(f"Peer, a Python that does nothing in {asked.base} ({sizes[PEER]}): {_figures(peer)}.\n")
    print("| image | size | to the first line of work | to its code imported |")
    print("|---|---|---|---|")
    print("| bar, without torch | < 700 MB | < 2 s | |")
    for name in sorted(images, key=lambda name: (name in TORCH, name == SERVE, name)):
        print(f"| {name} | {sizes[name]} | {_figures(starts[name])} | {_figures(loads[name])} |")


def _figures(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
