"""Check untrusted file names: they must be valid within a folder on any system."""

from __future__ import annotations

import re
from collections.abc import Iterable

from components.shared.errors import RefusedError

MAX_FILES, MAX_BYTES, MAX_FOLDERS = 100_000, 1024, 16
"""Maximum number of files in an artifact, bytes in a file's name, and folders above a file."""
MAX_PART_BYTES = 255

_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
"""Device names on Windows, with any extension."""


def describe_problem(name: object) -> str:
    """Return what is wrong with a file's name in an artifact, or "".

    A valid name is relative, has slashes between its parts, and means the same on every system, so it cannot lead out
    of the artifact's folder.
    """
    if not isinstance(name, str) or not name or not name.isprintable() or {"\\", ":"} & set(name):
        return "is empty, or has a backslash, a colon or a character that cannot be printed"
    parts = name.split("/")
    sizes = [len(part.encode()) for part in parts]  # printable text is always valid Unicode
    if sum(sizes) + len(parts) - 1 > MAX_BYTES or max(sizes) > MAX_PART_BYTES:
        return f"is longer than {MAX_BYTES} bytes, or one of its parts is longer than {MAX_PART_BYTES}"
    if len(parts) > MAX_FOLDERS + 1:
        return f"is below more than {MAX_FOLDERS} folders"
    if any(part in ("", ".", "..") for part in parts):
        return "is not relative, or leads out of its folder"
    if any(part != part.strip() or part.endswith(".") or _DEVICE.fullmatch(part) for part in parts):
        return "has a part that some systems cannot store under that name"
    return ""


def check_names(names: Iterable[object], where: str) -> None:
    """Raise a ValueError unless all these names are valid together in one folder."""
    listed = [*names]
    if len(listed) > MAX_FILES:
        raise RefusedError(f"{where} has {len(listed):,} files; the maximum is {MAX_FILES:,}. Create it again.")
    used = {above.casefold() for name in listed if isinstance(name, str) for above in _folders(name)}
    for number, name in enumerate(listed, 1):
        problem = describe_problem(name)
        if not problem and str(name).casefold() in used:
            problem = "is also the name of another file, or of a folder"
        if problem:  # an attacker may have chosen the name, so the message does not quote it
            raise RefusedError(
                f"{where} is refused: the name of file {number} of {len(listed)} {problem}. medloop writes no such "
                "names, so it was changed. Run again to create it again."
            )
        used.add(str(name).casefold())


def _folders(name: str) -> list[str]:
    parts = name.split("/", MAX_FOLDERS + 1)
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
