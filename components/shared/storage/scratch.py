"""A store that reads what is there and writes elsewhere: for looking at a step again without changing anything."""

from __future__ import annotations

import errno
from pathlib import Path

from components.shared.storage.directory import Backend

VARIABLE = "MEDLOOP_SCRATCH"
"""The environment variable that names the directory into which everything is written; steps then always run again."""

GONE = "gone"


class Scratch:
    """Reads from `over`, then from `under`; writes only into `over`."""

    def __init__(self, under: Backend, over: Backend) -> None:
        self.under, self.over = under, over

    def read(self, name: str, limit: int | None = None) -> bytes | None:
        return self._where(name).read(name, limit)

    def size(self, name: str) -> int | None:
        return self._where(name).size(name)

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
            self.over.write(f"{GONE}/{name}", b"")

    def names(self, prefix: str) -> list[str]:
        gone = {name.removeprefix(f"{GONE}/") for name in self.over.names(f"{GONE}/{prefix}")}
        ours = {name for name in self.over.names(prefix) if not name.startswith(f"{GONE}/")}
        return sorted({*ours, *(set(self.under.names(prefix)) - gone)})

    def upload(self, name: str, path: Path) -> None:
        self.over.upload(name, path)

    def download(self, name: str, path: Path) -> bool:
        return self._where(name).download(name, path)

    def _where(self, name: str) -> Backend:
        changed = any(self.over.size(each) is not None for each in (name, f"{GONE}/{name}"))
        return self.over if changed else self.under
