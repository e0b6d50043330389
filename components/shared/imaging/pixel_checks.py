"""Checks of an image's decoded pixels: too small, blank, or of low contrast."""

from __future__ import annotations

from components.shared.errors import RefusedError
from components.shared.imaging.views import Pixels

MIN_SIDE = 8
SMALL_SIDE = 64
"""An image with a shorter side gets a warning."""
MIN_SPAN_FRACTION = 16
"""An image whose values span less than 1/16 of their range gets a warning."""
BLANK = "the image is blank: every pixel has the same value"


def check_pixels(pixels: Pixels, width: int, height: int) -> list[tuple[str, str]] | None:
    """Return warnings about an image of this original size, None if it is blank; refuse one that is too small."""
    if min(height, width) < MIN_SIDE:
        raise RefusedError(f"the image has {width}×{height} pixels; it must have at least {MIN_SIDE}×{MIN_SIDE}")
    low, high, top = int(pixels.min()), int(pixels.max()), 256**pixels.dtype.itemsize - 1
    if low == high:
        return None
    warnings = []
    if min(height, width) < SMALL_SIDE:
        warnings.append(("small", f"it has {width}×{height} pixels; below {SMALL_SIDE}×{SMALL_SIDE} little is visible"))
    if (high - low) * MIN_SPAN_FRACTION < top:
        warnings.append(("low contrast", f"its values span {(high - low) / top:.1%} of their range; a window may help"))
    return warnings
