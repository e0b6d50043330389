"""The price of the training machine per hour, set in the environment. It does not affect any result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from components.shared import environment
from components.shared.errors import UsageError

PRICE = "MEDLOOP_DEVICE_PRICE"
"""Environment variable: price of the training machine per hour."""

CURRENCY = "MEDLOOP_CURRENCY"
"""Environment variable: currency of the price."""


@dataclass(frozen=True)
class Price:
    """A price per hour; the currency may be empty."""

    hourly: float
    currency: str = ""

    def of(self, seconds: float) -> str:
        """Return the price of this duration with two decimals, or three digits if it is less than 1."""
        amount = self.hourly * seconds / 3600
        shown = f"{amount:.2f}" if amount >= 0.995 or not amount else f"{amount:.3g}"
        return f"{shown} {self.currency}".strip()

    def __str__(self) -> str:
        return f"{self.hourly:g} {self.currency}".strip() + " an hour"


def read_price() -> Price | None:
    """Return the price from the environment, or None if it is not set."""
    text = environment.get(PRICE).strip()
    if not text:
        return None
    try:
        hourly = float(text)
    except ValueError:
        hourly = math.nan
    if not 0 <= hourly < math.inf:
        raise UsageError(
            f"{PRICE} is {text!r}; it must be a number of at least 0, such as 2.5. Correct it, or unset it. Set the "
            f"currency in {CURRENCY}."
        )
    return Price(hourly, environment.get(CURRENCY).strip())
