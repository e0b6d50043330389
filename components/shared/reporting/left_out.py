"""Images that do not take part without being set aside: in words that tell those left out as asked from the rest."""

from __future__ import annotations

from collections.abc import Mapping

UNUSED = "unused"
"""What the split does not use, for the sake of a copy on another side or of a patient who withdrew."""


def left_out(counts: Mapping[str, int]) -> str:
    """How many images the options of ingest leave out, with which one how many; "" where there are none."""
    total = sum(counts.values())
    if not total:
        return ""
    if len(counts) == 1:
        return f"{total:,} left out as asked ({next(iter(counts))})"
    return f"{total:,} left out as asked ({', '.join(f'{number:,} {why}' for why, number in counts.items())})"
