"""What a fresh process says of a file, and what it takes for it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
READ = """
import json, resource, sys, time
sys.path.insert(0, {repository!r})
from {module} import {name} as read
from components.shared.imaging.image_files import Decoding
data = open({path!r}, "rb").read()
def taken():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(read({warm!r}, Decoding()))  # what must be imported
except ValueError:
    pass
before, begun, count = taken(), time.process_time(), 0
try:
    for _ in read(data, Decoding()):
        count += 1
    said = f"{{count}} images"
except ValueError as error:
    said = str(error)
print(json.dumps([said, (taken() - before) // 1024, time.process_time() - begun]))
"""
MEMORY = 8 * 2**30


def outcome(
    data: bytes,
    folder: Path,
    module: str = "components.shared.imaging.image_files",
    name: str = "decode_images",
    warm: bytes = b"",
) -> tuple[str, int, float]:
    """The number of images or the refusal, how many MiB more were needed at the most, and the seconds.

    `warm` is read before, so that what its reading imports does not count.
    """
    path = folder / "content"
    path.write_bytes(data)
    script = READ.format(repository=str(REPOSITORY), path=str(path), module=module, name=name, warm=warm)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    said, mebibytes, seconds = json.loads(done.stdout)
    return said, mebibytes, seconds
