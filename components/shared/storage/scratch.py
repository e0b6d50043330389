"""A store that writes to another directory: for repeating a step without changing the store."""

from __future__ import annotations

import errno
from pathlib import Path

from components.shared.storage.directory import Backend

VARIABLE = "MEDLOOP_SCRATCH"
"""Environment variable: directory for all writes; steps then always run again."""

DELETED = "gone"
"""Folder that marks deleted names."""


class Scratch:
    """Reads from `over`, then from `under`; writes only into `over`."""

    def __init__(self, under: Backend, over: Backend) -> None:
        self.under, self.over = under, over

    def read(self, name: str, limit: int | None = None) -> bytes | None:
        return self._backend(name).read(name, limit)

    def size(self, name: str) -> int | None:
        return self._backend(name).size(name)

    def skew(self) -> float | None:
        return self.under.skew()

    def server(self) -> str:
        return self.over.server()

    def write(self, name: str, data: bytes) -> None:
        self.over.write(name, data)

    def create(self, name: str, data: bytes) -> None:
        if self.size(name) is not None:
            raise FileExistsError(errno.EEXIST, "was created before", name)
        self.over.create(name, data)

    def purge(self, prefix: str) -> None:
        self.over.purge(prefix)

    def delete(self, name: str) -> None:
        self.over.delete(name)
        if self.under.size(name) is not None:
            self.over.write(f"{DELETED}/{name}", b"")

    def names(self, prefix: str) -> list[str]:
        deleted = {name.removeprefix(f"{DELETED}/") for name in self.over.names(f"{DELETED}/{prefix}")}
        written = {name for name in self.over.names(prefix) if not name.startswith(f"{DELETED}/")}
        return sorted({*written, *(set(self.under.names(prefix)) - deleted)})

    def upload(self, name: str, path: Path) -> None:
        self.over.upload(name, path)

    def download(self, name: str, path: Path) -> bool:
        return self._backend(name).download(name, path)

    def _backend(self, name: str) -> Backend:
        changed = any(self.over.size(path) is not None for path in (name, f"{DELETED}/{name}"))
        return self.over if changed else self.under
