"""Backends of a store: their interface, and the backend in a directory."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from components.shared.errors import DamagedError

log = logging.getLogger("medloop.store")

PARTIAL = "partial"
"""Folder of files that are being written."""
PAUSE = 0.05
"""Seconds between the two halves of `SlowBytes` bytes."""
ABANDONED = 3600
"""Seconds after which a file that is being written counts as abandoned."""


class SlowBytes(bytes):
    """Bytes that a backend with a server sends in two halves, so that writing them takes a known time."""

    __slots__ = ()

    def halves(self) -> Iterator[bytes]:
        """Yield both halves, with a pause between them."""
        yield self[: len(self) // 2]
        time.sleep(PAUSE)
        yield self[len(self) // 2 :]


class Backend(Protocol):
    """Storage of named bytes. Names are relative, with slashes. `read` reads only the beginning beyond `limit`."""

    def read(self, name: str, limit: int | None = None) -> bytes | None: ...
    def write(self, name: str, data: bytes) -> None: ...
    def create(self, name: str, data: bytes) -> None: ...
    def delete(self, name: str) -> None: ...
    def purge(self, prefix: str) -> None: ...
    def names(self, prefix: str) -> list[str]: ...
    def size(self, name: str) -> int | None: ...
    def upload(self, name: str, path: Path) -> None: ...
    def download(self, name: str, path: Path) -> bool: ...
    def skew(self) -> float | None: ...
    def server(self) -> str: ...


class Directory:
    """A store in a directory. Writes are atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._group: int | None = None

    def group_permissions(self) -> int:
        """Return the group permissions of the root, which new files and folders get, too: usually none.

        A root that only its owner and group may enter (chmod 2770) is shared on purpose. A root that everybody may
        enter was created under a usual umask: if this user owns it, restrict it to the owner.
        """
        if self._group is None:
            status = self.root.stat()
            self._group = status.st_mode & (stat.S_ISGID | stat.S_IRWXG)
            if status.st_mode & stat.S_IRWXO and status.st_uid == os.geteuid():
                self._group = 0
                with contextlib.suppress(OSError):  # a file system without permissions
                    self.root.chmod(stat.S_IRWXU)
        return self._group

    def make_folder(self, folder: Path) -> None:
        """Create a folder of the store and its parents, accessible to the owner and the root's group only."""
        if folder.exists():
            return
        if folder == self.root:
            folder.mkdir(stat.S_IRWXU, parents=True, exist_ok=True)
            return
        self.make_folder(folder.parent)
        folder.mkdir(stat.S_IRWXU, exist_ok=True)
        if group := self.group_permissions():
            folder.chmod(stat.S_IRWXU | group)

    def _path(self, name: str) -> Path:
        """Return the path of a name; raise DamagedError if it is outside of the root."""
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise DamagedError(
                f"A name of {len(name)} characters in a record leads out of the store {self.root}. The record was "
                "changed; create it again."
            )
        return self.root / name

    def read(self, name: str, limit: int | None = None) -> bytes | None:
        path = self._path(name)
        try:
            _check_regular(path.stat().st_mode, path)
            # Non-blocking: a FIFO may have replaced the file in the meantime.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                _check_regular(os.fstat(file.fileno()).st_mode, path)
                return file.read(-1 if limit is None else limit + 1)
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        path = self._path(name)
        return path.stat().st_size if path.is_file() else None

    def skew(self) -> float | None:
        return None

    def server(self) -> str:
        return f"the file system of {self.root}"

    def write(self, name: str, data: bytes) -> None:
        self._place(name, lambda part: part.write_bytes(data), os.replace)

    def create(self, name: str, data: bytes) -> None:
        self._place(name, lambda part: part.write_bytes(data), os.link)  # fails if the name exists

    def upload(self, name: str, path: Path) -> None:
        def fill(part: Path) -> None:
            if path.parent == part.parent:
                os.link(path, part)  # from Store.making: complete, and not changed any more
            else:
                shutil.copyfile(path, part)

        self._place(name, fill, os.replace)

    def download(self, name: str, path: Path) -> bool:
        try:
            shutil.copyfile(self._path(name), path)
        except FileNotFoundError:
            return False
        return True

    def purge(self, prefix: str) -> None:
        """Do nothing: a directory has no old versions."""

    def delete(self, name: str) -> None:
        target = self._path(name)
        self.refuse_links(target)
        target.unlink(missing_ok=True)

    def refuse_links(self, target: Path) -> None:
        """Raise a PermissionError if a folder above `target` is a link: writes would go elsewhere."""
        if target.parent.resolve() != self.root.resolve() / target.parent.relative_to(self.root):
            raise PermissionError(
                errno.EPERM,
                f"A folder of the store {self.root} is a link; links are not followed when writing. Replace it by the "
                "folder, or mount that",
            )

    def names(self, prefix: str) -> list[str]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise PermissionError(
                    f"The store {self.root} cannot be read ({error.strerror}). Run as its owner, or share it with a "
                    "group: see docs/privacy.md."
                )

        paths = []
        for folder, folders, names in os.walk(self.root / prefix, onerror=refuse):
            # List a directory with a record's name, too: reading it then raises an error.
            names += [name for name in folders if name.endswith(".json")]
            folders[:] = [name for name in folders if not name.endswith(".json")]
            paths += [str((Path(folder) / name).relative_to(self.root)) for name in names]
        return paths

    def _place(self, name: str, fill: Callable[[Path], object], put: Callable[[Path, Path], None]) -> None:
        """Write a temporary file with `fill`, and `put` it under its name."""
        target = self._path(name)
        part = self.root / PARTIAL / secrets.token_hex(8)
        try:
            for path in (part, target):
                self.refuse_links(path)
                self.make_folder(path.parent)
            fill(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.chmod(stat.S_IRUSR | (self.group_permissions() & stat.S_IRGRP))
            put(part, target)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno == errno.EPERM and error.filename is None:
                raise  # from refuse_links
            raise type(error)(error.errno, unwritable(self.root, error)) from error
        finally:
            with contextlib.suppress(OSError):  # nothing was written to a read-only root
                part.unlink(missing_ok=True)


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _check_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise DamagedError(
            f"{path} is {kind}; it must be a file. Move it away; if it replaced a record, restore that from a copy."
        )


def unwritable(root: Path, error: OSError) -> str:
    """Return the message for a store that cannot be written."""
    if error.errno == errno.ENOSPC:
        return (
            f"The store {root} is full. Free space on its disk, or set MEDLOOP_STORE to another store; then run again"
        )
    return (
        f"The store {root} cannot be written ({error.strerror or error}). Make it writable for this user, "
        "or set MEDLOOP_STORE to another store"
    )
