"""What was released, and the two ways to put an earlier version back into service."""

from __future__ import annotations

import getpass
from typing import Any

from components.shared import environment
from components.shared.contracts import Manifest
from components.shared.errors import RefusedError, UsageError
from components.shared.figures import FIGURES, KEY
from components.shared.ledger import release_log
from components.shared.ledger.release_log import Entry
from components.shared.parsing.json_documents import parse_json
from components.shared.privacy.redaction import printable
from components.shared.runtime.interface import nearest
from components.shared.storage.store import Store
from medloop.settings import Settings


def figures(store: Store, entry: Entry) -> dict[str, Any]:
    """What the report of an entry shows: its figures with their intervals, on how many; nothing where it is gone."""
    try:
        manifest = Manifest.decode(store.get(entry.record["report"]), "the report")
        metrics = parse_json(store.get(manifest.files["metrics.json"].digest))
        whole = metrics["all"]
        about = {name: whole.get(name) for name in ("images", "patients")}
        shown = {name: whole["figures"][name] for name in KEY if whole["figures"].get(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {**about, "confidence": metrics.get("confidence"), "figures": shown}


def told(found: dict[str, Any]) -> str:
    """Figures in one line; nothing where there are none."""
    if not found:
        return ""
    words = []
    for name, figure in found["figures"].items():
        low, high = figure.get("low"), figure.get("high")
        interval = f" ({low:.3f} – {high:.3f})" if low is not None and high is not None else ""
        words.append(f"{FIGURES[name].phrase} {figure['value']:.3f}{interval}")
    return f"{', '.join(words)}; {found['images']} test images of {found['patients']} patients"


def line(entry: Entry, service: Entry | None) -> str:
    """An entry of the log as a list shows it: what happened when, to what, by whom, and why."""
    record = entry.record
    mark = "●" if service and entry.number == service.number else " "
    when = record["at"].replace("T", " ")[:16]
    about = f"model {record['model'][:12]}  " if "model" in record else ""
    about += f"key {record['key_id']}  " if entry.kind == "rotation" else ""
    signed = f"  signed {record['signer']}" if "signer" in record else ""
    first = f"{mark} {entry.version or '–':5} {entry.kind:10} {when}  {about}by {record.get('by', '–')}{signed}"
    return f"{printable(first)}\n        {printable(str(record.get('reason') or record.get('sentence', '')))}"


def known(store: Store, version: str) -> Entry:
    """The entry that released a version, or a ValueError that names the nearest."""
    released = release_log.versions(release_log.read_log(store))
    if version not in released:
        raise RefusedError(
            f"There is no released version {version!r}.{nearest(version, released)} "
            f"Released ones: {', '.join(released) or 'none yet'}."
        )
    return released[version]


def card(store: Store, version: str) -> str:
    """The card of a released version."""
    from components.shared.ledger.model_registry import read_card as read

    words = read(known(store, version), store.uri)
    if not words:
        raise FileNotFoundError(f"{version} has no card: it was released before there were any, or it was removed.")
    return words


def rebuild(settings: Settings, store: Store) -> str:
    """Draw MLflow's registry anew from the release log; gives the sentence that says so."""
    log = release_log.read_log(store)
    environment.set_default("MLFLOW_TRACKING_URI", settings.tracking)
    from components.shared.ledger.model_registry import NAME, project

    if not project(log, store.uri, rebuild=True):
        raise ConnectionError(
            f"The registry at {settings.tracking_shown} was not drawn: it does not answer, or refuses. The release log "
            "is complete without it; try again when it answers."
        )
    service, count = release_log.in_service(log), len(release_log.versions(log))
    return (
        f"The model {NAME!r} at {settings.tracking_shown} has the {count} version{'s' * (count != 1)} of the release "
        f"log; champion: {service.version if service else 'none'}."
    )


def draw_what_waits(settings: Settings, store: Store) -> None:
    """Let the registry name the model that waits for a person's approval, or no more; where none ever did, do nothing.

    The step that writes down that a model waits has no client of the registry.
    """
    log = release_log.read_log(store)
    if any(entry.kind == "awaiting" for entry in log):
        environment.set_default("MLFLOW_TRACKING_URI", settings.tracking)
        from components.shared.ledger.model_registry import project

        project(log, store.uri)


def promote(settings: Settings, store: Store, version: str, reason: str) -> str:
    """Put a version that was released before into service again; gives the sentence that says so."""
    log = release_log.read_log(store)
    known = release_log.versions(log)
    if version not in known:
        raise RefusedError(
            f"There is no released version {version!r}.{nearest(version, known)} "
            f"Released ones: {', '.join(known) or 'none yet'}. A refused model cannot be promoted."
        )
    service = release_log.in_service(log)
    if service and service.version == version:
        return f"{version} is in service already. Nothing was changed."
    _append(settings, store, log, "promotion", known[version], reason)
    return f"{version} is in service again{_instead(service)}."


def rollback(settings: Settings, store: Store, reason: str) -> str:
    """Put back what was in service before the present version; gives the sentence that says so."""
    log = release_log.read_log(store)
    stack = release_log.history(log)
    if not stack:
        raise RefusedError("Nothing is in service, so there is nothing to roll back.")
    if len(stack) < 2:
        raise RefusedError(
            f"Nothing was in service before {stack[-1].version} that was not taken back, so there is none to go back "
            "to. A version that was taken back comes again with: medloop promote VERSION --reason WHY"
        )
    _append(settings, store, log, "rollback", stack[-2], reason)
    return f"{stack[-2].version} is in service again{_instead(stack[-1])}."


def _instead(entry: release_log.Entry | None) -> str:
    return f", in place of {entry.version}" if entry else ""


def _append(
    settings: Settings, store: Store, log: list[release_log.Entry], what: str, target: release_log.Entry, reason: str
) -> None:
    if not reason.strip():
        raise UsageError("A change of what is in service needs a reason. Give one with --reason.")
    store.require_create_once()
    fields = {name: target.record[name] for name in ("version", "model", "runtime", "precision")}
    release_log.append(
        store, log, what, **fields, reason=reason, by=getpass.getuser(), run=target.record.get("run", "")
    )
    environment.set_default("MLFLOW_TRACKING_URI", settings.tracking)
    from components.shared.ledger.model_registry import project

    project(release_log.read_log(store), store.uri)
