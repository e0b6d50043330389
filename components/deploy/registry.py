"""MLflow's model registry as a picture of the release log: it can be drawn again from the log at any time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components.shared import releases
from components.shared.work import log

NAME = "medloop"


def project(entries: list[releases.Entry], store_uri: str) -> bool:
    """Make MLflow's versions and aliases say what the log says. False where MLflow is not set or does not answer."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return False
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing about a hospital's releases goes elsewhere
    # A server that is not there is given up in seconds; MLflow by itself goes on asking for four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        with _quiet():
            from mlflow import MlflowClient

            _draw(MlflowClient(), entries, store_uri)
    except Exception as error:
        log.warning("registry not updated", extra={"fields": {"stage": "deploy", "why": str(error).split("\n")[0]}})
        return False
    return True


def _draw(client: Any, entries: list[releases.Entry], store_uri: str) -> None:
    if not any(model.name == NAME for model in client.search_registered_models(f"name='{NAME}'")):
        client.create_registered_model(NAME)
    numbers = {
        found.tags.get("medloop.version"): found.version for found in client.search_model_versions(f"name='{NAME}'")
    }
    for version, entry in releases.versions(entries).items():
        if version not in numbers:
            tags = {"medloop.version": version}
            tags |= {f"medloop.{key}": str(entry.record.get(key, "")) for key in _TAGS}
            source = f"{store_uri.rstrip('/')}/objects/{entry.record['model'][:2]}/{entry.record['model']}"
            numbers[version] = client.create_model_version(NAME, source, tags=tags).version
    stack = releases.history(entries)
    for alias, place in (("champion", -1), ("previous", -2)):
        if len(stack) >= -place:
            client.set_registered_model_alias(NAME, alias, numbers[stack[place].version])
        else:
            client.delete_registered_model_alias(NAME, alias)


_TAGS = ("model", "decision", "report", "dataset", "split", "run", "precision")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow deprecates is not this user's concern
        yield
