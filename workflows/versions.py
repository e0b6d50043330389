"""What was released, and the two ways to put an earlier version back into service."""

from __future__ import annotations

import getpass
import os

from components.shared import releases
from components.shared.interface import nearest
from components.shared.store import Store
from workflows.settings import Settings


def promote(settings: Settings, store: Store, version: str, reason: str) -> str:
    """Put a version that was released before into service again; gives the sentence that says so."""
    log = releases.read_log(store)
    known = releases.versions(log)
    if version not in known:
        raise ValueError(
            f"There is no released version {version!r}.{nearest(version, known)} "
            f"Released ones: {', '.join(known) or 'none yet'}. A refused model cannot be promoted."
        )
    service = releases.in_service(log)
    if service and service.version == version:
        return f"{version} is in service already. Nothing was changed."
    _append(settings, store, log, "promotion", known[version], reason)
    return f"{version} is in service again{_instead(service)}."


def rollback(settings: Settings, store: Store, reason: str) -> str:
    """Put back what was in service before the present version; gives the sentence that says so."""
    log = releases.read_log(store)
    stack = releases.history(log)
    if not stack:
        raise ValueError("Nothing is in service, so there is nothing to roll back.")
    if len(stack) < 2:
        raise ValueError(
            f"Nothing was in service before {stack[-1].version} that was not taken back, so there is none to go back "
            "to. A version that was taken back comes again with: medloop promote VERSION --reason WHY"
        )
    _append(settings, store, log, "rollback", stack[-2], reason)
    return f"{stack[-2].version} is in service again{_instead(stack[-1])}."


def _instead(entry: releases.Entry | None) -> str:
    return f", in place of {entry.version}" if entry else ""


def _append(
    settings: Settings, store: Store, log: list[releases.Entry], what: str, target: releases.Entry, reason: str
) -> None:
    if not reason.strip():
        raise ValueError("A change of what is in service needs a reason. Give one with --reason.")
    if not store.creates_once():
        raise RuntimeError(
            f"The store {store.uri} overwrites records that must be created once. Use one that does not."
        )
    fields = {name: target.record[name] for name in ("version", "model", "runtime", "precision")}
    releases.append(store, log, what, **fields, reason=reason, by=getpass.getuser(), run=target.record.get("run", ""))
    os.environ.setdefault("MLFLOW_TRACKING_URI", settings.tracking)
    from components.deploy.registry import project

    project(releases.read_log(store), store.uri)
