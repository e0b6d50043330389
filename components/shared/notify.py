"""Tells the outside world how a run ended, where an address for that is set."""

from __future__ import annotations

import json
import logging
import os
import urllib.request
from typing import Any

VARIABLE = "MEDLOOP_NOTIFY_URL"
log = logging.getLogger("medloop")


def notify(message: dict[str, Any]) -> bool:
    """Post a JSON message to MEDLOOP_NOTIFY_URL, if set. A deaf receiver is logged, and stops nothing."""
    url = os.environ.get(VARIABLE)
    if not url:
        return False
    try:
        request = urllib.request.Request(url, json.dumps(message).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10):
            return True
    except (OSError, ValueError) as error:
        log.warning("notification not delivered", extra={"fields": {"why": str(error)}})
        return False
