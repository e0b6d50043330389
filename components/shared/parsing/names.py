"""Names of files that come from outside: which of them can be laid out in a folder on any system."""

from __future__ import annotations

import re
from collections.abc import Iterable

from components.shared.errors import RefusedError

MOST, LONGEST, DEEPEST = 100_000, 1024, 16
"""What an artifact may have at most: files, bytes in a file's name, and folders above a file."""
LONGEST_PART = 255

_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
"""Names that are devices on Windows, with any ending."""


def problem(name: object) -> str:
    """Return what is wrong with a file's name in an artifact, or nothing.

    A name is relative, with slashes between its parts, and means the same on every system: so it cannot lead out of the
    folder in which the artifact is laid out.
    """
    if not isinstance(name, str) or not name or not name.isprintable() or {"\\", ":"} & set(name):
        return "is empty, or has a backslash, a colon or a character that cannot be printed"
    parts = name.split("/")
    sizes = [len(part.encode()) for part in parts]  # printable text is always valid Unicode
    if sum(sizes) + len(parts) - 1 > LONGEST or max(sizes) > LONGEST_PART:
        return f"is longer than {LONGEST} bytes, or one of its parts is longer than {LONGEST_PART}"
    if len(parts) > DEEPEST + 1:
        return f"lies below more than {DEEPEST} folders"
    if any(part in ("", ".", "..") for part in parts):
        return "is not relative, or leads out of its folder"
    if any(part != part.strip() or part.endswith(".") or _DEVICE.fullmatch(part) for part in parts):
        return "has a part that some systems do not store under that name"
    return ""


def check(names: Iterable[object], where: str) -> None:
    """Raise a ValueError unless all these names can be laid out as files in one folder."""
    given = [*names]
    if len(given) > MOST:
        raise RefusedError(f"{where} names {len(given):,} files; at most {MOST:,} are allowed. Make it again.")
    taken = {above.casefold() for name in given if isinstance(name, str) for above in _folders(name)}
    for number, name in enumerate(given, 1):
        wrong = problem(name)
        if not wrong and str(name).casefold() in taken:
            wrong = "is also the name of another file, or of a folder"
        if wrong:  # the name itself is not repeated: whoever wrote it chose it
            raise RefusedError(
                f"{where} is refused: the name of file {number} of {len(given)} {wrong}. medloop writes no such names, "
                "so somebody changed it. Run again to make it anew."
            )
        taken.add(str(name).casefold())


def _folders(name: str) -> list[str]:
    parts = name.split("/", DEEPEST + 1)
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
