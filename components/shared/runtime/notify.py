"""Notifications of the outcome of a run."""

from __future__ import annotations

import logging
from typing import Any

import urllib3

from components.shared import environment
from components.shared.errors import RefusedError

VARIABLE = "MEDLOOP_NOTIFY_URL"
log = logging.getLogger("medloop")


def notify(message: dict[str, Any]) -> bool:
    """Post a JSON message to MEDLOOP_NOTIFY_URL, if set. Delivery failures are logged and ignored."""
    url = environment.get(VARIABLE)
    if not url:
        return False
    try:
        if not url.startswith(("http://", "https://")):
            raise RefusedError("it must begin with http:// or https://")
        answer = urllib3.request("POST", url, json=message, timeout=10, retries=False)
    except urllib3.exceptions.LocationValueError:  # its text contains the URL
        why = f"{VARIABLE} is not a valid URL: it cannot be parsed."
    except ValueError as error:
        why = f"{VARIABLE} is not a valid URL: {error}."
    except urllib3.exceptions.HTTPError as error:
        why = f"the receiver does not respond ({type(error).__name__})"
    else:
        if answer.status >= 300:
            why = f"the receiver responded with status {answer.status}"
            log.warning("notification not taken", extra={"fields": {"why": why}})
        return answer.status < 300
    log.warning("notification not delivered", extra={"fields": {"why": why}})
    return False
