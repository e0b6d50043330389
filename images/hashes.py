"""Writes hashes.txt from pip's report: the hash of each package's file, for the platform on which pip was asked.

pip install --dry-run --ignore-installed --no-deps --report report.json -r constraints.txt
python -m images.hashes report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "hashes.txt"
HEADER = """\
# The pinned packages with the SHA-256 of their files for CPython 3.11 on Linux, x86-64: constraints for pip, which then
# installs no other file. `python -m images.hashes --help` says how it is written.
"""


def hashes(report: str) -> str:
    """The constraints with hashes that a report of pip gives."""
    lines = []
    for item in json.loads(report)["install"]:
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{item['metadata']['name']}=={item['metadata']['version']} --hash=sha256:{digest}\n")
    return HEADER + "".join(sorted(lines, key=str.lower))


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    FILE.write_text(hashes(Path(sys.argv[1]).read_text(encoding="utf-8")), encoding="utf-8")
