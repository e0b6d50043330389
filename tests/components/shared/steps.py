"""Runs a stage as the loop does: by manifests, through the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.shared.contracts import Manifest
from components.shared.runtime import work
from components.shared.storage import artifacts
from components.shared.storage.store import Store, open_store


def manifest(store: Store, folder: Path) -> Path:
    """The manifest file of a directory's files, which are kept in the store."""
    return store.fetch(artifacts.gather(store, folder).digest)


def nothing(store: Store) -> Path:
    """The manifest file of an artifact that is not there."""
    return store.fetch(store.put_bytes(Manifest().encode()).digest)


def step(stage: str, store: Store, inputs: dict[str, Path], **parameters: Any) -> work.Result:
    """Do a stage's work; `inputs` are directories, or manifests of the store."""
    files = {name: manifest(store, path) if path.is_dir() else path for name, path in inputs.items()}
    return work.step(stage, store.uri, files, parameters)


def output(store: Store, done: work.Result, name: str) -> Path:
    """The manifest file of an output."""
    return store.fetch(done.outputs[name].digest)


def laid_out(store: Store, done: work.Result, name: str, folder: Path) -> Path:
    """A directory with the files of an output."""
    artifacts.lay_out(store, done.outputs[name], folder)
    return folder


def contents(uri: str, found: Manifest) -> dict[str, bytes]:
    """Every file of an artifact."""
    return {name: open_store(uri).get(blob.digest) for name, blob in found.files.items()}


def remove(store: Store, digest: str) -> None:
    """Lose an object of a store that is a directory."""
    (Path(store.uri) / "objects" / digest[:2] / digest).unlink()
