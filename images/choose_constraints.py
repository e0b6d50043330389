"""Prints which constraints pip is to take here: hashes.txt where it holds for this platform, else constraints.txt."""

from __future__ import annotations

import platform
import sys

PLATFORM = ("CPython", "3.11", "Linux", "x86_64", "glibc")
"""The platform whose files hashes.txt lists."""


def pins(asked: str, here: tuple[str, ...]) -> tuple[str, str]:
    """The file, and why it is the one without hashes; `asked` is no where hashes are not wanted."""
    if asked == "no":
        return "constraints.txt", "HASHES=no: packages are installed by version, and their hashes are not checked."
    if here != PLATFORM:
        expected, found = " ".join(PLATFORM), " ".join(here)
        why = f"hashes.txt is for {expected}, and this is {found}: packages are installed by version."
        return "constraints.txt", why
    return "hashes.txt", ""


if __name__ == "__main__":
    version = ".".join(platform.python_version_tuple()[:2])
    names = (platform.python_implementation(), version, platform.system(), platform.machine(), platform.libc_ver()[0])
    file, why = pins("".join(sys.argv[1:]), names)
    sys.stdout.write(f"{file}\n")
    sys.stderr.write(f"{why}\n" * bool(why))
