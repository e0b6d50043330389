"""Measures what hostile images cost, what honest requests beside them wait, and what the limits cost.

`python -m bench.hostile [--only files|beside|cost] [--against CHECKOUT] [--seconds 40] [--rounds 5]`

`files`: CPU seconds and memory of every hostile and every large honest file, and what is said of it. `beside`: how long
honest requests take at 10 a second, alone and while four clients send hostile files, one after the other. `cost`:
ingest and the service of this checkout and of another one (`--against`), in turn.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from bench.loop import ROOT
from bench.scans import make
from components.shared.privacy.keyed_hash import SYNTHETIC, parse
from components.shared.storage import image_source as sources
from components.shared.storage.store import open_store
from tests import made
from tests.components.shared.decoders import Decoders
from tests.components.shared.hostile import HONEST, KINDS

UPLOADED = 8 * 2**20
"""Larger files are left out of `beside`: what their upload costs is another matter."""


def files() -> None:
    print("| file | MB | CPU seconds | most memory, MB | what becomes of it |\n|---|---|---|---|---|")
    decoders = Decoders()
    for name, kind in {**KINDS, **HONEST}.items():
        data = kind()
        shapes, refused = decoders.outcome(data)
        told = refused or f"{len(shapes)} image{'s' * (len(shapes) > 1)}"
        numbers = f"{len(data) / 1e6:.1f} | {decoders.seconds:.1f} | {decoders.mebibytes * 1.048576:.0f}"
        print(f"| {name} | {numbers} | {told} |", flush=True)
    decoders.close()


@contextmanager
def service(checkout: Path, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a checkout's service, and its process."""
    command = [sys.executable, "-m", "serving", "--store", str(folder), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "MEDLOOP_LOG": "json"}
    process = subprocess.Popen(command, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    line = ""
    while "http://" not in line:
        line = process.stderr.readline()
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    try:
        yield json.loads(line)["event"].rpartition(" ")[2], process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            process.wait()


def released(folder: Path) -> Path:
    made.release_bundle(open_store(str(folder / "store")), made.make_bundle(folder / "bundle", size=224))
    return folder / "store"


def radiographs(count: int) -> list[bytes]:
    found, rng = [], np.random.default_rng(1)
    for _ in range(count):
        soft = Image.fromarray(rng.integers(20, 230, (10, 10), dtype=np.uint8)).resize((1024, 1024))
        grain = rng.integers(-3, 4, (1024, 1024), dtype=np.int16)
        buffer = io.BytesIO()
        Image.fromarray((np.asarray(soft) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def ask(client: httpx.Client, data: bytes) -> tuple[int, float]:
    begun = time.perf_counter()
    status = client.post("/predict", files={"file": ("x", data)}).status_code
    return status, time.perf_counter() - begun


def honest(address: str, images: list[bytes], seconds: float) -> list[float]:
    """The seconds of each of ten requests a second, which begin on time even if others are not answered yet."""
    with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(32) as pool:
        begun, asked = time.perf_counter(), []
        for number in range(int(seconds * 10)):
            time.sleep(max(0.0, begun + number / 10 - time.perf_counter()))
            asked.append(pool.submit(ask, client, images[number % len(images)]))
        answers = [each.result() for each in asked]
    assert {status for status, _ in answers} == {200}
    return [taken for _, taken in answers]


def attack(address: str, first: int, until: float) -> list[float]:
    """Send hostile files, one after the other, until that time; gives the seconds of each answer."""
    files = hostile()
    taken: list[float] = []
    with httpx.Client(base_url=address, timeout=300) as client:
        while time.time() < until:
            taken.append(ask(client, files[(first + 7 * len(taken)) % len(files)])[1])
    return taken


@cache
def hostile() -> list[bytes]:
    return [data for data in (kind() for kind in KINDS.values()) if len(data) < UPLOADED]


def beside(seconds: float) -> None:
    images = radiographs(8)
    print("| honest requests | p50, ms | p99, ms | hostile files answered, longest |\n|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory(prefix="medloop-bench-") as folder,
        ProcessPoolExecutor(4, get_context("spawn")) as attackers,
        service(ROOT, released(Path(folder))) as (address, _),
    ):
        list(attackers.map(attack, [address] * 4, range(4), [0] * 4))  # makes the files
        honest(address, images, 3)
        alone = honest(address, images, seconds)
        under_way = [attackers.submit(attack, address, 5 * place, time.time() + seconds + 1) for place in range(4)]
        time.sleep(1)
        among = honest(address, images, seconds)
        taken = [each for one in under_way for each in one.result()]
    for name, times, rest in (("alone", alone, ""), ("beside", among, f"{len(taken)}, {max(taken):.1f} s")):
        middle, late = (1000 * float(np.quantile(times, share)) for share in (0.5, 0.99))
        print(f"| {name} | {middle:.1f} | {late:.1f} | {rest} |")
    ratio = float(np.quantile(among, 0.99) / np.quantile(alone, 0.99))
    print(f"\np99 beside hostile files: {ratio:.2f} × that alone; bar ≤ 3", flush=True)


def cost(against: Path, rounds: int) -> None:
    """Wall and CPU seconds of both checkouts, in turn."""
    print("| what | this checkout ÷ the other: wall (median, range) | CPU (median, range) |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="medloop-bench-") as name:
        folder = Path(name)
        images = radiographs(8)
        store = released(folder)
        for what, count, side in (("1,024², JPEG", 1000, 1024), ("2,000², JPEG", 400, 2000)):
            source = make(folder / f"scans{side}", count, side)
            compare(f"ingest of {count:,} images of {what}", partial(ingest, source), against, rounds)
        compare("400 requests of 1,024², JPEG, four clients", partial(served, store, images), against, rounds)


def compare(name: str, run: Callable[[Path], tuple[float, float]], against: Path, rounds: int) -> None:
    ratios = []
    for number in range(rounds + 1):
        ours, theirs = run(ROOT), run(against)
        if number:  # the first round fills the system's memory with the files
            ratios.append([ours[0] / theirs[0], ours[1] / theirs[1]])
    cells = " | ".join(
        f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in zip(*ratios, strict=True)
    )
    print(f"| {name} | {cells} |", flush=True)


def ingest(source: Path, checkout: Path) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="medloop-bench-") as folder:
        revision = sources.revision(sources.entries(str(source)))
        command = [sys.executable, "-m", "components", "ingest", "--store", f"{folder}/store", "--source", str(source)]
        command += ["--revision", revision, "--key-id", parse(SYNTHETIC).id, "--portion", f"{folder}/portion"]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "MEDLOOP_HASH_KEY": SYNTHETIC}
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return ended(process, begun)


def served(store: Path, images: list[bytes], checkout: Path) -> tuple[float, float]:
    with (
        service(checkout, store) as (address, process),
        httpx.Client(base_url=address, timeout=60) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        list(pool.map(lambda data: ask(client, data), images * 4))
        before = cpu(process.pid)
        begun = time.perf_counter()
        list(pool.map(lambda data: ask(client, data), images * 50))
        return time.perf_counter() - begun, cpu(process.pid) - before


def cpu(parent: int) -> float:
    """The CPU seconds of a process, its children and its ended children."""
    total = 0
    for path in Path("/proc").iterdir():
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split() if path.name.isdecimal() else []
        except OSError:
            continue
        if fields and parent in (int(path.name), int(fields[1])):
            total += sum(int(each) for each in fields[11:15])
    return total / os.sysconf("SC_CLK_TCK")


def ended(process: subprocess.Popen[bytes], begun: float) -> tuple[float, float]:
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    if asked.only in ("", "files"):
        files()
    if asked.only in ("", "beside"):
        beside(asked.seconds)
    if asked.against and asked.only in ("", "cost"):
        cost(asked.against.absolute(), asked.rounds)
