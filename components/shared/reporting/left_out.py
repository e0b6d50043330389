"""The sentence about images that were left out on request, which is not the same as being quarantined."""

from __future__ import annotations

from collections.abc import Mapping

UNUSED = "unused"
"""Images that the split does not use: a copy is in another split, or the patient withdrew consent."""


def left_out(counts: Mapping[str, int]) -> str:
    """Return how many images the options of ingest leave out, by option; "" if there are none."""
    total = sum(counts.values())
    if not total:
        return ""
    if len(counts) == 1:
        return f"{total:,} left out by request ({next(iter(counts))})"
    return f"{total:,} left out by request ({', '.join(f'{number:,} {why}' for why, number in counts.items())})"
