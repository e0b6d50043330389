"""Times training on a quiet machine and beside one busy process per core, with OpenMP's setting and with ours.

`python -m bench.threads [--rounds 5] [--spins 10000,...]`

OpenMP's own setting has waiting threads look 300,000 times before they sleep. Each measurement is a process of its own;
settings take turns within a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from components.shared.runtime.threads import SPIN_COUNT, SPINS, count_threads

BEFORE = 300_000
"""The spin count of GNU's OpenMP where none is set."""
NETWORKS = {"small": (96, 16, 1280, 256), "resnet18": (128, 16, 128, 64)}
"""Of each network: image size, batch size, images to train on when the machine is quiet, and when it is busy."""
BUSY = "while True: pass"
"""What a busy process runs."""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep the machine busy with so many other processes, each in a session of its own, as another user's would be."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rate(name: str, images: int) -> float:
    """Images a second of training a network, in this process."""
    import numpy as np

    from bench.training import ours
    from components.train.device import use_threads
    from components.train.feed import Side

    use_threads(0)
    size, batch = NETWORKS[name][:2]
    chance = np.random.default_rng(1)
    pixels = chance.integers(0, 256, (images, size, size), np.uint8)
    targets = np.eye(2, dtype=np.float32)[chance.integers(0, 2, images)]
    preprocess = {"size": size, "fit": "pad", "channels": 1, "mean": 0.5, "std": 0.25}
    for count in (2 * batch, images):  # the first warms up
        rows = np.arange(count)
        found = ours(Side(pixels, rows, targets[rows], preprocess), name, size, "float32", batch, "cpu", "radiograph")
    return found


def measured(name: str, images: int, spins: int) -> float:
    """The same in a process of its own, with this spin count."""
    command = [sys.executable, "-m", "bench.threads", "--once", name, "--images", str(images)]
    done = subprocess.run(command, env={**os.environ, SPINS: str(spins)}, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def compare(name: str, spins: Sequence[int], rounds: int) -> None:
    """Print a network's rates for each spin count, quiet and busy, against the quiet rate of the first one."""
    quiet: dict[int, list[float]] = {each: [] for each in spins}
    beside: dict[int, list[float]] = {each: [] for each in spins}
    _, _, many, few = NETWORKS[name]
    for _ in range(rounds):
        for each in spins:
            quiet[each].append(measured(name, many, each))
        with busy(count_threads()):
            for each in spins:
                beside[each].append(measured(name, few, each))
    today = statistics.median(quiet[spins[0]])
    for each in spins:
        cells = []
        for rates in (quiet[each], beside[each]):
            middle = statistics.median(rates)
            cells += [f"{middle:,.1f} ({min(rates):,.1f} to {max(rates):,.1f})", f"{middle / today:.2f}"]
        print(f"| {name} | {each:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spins", default=str(SPIN_COUNT), help="spin counts to compare with OpenMP's own")
    parser.add_argument("--only", default="", help="the network")
    parser.add_argument("--once", default="", help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        print(rate(asked.once, asked.images))
    else:
        print(
            "| network | spin count | quiet, images/s | ÷ before | beside busy processes, images/s | ÷ quiet before |"
        )
        print("|---|---|---|---|---|---|")
        for network in [asked.only] if asked.only else NETWORKS:
            compare(network, [BEFORE, *map(int, asked.spins.split(","))], asked.rounds)
