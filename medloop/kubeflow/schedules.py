"""Schedules on a Kubeflow Pipelines server: create, replace and remove them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from components.shared.errors import RefusedError
from medloop.kubeflow.cron import Span
from medloop.kubeflow.server import Server
from medloop.kubeflow.submit import RunRequest, run_body
from workflows.package import oldest_server


def schedule(server: Server, request: RunRequest, spans: Sequence[Span]) -> list[dict[str, Any]]:
    """Create a schedule, replacing one of the same name, and return its parts.

    Its runs use the package compiled now, never overlap and are not caught up after a pause.
    """
    server.check(oldest_server(request.cluster))
    old = {str(part["recurring_run_id"]) for part in _parts_of(server, request.name)}
    body = run_body(server, request)
    try:
        parts = [_create_part(server, body, request.name, span) for span in spans]
    except (ValueError, OSError, LookupError):
        with contextlib.suppress(ValueError, OSError, LookupError):
            for part in _parts_of(server, request.name):  # includes parts whose response was lost
                if part["recurring_run_id"] not in old:  # remove an incomplete schedule and keep the old one
                    server.unschedule(str(part["recurring_run_id"]))
        raise
    for part_id in sorted(old):  # last, so that the old schedule stays valid after an error
        server.unschedule(part_id)
    return parts


def _create_part(server: Server, body: Mapping[str, Any], name: str, span: Span) -> dict[str, Any]:
    """Create the recurring run for the time between two clock changes, and return its description."""
    part = f" (until {span.end:%Y-%m-%d})" if span.end else f" (from {span.start:%Y-%m-%d})" if span.start else ""
    trigger: dict[str, Any] = {"cron": span.expression}
    trigger |= {"start_time": _timestamp(span.start)} if span.start else {}
    trigger |= {"end_time": _timestamp(span.end)} if span.end else {}
    recurring = {
        **body,
        "display_name": name + part,
        "description": _description(name),
        "trigger": {"cron_schedule": trigger},
        "max_concurrency": "1",
        "no_catchup": True,
        "mode": "ENABLE",
    }
    described = {"name": name + part, "cron": span.expression, "start": span.start, "end": span.end}
    return {**described, "id": server.schedule(recurring)}


def unschedule(server: Server, name: str) -> int:
    """Remove a schedule and return the number of its parts. Active runs continue."""
    parts = _parts_of(server, name)
    if not parts:
        names = sorted({str(part["display_name"]) for part in server.schedules()})
        raise RefusedError(f"There is no schedule {name!r}. Existing schedules: {', '.join(names) or 'none'}.")
    for part in parts:
        server.unschedule(str(part["recurring_run_id"]))
    return len(parts)


def _parts_of(server: Server, name: str) -> list[dict[str, Any]]:
    return [part for part in server.schedules() if part.get("description") == _description(name)]


def _description(name: str) -> str:
    """Return the description by which medloop finds its recurring runs again."""
    return f"medloop schedule {name}"


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
