"""Tells as JSON, from inside an image, what is installed there. It needs the standard library alone."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import distributions
from pathlib import Path
from typing import cast

Found = dict[str, str | list[str]]
NOT_TOLD = ("", "UNKNOWN")


def python_packages() -> Iterator[Found]:
    """Each Python package that this Python finds, and those beside the Python that it was made of."""
    beside = Path(sys.base_prefix).glob("lib/python3*/site-packages")
    for found in distributions(path=[*sys.path, *map(str, beside)]):
        yield {
            "name": found.metadata["Name"],
            "version": found.version,
            "licences": licences(cast(Message, found.metadata)),
        }


def licences(metadata: Message) -> list[str]:
    """What a package says of its licence: an expression, else its classifiers, else its own word or two."""
    if expression := metadata.get("License-Expression"):
        return [expression]
    classifiers = [
        line.split(" :: ")[-1] for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    words = metadata.get("License") or ""
    short = [] if words in NOT_TOLD or "\n" in words or len(words) > 80 else [words]
    return short or sorted(set(classifiers) - {"OSI Approved"})


def debian_packages(root: Path = Path("/")) -> Iterator[Found]:
    """Each installed Debian package of the base image; nothing where the base is of another kind."""
    status = root / "var/lib/dpkg/status"
    for paragraph in status.read_text(encoding="utf-8").split("\n\n") if status.is_file() else []:
        fields = Parser().parsestr(paragraph, headersonly=True)
        if fields.get("Status", "").endswith(" installed"):
            name = fields["Package"]
            text = root / "usr/share/doc" / name / "copyright"
            told = text.read_text(encoding="utf-8", errors="replace") if text.is_file() else ""
            # Only copyright files of Debian's machine-readable form; others are prose.
            named = re.findall(r"^License: *(\S.*)$", told, re.MULTILINE) if told.startswith("Format:") else []
            yield {
                "name": name,
                "version": fields["Version"],
                "architecture": fields["Architecture"],
                "licences": sorted(set(named)),
            }


def system() -> dict[str, str]:
    """The distribution that the base image is of: its id, version and name."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return {}
    return {key.lower(): release[key] for key in ("ID", "VERSION_ID", "PRETTY_NAME") if key in release}


if __name__ == "__main__":
    told = {"python": platform.python_version(), "system": system()}
    json.dump({**told, "pypi": [*python_packages()], "deb": [*debian_packages()]}, sys.stdout)
