"""A copy of the release log in MLflow's model registry; it can be rebuilt from the log at any time.

The registry contains the released versions, and the model that awaits approval. Aliases: `champion` is in service,
`previous` is the version that a rollback would restore, `challenger` awaits approval.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components.shared import contracts, environment
from components.shared.ledger import release_log
from components.shared.ledger.release_log import Entry
from components.shared.storage.store import open_store

log = logging.getLogger("medloop")

NAME = "medloop"
CARD = "docs/README.md"
"""Name of the model card in its artifact."""
MAX_DESCRIPTION = 5000
"""Maximum number of characters of a description in MLflow's databases."""
AWAITING = "awaiting "
_TAGS = ("model", "decision", "report", "dataset", "split", "run", "precision", "policy", "code", "card", "signer")


def project(entries: list[Entry], store_uri: str, rebuild: bool = False) -> bool:
    """Update MLflow's versions and aliases from the log; return False if MLflow is not set or does not respond.

    With `rebuild`, also remove versions that are not in this store's log, and rewrite descriptions.
    """
    try:
        with _connect() as client:
            if client is None:
                return False
            _update(client, entries, store_uri, rebuild)
    except Exception as error:
        log.warning("registry not updated", extra={"fields": {"stage": "deploy", "why": str(error).split("\n")[0]}})
        return False
    return True


def remembered_head(store_uri: str) -> tuple[int, str] | None:
    """Return number and hash of the newest entry of a store's log at the last update of the registry, or None."""
    with _connect() as client:
        if client is None or not _exists(client):
            return None
        number, _, digest = client.get_registered_model(NAME).tags.get(_head_tag(store_uri), "").partition(" ")
        return (int(number), digest) if number.isdigit() else None


def _update(client: Any, entries: list[Entry], store_uri: str, rebuild: bool) -> None:
    if not _exists(client):
        client.create_registered_model(NAME)
    wanted = release_log.versions(entries)
    if waiting := release_log.waiting(entries):
        wanted[f"{AWAITING}{waiting.number}"] = waiting
    numbers = {}
    for version in client.search_model_versions(f"name='{NAME}'"):
        name, model = (version.tags.get(f"medloop.{tag}", "") for tag in ("version", "model"))
        if name in wanted and model == wanted[name].record["model"]:
            numbers[name] = version.version
            _set_tags(client, version, _tags(name, wanted[name], store_uri))
        elif version.tags.get("medloop.store", store_uri) == store_uri and (rebuild or name.startswith(AWAITING)):
            client.delete_model_version(NAME, version.version)
    for name, entry in wanted.items():
        new = name not in numbers
        if new:
            source = f"{store_uri.rstrip('/')}/objects/{entry.record['model'][:2]}/{entry.record['model']}"
            numbers[name] = client.create_model_version(NAME, source, tags=_tags(name, entry, store_uri)).version
        if (new or rebuild) and (text := read_card(entry, store_uri)):
            client.update_model_version(NAME, numbers[name], _shorten(text, entry.record["card"]))
    _set_aliases(client, entries, numbers)
    _remember(client, entries, store_uri)


def _set_aliases(client: Any, entries: list[Entry], numbers: dict[str, Any]) -> None:
    """Set the aliases, and remove those without a version."""
    stack, waiting = release_log.history(entries), release_log.waiting(entries)
    aliases = {"champion": stack[-1].version if stack else "", "previous": stack[-2].version if stack[1:] else ""}
    aliases["challenger"] = f"{AWAITING}{waiting.number}" if waiting else ""
    for alias, name in aliases.items():
        if name:
            client.set_registered_model_alias(NAME, alias, numbers[name])
        else:
            client.delete_registered_model_alias(NAME, alias)


def read_card(entry: Entry, store_uri: str) -> str:
    """Return the model card of a released version; "" if it has none, or the store has lost it."""
    if not entry.record.get("card"):
        return ""
    store = open_store(store_uri)
    try:
        manifest = contracts.Manifest.decode(store.get(entry.record["card"]), "the card")
        return store.get(manifest.files[CARD].digest).decode()
    except (OSError, ValueError, KeyError):
        return ""


def _tags(name: str, entry: Entry, store_uri: str) -> dict[str, str]:
    tags = {f"medloop.{key}": str(entry.record[key]) for key in _TAGS if entry.record.get(key)}
    state = "awaiting approval" if name.startswith(AWAITING) else "released"
    return {"medloop.version": name, "medloop.state": state, "medloop.store": store_uri, **tags}


def _set_tags(client: Any, version: Any, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(NAME, version.version, key, value)


def _remember(client: Any, entries: list[Entry], store_uri: str) -> None:
    """Store the log's head outside of the log, unless the log has lost the head that was stored before."""
    tag = _head_tag(store_uri)
    number, _, digest = client.get_registered_model(NAME).tags.get(tag, "").partition(" ")
    if number and not any(entry.hash == digest for entry in entries):
        why = f"entry {number} of the release log was changed or removed; run `medloop audit verify` for details"
        log.warning("head not remembered", extra={"fields": {"stage": "deploy", "why": why}})
    elif entries:
        client.set_registered_model_tag(NAME, tag, f"{len(entries)} {entries[-1].hash}")


def _head_tag(store_uri: str) -> str:
    return f"medloop.head.{contracts.digest(store_uri.encode())[:12]}"


def _shorten(text: str, digest: str) -> str:
    if len(text) <= MAX_DESCRIPTION:
        return text
    rest = f"\n\n… The complete card is in the store: {digest}"
    return text[: MAX_DESCRIPTION - len(rest)].rpartition("\n")[0] + rest


def _exists(client: Any) -> bool:
    return any(model.name == NAME for model in client.search_registered_models(f"name='{NAME}'"))


@contextmanager
def _connect() -> Iterator[Any]:
    """Yield a client of the tracking server, or None if none is set."""
    if not environment.get("MLFLOW_TRACKING_URI"):
        yield None
        return
    # Fail within seconds if the server does not respond; by default MLflow retries for four minutes.
    environment.set_default("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    environment.set_default("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's deprecations do not concern users
        from mlflow import MlflowClient

        yield MlflowClient()
