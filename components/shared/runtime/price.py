"""What a device costs: a price an hour, set by whoever asks, and no part of any work."""

from __future__ import annotations

import math
from dataclasses import dataclass

from components.shared import environment
from components.shared.errors import UsageError

PRICE = "MEDLOOP_DEVICE_PRICE"
"""The environment variable with the price of an hour of the machine that trains."""

CURRENCY = "MEDLOOP_CURRENCY"
"""The environment variable that names what the price is in."""


@dataclass(frozen=True)
class Price:
    """The price of an hour, and its currency, which may be empty."""

    hourly: float
    currency: str = ""

    def of(self, seconds: float) -> str:
        """What so much time costs, to the cent, or to three digits where it is less."""
        amount = self.hourly * seconds / 3600
        shown = f"{amount:.2f}" if amount >= 0.995 or not amount else f"{amount:.3g}"
        return f"{shown} {self.currency}".strip()

    def __str__(self) -> str:
        return f"{self.hourly:g} {self.currency}".strip() + " an hour"


def read_price() -> Price | None:
    """The price that the environment sets, or None where it sets none."""
    given = environment.get(PRICE).strip()
    if not given:
        return None
    try:
        hourly = float(given)
    except ValueError:
        hourly = math.nan
    if not 0 <= hourly < math.inf:
        raise UsageError(
            f"{PRICE} is {given!r}, and the price of an hour is a number from 0 on, like 2.5. Correct it, or unset it; "
            f"the currency goes into {CURRENCY}."
        )
    return Price(hourly, environment.get(CURRENCY).strip())
