"""Writes docs/licences.md, the licence of every pinned package, from what is installed: `python -m images.licences`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple, cast

from images.inventory import licences

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"

BUNDLED = {
    "libgfortran": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libquadmath": "LGPL-2.1-or-later",
}
"""Libraries of GCC that wheels bring along, which may be linked by programs of any licence."""

UNTOLD = {"cuda-toolkit": "NVIDIA Proprietary Software", "huey": "MIT", "skops": "MIT"}
"""Packages whose metadata names no licence: what their project says."""

COPYLEFT = re.compile(r"\b(?:A?GPL|GNU (?:Affero )?General Public)", re.IGNORECASE)
"""What no package's licence may be."""

HEAD = """\
# Licences

medloop depends on the packages below, at the versions of `constraints.txt`. None is under the GPL or AGPL; some wheels
bundle libraries of GCC, whose licence has an exception for programs that link them (third column). The CUDA libraries
(`nvidia-*`) are proprietary and come with PyTorch; only `train` has them. Packages under the MPL-2.0 are unchanged.
An image's bill of materials (`make sboms`) lists its Debian packages too.

The table is written by `python -m images.licences`.

| package | licence | bundled |
|---|---|---|
"""


class Licensed(NamedTuple):
    """A package, its licence in its own words, and the libraries that it bundles under another one."""

    name: str
    licence: str
    bundled: str


def installed() -> Iterator[Licensed]:
    """Every pinned package that is installed here, in the order of the pins."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name = line.partition("==")[0]
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform
        told = " or ".join(licences(cast(Message, found.metadata))) or UNTOLD.get(name, "")
        yield Licensed(name, told.replace("|", "/"), ", ".join(_bundled(found)))


def _bundled(found: Distribution) -> list[str]:
    files = {Path(str(file)).name.split("-")[0].split(".")[0] for file in found.files or []}
    return [f"{name} ({licence})" for name, licence in BUNDLED.items() if name in files]


def page() -> str:
    """The page's text."""
    return HEAD + "".join(f"| {each.name} | {each.licence} | {each.bundled} |\n" for each in installed())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
