"""Times ingest against a loop that only decodes, and measures what a repetition costs and what memory it takes.

`python -m bench.ingest [--rounds 3] [--images 100000] [--only throughput|again|memory]`
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.loop import clock
from bench.scans import KERMANY, make, repeated
from components.shared.privacy.keyed_hash import SYNTHETIC, parse
from components.shared.storage import image_source as sources

BARE = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import sched_getaffinity
from pathlib import Path
import numpy as np
from PIL import Image

def decode(paths):
    for path in paths:
        np.asarray(Image.open(path).convert("L"))

if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).glob("*/*"))
    groups = [paths[at : at + 128] for at in range(0, len(paths), 128)]
    with ProcessPoolExecutor(len(sched_getaffinity(0)), get_context("spawn")) as pool:
        list(pool.map(decode, groups))
"""


def ingest(source: Path, home: Path, store: Path, **more: str) -> float:
    """The seconds of the ingest stage as a command of its own."""
    revision = sources.revision(sources.entries(str(source)))
    command = [sys.executable, "-m", "components", "ingest", "--store", str(store), "--source", str(source)]
    command += ["--revision", revision, "--key-id", parse(SYNTHETIC).id, "--portion", str(home / "portion")]
    command += [part for name, value in more.items() for part in (f"--{name.replace('_', '-')}", value)]
    return clock(command, home, MEDLOOP_HASH_KEY=SYNTHETIC)[0]


def merge(home: Path, store: Path) -> float:
    command = [sys.executable, "-m", "components", "merge", "--store", str(store), "--dataset", str(home / "dataset")]
    return clock([*command, "--portions", str(home / "portion")], home, MEDLOOP_HASH_KEY=SYNTHETIC)[0]


def throughput(rounds: int) -> None:
    """Ingest and the bare loop in turn, over files that the system has in memory."""
    print("| images | bare loop, images/s | ingest, images/s | ratio (median, range) |\n|---|---|---|---|")
    kinds = [
        ("1,024², gray", 2000, 1024, False),
        ("1,024², colour", 2000, 1024, True),
        ("2,000², gray", 800, 2000, False),
    ]
    for name, count, side, colour in kinds:
        with tempfile.TemporaryDirectory(prefix="medloop-bench-") as folder:
            _compare(name, make(Path(folder) / "scans", count, side, colour=colour), Path(folder), rounds)
    if KERMANY.exists():
        with tempfile.TemporaryDirectory(prefix="medloop-bench-") as folder:
            (Path(folder) / "scans").mkdir()
            source = repeated(KERMANY, Path(folder) / "scans", 5)
            _compare("224², gray, real (kermany_cxr five times)", source, Path(folder), rounds)


def _compare(name: str, source: Path, home: Path, rounds: int) -> None:
    (home / "bare.py").write_text(BARE)
    count = sum(1 for _ in source.glob("*/*"))
    bare, ours = [], []
    for number in range(rounds + 1):
        alone = clock([sys.executable, str(home / "bare.py"), str(source)], home)[0]
        whole = ingest(source, home, home / f"store-{number}")
        subprocess.run(["rm", "-rf", str(home / f"store-{number}")], check=True)
        if number:  # the first round fills the system's memory with the files
            bare.append(alone)
            ours.append(whole)
    ratios = [alone / whole for alone, whole in zip(bare, ours, strict=True)]
    rates = (f"{count / statistics.median(times):,.0f}" for times in (bare, ours))
    print(f"| {name} | {' | '.join(rates)} | {told(ratios)} |", flush=True)


def told(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def again(images: int) -> None:
    """The first ingest of many images, and the next one with one image more; as commands, the listing included."""
    with tempfile.TemporaryDirectory(prefix="medloop-bench-") as folder:
        home = Path(folder)
        source = make(home / "scans", images, 1024)
        time.sleep(2.5)
        first = ingest(source, home, home / "store", max_side="256") + merge(home, home / "store")
        extra = make(home / "extra", 1, 1024)
        (extra / "NORMAL" / "person000000_1.jpg").rename(source / "NORMAL" / "person999999_1.jpg")
        begun = time.perf_counter()
        listing = sources.revision(sources.entries(str(source)))
        listed = time.perf_counter() - begun
        second = listed + ingest(source, home, home / "store", max_side="256") + merge(home, home / "store")
        assert listing
        print(
            f"{images:,} JPEG files of 1,024² (masters at 256²): first {first:.1f} s, then with one file more "
            f"{second:.2f} s: {second / first:.2%}; bar < 1 %",
            flush=True,
        )


def memory(images: int) -> None:
    """The anonymous memory of each process of an ingest, above what its imports take."""
    with tempfile.TemporaryDirectory(prefix="medloop-bench-") as folder:
        home = Path(folder)
        code = (
            "import os, PIL.Image, components.ingest.ingest\n"
            "import components.ingest.file_formats, components.ingest.decode_group\n"
            "print([line for line in open('/proc/self/status') if line.startswith('RssAnon')][0].split()[1])"
        )
        imports = int(clock([sys.executable, "-c", code], home)[1]) / 1024
        source = make(home / "scans", images, 96)
        with watched() as seen:
            ingest(source, home, home / "store")
        with watched() as merging:
            merge(home, home / "store")
        for name, samples in (("ingest", seen), ("merge", merging)):
            for kind in sorted({kind for _, kind, _ in samples}):
                print(f"{name} of {images:,} images: {quarters(samples, kind, imports)}", flush=True)


def quarters(samples: list[tuple[float, str, float]], kind: str, imports: float) -> str:
    """The most memory of a kind of process in each quarter of the time, above that of its imports."""
    of_kind = [(when, size) for when, each, size in samples if each == kind]
    last = max(when for when, _ in of_kind)
    parts = [
        max((size for when, size in of_kind if low * last <= when <= (low + 0.25) * last), default=0.0)
        for low in (0, 0.25, 0.5, 0.75)
    ]
    shown = ", ".join(f"{max(0.0, part - imports):.0f}" for part in parts)
    return f"{kind}: MB above {imports:.0f} MB of imports, by quarter of the time: {shown}; bar < 1,000, flat"


class watched:  # noqa: N801 - used as a word
    """Samples the anonymous memory of this process's descendants while the block lasts."""

    def __enter__(self) -> list[tuple[float, str, float]]:
        self.samples: list[tuple[float, str, float]] = []
        self.done = threading.Event()
        self.begun = time.perf_counter()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self.samples

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.05):
            parents = {int(path.name): _parent(path) for path in Path("/proc").iterdir() if path.name.isdecimal()}
            children = [each for each, parent in parents.items() if parent == os.getpid()]
            workers = [each for each, parent in parents.items() if parent in children]
            for kind, found in (("the step", children), ("a decoding process", workers)):
                sizes = [_anonymous(each) for each in found]
                if sizes:
                    self.samples.append((time.perf_counter() - self.begun, kind, max(sizes)))


def _parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def _anonymous(process: int) -> float:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    if asked.only in ("", "throughput"):
        throughput(asked.rounds)
    if asked.only in ("", "memory"):
        memory(asked.images)
    if asked.only in ("", "again"):
        again(asked.images)
