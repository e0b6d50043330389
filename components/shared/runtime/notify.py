"""Tells the outside world how a run ended, where an address for that is set."""

from __future__ import annotations

import logging
from typing import Any

import urllib3

from components.shared import environment
from components.shared.errors import RefusedError

VARIABLE = "MEDLOOP_NOTIFY_URL"
log = logging.getLogger("medloop")


def notify(message: dict[str, Any]) -> bool:
    """Post a JSON message to MEDLOOP_NOTIFY_URL, if set. A deaf receiver is logged, and stops nothing."""
    url = environment.get(VARIABLE)
    if not url:
        return False
    try:
        if not url.startswith(("http://", "https://")):
            raise RefusedError("it must begin with http:// or https://")
        answer = urllib3.request("POST", url, json=message, timeout=10, retries=False)
    except (urllib3.exceptions.LocationValueError, ValueError) as error:  # the first quotes the address
        why = "it cannot be parsed" if isinstance(error, urllib3.exceptions.LocationValueError) else str(error)
        log.warning("notification not delivered", extra={"fields": {"why": f"{VARIABLE} is no address: {why}."}})
        return False
    except urllib3.exceptions.HTTPError as error:
        why = f"the receiver does not answer ({type(error).__name__})"
        log.warning("notification not delivered", extra={"fields": {"why": why}})
        return False
    if answer.status >= 300:
        log.warning("notification not taken", extra={"fields": {"why": f"the receiver answered {answer.status}"}})
    return answer.status < 300
