"""MLflow's model registry as a picture of the release log: it can be drawn again from the log at any time.

Its versions are the released ones, and the one that waits for a person's approval, as long as it waits. Aliases:
`champion` is in service, `previous` is what a rollback would bring back, `challenger` is the one that waits.
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
"""Where in its artifact a released version's card lies."""
DESCRIPTION = 5000
"""How many characters a description may have in MLflow's databases."""
WAITS = "awaiting "
_TAGS = ("model", "decision", "report", "dataset", "split", "run", "precision", "policy", "code", "card", "signer")


def project(entries: list[Entry], store_uri: str, rebuild: bool = False) -> bool:
    """Make MLflow's versions and aliases say what the log says. False where MLflow is not set or does not answer.

    With `rebuild` versions are removed that the log of this store does not know, and descriptions written anew.
    """
    try:
        with _asking() as client:
            if client is None:
                return False
            _draw(client, entries, store_uri, rebuild)
    except Exception as error:
        log.warning("registry not updated", extra={"fields": {"stage": "deploy", "why": str(error).split("\n")[0]}})
        return False
    return True


def remembered(store_uri: str) -> tuple[int, str] | None:
    """The number and hash of the newest entry of a store's log when the registry was last drawn, or None."""
    with _asking() as client:
        if client is None or not _there(client):
            return None
        number, _, digest = client.get_registered_model(NAME).tags.get(_head_tag(store_uri), "").partition(" ")
        return (int(number), digest) if number.isdigit() else None


def _draw(client: Any, entries: list[Entry], store_uri: str, rebuild: bool) -> None:
    if not _there(client):
        client.create_registered_model(NAME)
    wanted = release_log.versions(entries)
    waiting = release_log.waiting(entries)
    if waiting:
        wanted[f"{WAITS}{waiting.number}"] = waiting
    numbers = {}
    for found in client.search_model_versions(f"name='{NAME}'"):
        name, model = (found.tags.get(f"medloop.{tag}", "") for tag in ("version", "model"))
        if name in wanted and model == wanted[name].record["model"]:
            numbers[name] = found.version
            _mend(client, found, _tags(name, wanted[name], store_uri))
        elif found.tags.get("medloop.store", store_uri) == store_uri and (rebuild or name.startswith(WAITS)):
            client.delete_model_version(NAME, found.version)
    for name, entry in wanted.items():
        new = name not in numbers
        if new:
            source = f"{store_uri.rstrip('/')}/objects/{entry.record['model'][:2]}/{entry.record['model']}"
            numbers[name] = client.create_model_version(NAME, source, tags=_tags(name, entry, store_uri)).version
        if (new or rebuild) and (words := card(entry, store_uri)):
            client.update_model_version(NAME, numbers[name], _shortened(words, entry.record["card"]))
    _name(client, entries, numbers)
    _remember(client, entries, store_uri)


def _name(client: Any, entries: list[Entry], numbers: dict[str, Any]) -> None:
    """Set the aliases; one that has nothing to name is removed."""
    stack, waiting = release_log.history(entries), release_log.waiting(entries)
    aliases = {"champion": stack[-1].version if stack else "", "previous": stack[-2].version if stack[1:] else ""}
    aliases["challenger"] = f"{WAITS}{waiting.number}" if waiting else ""
    for alias, name in aliases.items():
        if name:
            client.set_registered_model_alias(NAME, alias, numbers[name])
        else:
            client.delete_registered_model_alias(NAME, alias)


def card(entry: Entry, store_uri: str) -> str:
    """The card of a released version; nothing where its entry names none, or the store has it no more."""
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
    state = "awaiting approval" if name.startswith(WAITS) else "released"
    return {"medloop.version": name, "medloop.state": state, "medloop.store": store_uri, **tags}


def _mend(client: Any, found: Any, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        if found.tags.get(key) != value:
            client.set_model_version_tag(NAME, found.version, key, value)


def _remember(client: Any, entries: list[Entry], store_uri: str) -> None:
    """Write down the log's head, where the log is not; a log that has lost the one written down changes nothing."""
    tag = _head_tag(store_uri)
    number, _, before = client.get_registered_model(NAME).tags.get(tag, "").partition(" ")
    if number and not any(entry.hash == before for entry in entries):
        why = f"the release log no longer holds entry {number} as it was; `medloop audit verify` tells more"
        log.warning("head not remembered", extra={"fields": {"stage": "deploy", "why": why}})
    elif entries:
        client.set_registered_model_tag(NAME, tag, f"{len(entries)} {entries[-1].hash}")


def _head_tag(store_uri: str) -> str:
    return f"medloop.head.{contracts.digest(store_uri.encode())[:12]}"


def _shortened(words: str, digest: str) -> str:
    """The card as far as a description may be long."""
    if len(words) <= DESCRIPTION:
        return words
    rest = f"\n\n… The whole card is in the store: {digest}"
    return words[: DESCRIPTION - len(rest)].rpartition("\n")[0] + rest


def _there(client: Any) -> bool:
    return any(model.name == NAME for model in client.search_registered_models(f"name='{NAME}'"))


@contextmanager
def _asking() -> Iterator[Any]:
    """A client of the tracking server, or None where none is set."""
    if not environment.get("MLFLOW_TRACKING_URI"):
        yield None
        return
    # A server that is not there is given up in seconds; MLflow by itself goes on asking for four minutes.
    environment.set_default("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    environment.set_default("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow deprecates is not this user's concern
        from mlflow import MlflowClient

        yield MlflowClient()
