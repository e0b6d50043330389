"""Counts what a loop and a service look up, connect to and write outside their home: `python -m bench.egress`.

It runs them under strace. What it counts must be 0; a control, ONNX Runtime with its telemetry on, must not be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CALLS = (
    "connect,sendto,sendmsg,sendmmsg,open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat"
)
DEVICES = ("/dev/", "/proc/")

_ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
_OPENED = re.compile(r"^(?:open|openat|openat2|creat)\(.*(?:O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|creat\().* = \d+<(.+)>$")
_MADE = re.compile(r'^(?:mkdir|mknod|rename|link|symlink)\w*\(.*?(?:<([^<>]*)>, )?"([^"]*)"(?:, [^"]*)?\) = 0$')
_HOSTS = ("127.", "::1", "::ffff:127.")


@dataclass(frozen=True)
class Egress:
    """What processes did that leaves the machine or their own folders."""

    lookups: list[str]
    connections: list[str]
    files: list[str]


def available() -> bool:
    """Whether this machine has strace, and lets it trace."""
    probe = ["strace", "-f", "-qq", "-o", os.devnull, "true"]
    return bool(shutil.which("strace")) and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def traced(command: Sequence[str], folder: Path) -> list[str]:
    """The command that runs this one and writes what it asks of the system into a file for each process."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-ff", "--seccomp-bpf", "-qq", "-y", "-s", "256", "-e", "signal=none", "-e", f"trace={CALLS}"]
    return ["strace", *options, "-o", str(folder / "trace"), *command]


def read(folder: Path, allowed: Iterable[Path]) -> Egress:
    """What the traces in this folder tell; files below the allowed folders do not count."""
    inside = (*DEVICES, *(f"{path.resolve()}/" for path in allowed))
    lookups, connections, files = [], [], set()
    for trace in sorted(folder.glob("trace.*")):
        for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := _ADDRESS.search(line):
                port, host = found.groups()
                if port == "53":
                    lookups.append(f"{host}:{port}")
                elif not host.startswith(_HOSTS):
                    connections.append(f"{host}:{port}")
            elif (path := _written(line)) and not f"{path}/".startswith(inside):
                files.add(path)
    return Egress(lookups, connections, sorted(files))


def _written(line: str) -> str:
    """The path that a line of a trace says was written, or nothing."""
    if found := _OPENED.search(line):
        return re.sub(r"\(deleted\)$", "", found[1])
    if found := _MADE.search(line):
        return str(Path(found[1] or ROOT, found[2]))
    return ""


def environment(base: Path, **more: str) -> dict[str, str]:
    """The environment of a process whose every folder lies below `base`: its home for state, its own, its temporary."""
    folders = {"MEDLOOP_HOME": base / "home", "HOME": base / "user", "TMPDIR": base / "tmp"}
    for path in folders.values():
        path.mkdir(parents=True, exist_ok=True)
    # nothing else of ours: where CI, GITHUB_ACTIONS and their like are set, ONNX Runtime sends no telemetry by itself
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    python = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}  # bytecode lies beside the code
    return {**kept, **{name: str(path) for name, path in folders.items()}, **python, **more}


def serve(folder: Path, settings: Mapping[str, str], images: Sequence[Path]) -> tuple[str, list[str]]:
    """Start the service under the tracer, send it these images, end it; gives its log, and its answers with headers."""
    command = traced([sys.executable, "-m", "medloop.cli.main", "serve", "--port", "0"], folder)
    service = subprocess.Popen(command, cwd=ROOT, env=dict(settings), stderr=subprocess.PIPE, text=True)
    assert service.stderr is not None
    said, answers = [], []
    try:
        for line in service.stderr:
            said.append(line)
            if found := re.search(r"serving v\d+ at (http://[\d.:]+)", line):
                break
        else:
            raise RuntimeError(f"The service did not start:\n{''.join(said)}")
        answers += [_post(f"{found[1]}/predict", path) for path in images]
        pages = ("/", "/health", "/model/info", "/openapi.json", "/no?patient=Quixworth")
        answers += [_ask(urllib.request.Request(found[1] + page)) for page in pages]
        time.sleep(1)
    finally:
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)
        rest = service.communicate(timeout=60)[1]
    return "".join(said) + rest, answers


def _post(url: str, path: Path) -> str:
    """Send a file as a browser does; gives the answer with its headers."""
    mark = "medloop-boundary"
    head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + f"\r\n--{mark}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    return _ask(urllib.request.Request(url, body, kind))


def _ask(request: urllib.request.Request) -> str:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return f"{answer.headers}\n{answer.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.headers}\n{error.read().decode()}"


CONTROL = """
import contextlib, onnxruntime, pathlib, socket, time
with contextlib.suppress(OSError):
    socket.getaddrinfo("medloop.invalid", 80)
until = time.monotonic() + 60  # its telemetry is a thread
while time.monotonic() < until and not any(pathlib.Path.home().rglob("onnxruntime.db")):
    time.sleep(0.1)
"""


def control(base: Path) -> Egress:
    """What the tracer sees of ONNX Runtime with its telemetry on, and of a look-up."""
    settings = environment(base)
    command = traced([sys.executable, "-c", CONTROL], base / "traces")
    subprocess.run(command, cwd=base, env=settings, check=True, capture_output=True)
    return read(base / "traces", [base / "home", base / "tmp"])


def main() -> None:
    """Measure and print the table."""
    if not available():
        print("This machine has no strace that may trace, so nothing was measured.")
        return
    with tempfile.TemporaryDirectory(prefix="medloop-egress-") as scratch:
        base = Path(scratch)
        settings = environment(base / "loop")
        scans = base / "loop" / "home" / "scans"
        medloop = [sys.executable, "-m", "medloop.cli.main"]
        subprocess.run(
            [*medloop, "synth", str(scans), "--patients", "24"], cwd=ROOT, env=settings, check=True, capture_output=True
        )
        quick = ["--params", str(ROOT / "workflows" / "params" / "smoke.yaml"), "--policy", "lenient"]
        command = traced([*medloop, "run", "--source", str(scans), *quick, "--json"], base / "run")
        done = subprocess.run(command, cwd=ROOT, env=settings, check=True, capture_output=True, text=True)
        outcome = json.loads(done.stdout)["outcome"]
        serve(base / "service", settings, sorted((scans / "NORMAL").glob("*.png"))[:20])
        allowed = [base / "loop" / "home", base / "loop" / "tmp"]
        rows = {f"a loop ({outcome})": read(base / "run", allowed), "a service": read(base / "service", allowed)}
        rows["control: ONNX Runtime with telemetry, and one look-up"] = control(base / "control")
        print("| what | look-ups | connections | files outside the home and the temporary directory |")
        print("|---|---|---|---|")
        for what, found in rows.items():
            print(f"| {what} | {len(found.lookups)} | {len(found.connections)} | {len(found.files)} |")


if __name__ == "__main__":
    main()
