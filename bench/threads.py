"""Times training on a quiet machine and beside one busy process per core, with OpenMP's own spinning and with ours.

`python -m bench.threads [--rounds 5] [--only small|resnet18]`

Each measurement is a process of its own; the settings take turns within a round. On a machine that others use, a quiet
measurement is repeated until they leave it alone.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from components.shared.runtime.threads import count_threads

NETWORKS = {"small": (96, 16, 1280, 640), "resnet18": (128, 16, 128, 96)}
"""Of each network: image size, batch size, images to train on when the machine is quiet, and when it is busy."""
SETTINGS = ("before", "now")
QUIET, TRIES = 0.05, 40
"""A machine on which others use at most this share of a core is quiet; so often a measurement is tried."""
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


def used() -> tuple[float, float]:
    """The CPU seconds that all processes of this machine have used, and those of this process."""
    first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    everyone = sum(int(first[place]) for place in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")
    return everyone, time.process_time()


def rate(name: str, images: int, setting: str) -> tuple[float, float]:
    """Images a second of training a network, in this process, and the share of a core that others used meanwhile."""
    import numpy as np

    from bench.training import ours
    from components.shared.datasets.dataset import Views
    from components.train.device import use_threads
    from components.train.openmp_waiting import ShortSpinning
    from components.train.split_images import SplitImages

    use_threads(0)
    size, batch = NETWORKS[name][:2]
    chance = np.random.default_rng(1)
    pixels = chance.integers(0, 256, (images, size, size), np.uint8)
    views = Views([pixels], np.zeros(images, np.int32), np.arange(images, dtype=np.int32))
    targets = np.eye(2, dtype=np.float32)[chance.integers(0, 2, images)]
    preprocess = {"size": size, "fit": "pad", "channels": 1, "mean": 0.5, "std": 0.25}
    with ShortSpinning() if setting == "now" else nullcontext():
        for count in (2 * batch, images):  # the first warms up
            rows = np.arange(count)
            side = SplitImages(views, rows, targets[rows], preprocess)
            begun, before = time.perf_counter(), used()
            found = ours(side, name, size, "float32", batch, "cpu", "radiograph")
            everyone, own = (after - earlier for after, earlier in zip(used(), before, strict=True))
    return found, (everyone - own) / (time.perf_counter() - begun)


def measured(name: str, images: int, setting: str, most: float) -> float:
    """The rate in a process of its own; again where others used more of a core than `most`."""
    command = [sys.executable, "-m", "bench.threads", "--once", name, "--images", str(images), "--setting", setting]
    for _ in range(TRIES):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found, others = map(float, done.stdout.split())
        if others <= most:
            return found
        time.sleep(5)
    raise RuntimeError(f"Other processes used {others:.0%} of a core. End them: this needs a quiet machine.")


def compare(name: str, rounds: int) -> None:
    """Print a network's rates, quiet and busy, against the quiet rate of before."""
    _, _, many, few = NETWORKS[name]
    quiet: dict[str, list[float]] = {each: [] for each in SETTINGS}
    beside: dict[str, list[float]] = {each: [] for each in SETTINGS}
    for _ in range(rounds):
        for each in SETTINGS:
            quiet[each].append(measured(name, many, each, QUIET))
        with busy(count_threads()):
            for each in SETTINGS:
                beside[each].append(measured(name, few, each, math.inf))
    today = statistics.median(quiet["before"])
    for each in SETTINGS:
        cells = []
        for rates in (quiet[each], beside[each]):
            middle = statistics.median(rates)
            cells += [f"{middle:,.1f} ({min(rates):,.1f} to {max(rates):,.1f})", f"{middle / today:.2f}"]
        print(f"| {name}, {each} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="the network")
    parser.add_argument("--once", default="", help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--setting", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        print(*rate(asked.once, asked.images, asked.setting))
    else:
        print("| training | quiet, images/s | ÷ quiet before | beside busy processes, images/s | ÷ quiet before |")
        print("|---|---|---|---|---|")
        for network in [asked.only] if asked.only else NETWORKS:
            compare(network, asked.rounds)
