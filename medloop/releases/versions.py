"""Released versions: list them, print model cards, promote and roll back."""

from __future__ import annotations

import getpass
from typing import Any

from components.shared import environment
from components.shared.contracts import Manifest
from components.shared.errors import RefusedError, UsageError
from components.shared.ledger import release_log
from components.shared.ledger.release_log import Entry
from components.shared.metric_catalogue import FIGURES, KEY
from components.shared.parsing.json_documents import parse_json
from components.shared.privacy.secret_redaction import printable
from components.shared.storage.store import Store
from medloop.settings import Settings


def figures(store: Store, entry: Entry) -> dict[str, Any]:
    """Return the key figures in the report of an entry, with intervals and counts; {} if the report is missing."""
    try:
        manifest = Manifest.decode(store.get(entry.record["report"]), "the report")
        metrics = parse_json(store.get(manifest.files["metrics.json"].digest))
        population = metrics["all"]
        counts = {name: population.get(name) for name in ("images", "patients")}
        values = {name: population["figures"][name] for name in KEY if population["figures"].get(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {**counts, "confidence": metrics.get("confidence"), "figures": values}


def describe_figures(summary: dict[str, Any]) -> str:
    """Return the result of `figures` on one line, or ""."""
    if not summary:
        return ""
    words = []
    for name, figure in summary["figures"].items():
        low, high = figure.get("low"), figure.get("high")
        interval = f" ({low:.3f} – {high:.3f})" if low is not None and high is not None else ""
        words.append(f"{FIGURES[name].phrase} {figure['value']:.3f}{interval}")
    return f"{', '.join(words)}; {summary['images']} test images of {summary['patients']} patients"


def describe_entry(entry: Entry, current: bool) -> str:
    """Return a log entry as two lines of text; the entry that led to the model in service has a mark."""
    record = entry.record
    mark = "●" if current else " "
    when = record["at"].replace("T", " ")[:16]
    subject = f"model {record['model'][:12]}  " if "model" in record else ""
    subject += f"key {record['key_id']}  " if entry.kind == "rotation" else ""
    signed = f"  signed {record['signer']}" if "signer" in record else ""
    first = f"{mark} {entry.version or '–':5} {entry.kind:10} {when}  {subject}by {record.get('by', '–')}{signed}"
    return f"{printable(first)}\n        {printable(str(record.get('reason') or record.get('sentence', '')))}"


def find_version(log: list[Entry], version: str) -> Entry:
    """Return the entry that released a version; raise RefusedError if there is none."""
    released = release_log.versions(log)
    if version not in released:
        raise RefusedError(
            f"There is no released version {version!r}. "
            f"Released versions: {', '.join(released) or 'none'}. Refused models have no version."
        )
    return released[version]


def card(store: Store, version: str) -> str:
    """Return the model card of a released version."""
    from components.shared.ledger.model_registry import read_card as read

    text = read(find_version(release_log.read_log(store), version), store.uri)
    if not text:
        raise FileNotFoundError(f"{version} has no card: an early version of medloop released it, or it was removed.")
    return text


def rebuild(settings: Settings, store: Store) -> str:
    """Rebuild MLflow's model registry from the release log, and return a sentence about it."""
    log = release_log.read_log(store)
    environment.set_default("MLFLOW_TRACKING_URI", settings.tracking)
    from components.shared.ledger.model_registry import NAME, project

    if not project(log, store.uri, rebuild=True):
        raise ConnectionError(
            f"The registry at {settings.tracking_shown} was not rebuilt: it does not respond, or refuses. The release "
            "log is complete without it. Try again later."
        )
    service, count = release_log.in_service(log), len(release_log.versions(log))
    return (
        f"The model {NAME!r} at {settings.tracking_shown} has the {count} version{'s' * (count != 1)} of the release "
        f"log; champion: {service.version if service else 'none'}."
    )


def sync_awaiting(settings: Settings, store: Store) -> None:
    """Update the registry's alias for the model that awaits approval.

    The stage that records a model as awaiting approval has no client of the registry.
    """
    log = release_log.read_log(store)
    if any(entry.kind == "awaiting" for entry in log):
        _sync_registry(settings, store, log)


def promote(settings: Settings, store: Store, version: str, reason: str) -> str:
    """Put an earlier version back into service, and return a sentence about it."""
    log = release_log.read_log(store)
    target = find_version(log, version)
    service = release_log.in_service(log)
    if service and service.version == version:
        return f"{version} is already in service. Nothing was changed."
    _append(settings, store, log, "promotion", target, reason)
    return f"{version} is in service again{f', instead of {service.version}' if service else ''}."


def rollback(settings: Settings, store: Store, reason: str) -> str:
    """Put the previous version back into service, and return a sentence about it."""
    log = release_log.read_log(store)
    stack = release_log.history(log)
    if not stack:
        raise RefusedError("No model is in service, so there is nothing to roll back.")
    if len(stack) < 2:
        raise RefusedError(
            f"There is no version before {stack[-1].version} to roll back to, apart from versions that were rolled "
            "back themselves. To use one of those: medloop promote VERSION --reason WHY"
        )
    _append(settings, store, log, "rollback", stack[-2], reason)
    return f"{stack[-2].version} is in service again, instead of {stack[-1].version}."


def _append(settings: Settings, store: Store, log: list[Entry], kind: str, target: Entry, reason: str) -> None:
    if not reason.strip():
        raise UsageError("A change of the model in service needs a reason. Give one with --reason.")
    store.require_create_once()
    fields = {name: target.record[name] for name in ("version", "model", "runtime", "precision")}
    release_log.append(
        store, log, kind, **fields, reason=reason, by=getpass.getuser(), run=target.record.get("run", "")
    )
    _sync_registry(settings, store, release_log.read_log(store))


def _sync_registry(settings: Settings, store: Store, log: list[Entry]) -> None:
    environment.set_default("MLFLOW_TRACKING_URI", settings.tracking)
    from components.shared.ledger.model_registry import project

    project(log, store.uri)
