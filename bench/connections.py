"""Holds slow connections open against the service, and measures whether it goes on answering.

Run `python -m bench.connections [--connections 2000] [--seconds 60]`. The service runs in a process of its own with
1,024 descriptors. A quarter of the connections each sends nothing, a header byte by byte, a body byte by byte, or a
request and then nothing; what the service closes is opened again after a second. Meanwhile /health is asked ten times a
second, and an image is sent twice a second, each over a new connection. `--throughput` measures the predictions a
second of an undisturbed service instead.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
from PIL import Image

from components.shared.storage.store import open_store
from tests import made

DESCRIPTORS = 1024
PATIENCE = 10.0
"""Seconds after which an answer is counted as failed."""


class Outcome(NamedTuple):
    """Seconds that each answer took by what was asked, failures, opened connections, and bytes of the log."""

    took: dict[str, list[float]]
    failed: Counter[str]
    opened: int
    log: int


@contextlib.contextmanager
def service(folder: Path, descriptors: int = DESCRIPTORS) -> Iterator[tuple[str, int, Path, int]]:
    """The service with a small model and at most so many descriptors: host, port, the file of its log, process id."""
    store = open_store(str(folder / "store"))
    made.release_bundle(store, made.make_bundle(folder / "bundle"))
    log = folder / "log"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}))"
    program = f"{limit}; import sys; from serving.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "--store", store.uri, "--port", "0"]
    with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            deadline = time.monotonic() + 30
            while b"http://" not in log.read_bytes():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The service did not start: {log.read_text()}")
                time.sleep(0.05)
            address = httpx.URL(json.loads(log.read_text().splitlines()[-1])["event"].rpartition(" ")[2])
            yield address.host, int(address.port or 0), log, process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def png() -> bytes:
    """A small image."""
    buffer = io.BytesIO()
    Image.fromarray(made.make_image(np.random.default_rng(1), 1, 224)).save(buffer, "PNG")
    return buffer.getvalue()


def ask(host: str, port: int, what: str, every: float, until: float, found: Outcome) -> None:
    """Ask again and again over new connections, and note how long each answer took."""
    image = png()
    while time.time() < until:
        begun = time.monotonic()
        try:
            with httpx.Client(base_url=f"http://{host}:{port}", timeout=PATIENCE) as client:
                files = {"file": ("x", image)}
                reply = client.get("/health") if what == "health" else client.post("/predict", files=files)
            if reply.status_code != 200:
                found.failed[f"{what} {reply.status_code}"] += 1
        except httpx.HTTPError as error:
            found.failed[f"{what} {type(error).__name__}"] += 1
        found.took[what].append(time.monotonic() - begun)
        time.sleep(max(0.0, every - (time.monotonic() - begun)))


def measure(connections: int, seconds: float, descriptors: int = DESCRIPTORS) -> Outcome:
    """Start a service and hold it against so many slow connections, which are kept in a process of their own."""
    found = Outcome({"health": [], "predict": []}, Counter(), 0, 0)
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), descriptors) as (host, port, log, _):
        command = [sys.executable, "-m", "bench.slow", host, str(port), str(connections), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as slow, ThreadPoolExecutor(2) as pool:
            assert slow.stdout
            if not slow.stdout.readline():  # it is ready
                raise RuntimeError("The slow connections were not opened.")
            until = time.time() + seconds
            for what, every in (("health", 0.1), ("predict", 0.5)):
                pool.submit(ask, host, port, what, every, until, found)
            opened = int(slow.stdout.readline())
        return found._replace(opened=opened, log=log.stat().st_size)


def cpu_seconds(pid: int) -> float:
    """The processor's time that a process has taken."""
    about = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(about[11]) + int(about[12])) / os.sysconf("SC_CLK_TCK")


def throughput(seconds: float, clients: int = 4) -> tuple[float, float]:
    """Predictions a second of an undisturbed service, and CPU milliseconds each, with connections that are kept."""
    image = png()

    def client(_: int) -> int:
        count = 0
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=PATIENCE) as asking:
            while time.monotonic() < until:
                asking.post("/predict", files={"file": ("x", image)}).raise_for_status()
                count += 1
        return count

    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as (host, port, _, pid):
        until = time.monotonic() + 1
        client(0)
        before, until = cpu_seconds(pid), time.monotonic() + seconds
        with ThreadPoolExecutor(clients) as pool:
            count = sum(pool.map(client, range(clients)))
        return count / seconds, 1000 * (cpu_seconds(pid) - before) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=2000, help="slow connections (2000)")
    parser.add_argument("--seconds", type=float, default=60, help="how long to hold them (60)")
    parser.add_argument("--throughput", action="store_true", help="measure predictions a second instead")
    given = parser.parse_args()
    if given.throughput:
        rate, cost = throughput(given.seconds)
        print(f"{rate:.1f} predictions a second, {cost:.2f} ms of CPU each")
        return
    found = measure(given.connections, given.seconds)
    print("| asked | answers | failed | median | p99 | longest |\n|---|---|---|---|---|---|")
    for what, took in found.took.items():
        failed = sum(count for why, count in found.failed.items() if why.startswith(what))
        middle, late = (1000 * float(np.quantile(took, share)) for share in (0.5, 0.99))
        print(f"| {what} | {len(took)} | {failed} | {middle:.0f} ms | {late:.0f} ms | {1000 * max(took):.0f} ms |")
    print(f"\nslow connections: {given.connections} at a time, {found.opened:,} opened in {given.seconds:g} s")
    print(f"log: {found.log:,} bytes; failures: {dict(found.failed) or 'none'}")


if __name__ == "__main__":
    main()
