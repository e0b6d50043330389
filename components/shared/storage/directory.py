"""What keeps a store's bytes: the operations of a backend, and the backend in a directory."""

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
"""Where files of a directory's store lie while they are written."""
PAUSE = 0.05
"""Seconds for which the second half of `Paused` bytes is held back."""
ABANDONED = 3600
"""Seconds after which nobody writes any more to a file that was not touched."""


class Paused(bytes):
    """Bytes that a backend with a server sends in two halves, so that it takes a known time to write them."""

    __slots__ = ()

    def halves(self) -> Iterator[bytes]:
        """Yield both halves, with a pause between them."""
        yield self[: len(self) // 2]
        time.sleep(PAUSE)
        yield self[len(self) // 2 :]


class Backend(Protocol):
    """Where the bytes lie. Names are relative, with slashes. Of a record over `limit` only the beginning is read."""

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
    """A store in a directory: files appear under their name whole or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._group: int | None = None

    def for_group(self) -> int:
        """Return the permissions of the root's group, which all that is written below it gets too: usually none.

        A root that only its group may enter besides its owner (chmod 2770) is shared on purpose. One that everybody may
        enter was made under a usual umask: it is closed, if it is ours and holds a store.
        """
        if self._group is None:
            about = self.root.stat()
            self._group = about.st_mode & (stat.S_ISGID | stat.S_IRWXG)
            if about.st_mode & stat.S_IRWXO and about.st_uid == os.geteuid():
                self._group = 0
                with contextlib.suppress(OSError):  # a file system without permissions
                    self.root.chmod(stat.S_IRWXU)
        return self._group

    def make_folder(self, folder: Path) -> None:
        """Make a folder of the store, and those above it, for the owner and the root's group alone."""
        if folder.exists():
            return
        if folder == self.root:
            folder.mkdir(stat.S_IRWXU, parents=True, exist_ok=True)
            return
        self.make_folder(folder.parent)
        folder.mkdir(stat.S_IRWXU, exist_ok=True)
        if group := self.for_group():
            folder.chmod(stat.S_IRWXU | group)

    def _at(self, name: str) -> Path:
        """Return where a name lies; never outside of the root, whatever a changed record makes of it."""
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise DamagedError(
                f"A record of {len(name)} characters names a place outside of the store {self.root}. It was changed; "
                "make it again."
            )
        return self.root / name

    def read(self, name: str, limit: int | None = None) -> bytes | None:
        path = self._at(name)
        try:
            _check_regular(path.stat().st_mode, path)
            # Not blocking: a FIFO that has just taken the file's place is not waited for.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                _check_regular(os.fstat(file.fileno()).st_mode, path)
                return file.read(-1 if limit is None else limit + 1)
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        path = self._at(name)
        return path.stat().st_size if path.is_file() else None

    def skew(self) -> float | None:
        return None

    def server(self) -> str:
        return f"the file system of {self.root}"

    def write(self, name: str, data: bytes) -> None:
        def fill(part: Path) -> None:
            part.write_bytes(data)

        self._place(name, fill, os.replace)

    def create(self, name: str, data: bytes) -> None:
        def fill(part: Path) -> None:
            part.write_bytes(data)

        self._place(name, fill, os.link)  # link fails where the name exists: whole, and only once

    def upload(self, name: str, path: Path) -> None:
        def fill(part: Path) -> None:
            if path.parent == part.parent:
                os.link(path, part)  # written here for this, and by nobody any more
            else:
                shutil.copyfile(path, part)

        self._place(name, fill, os.replace)

    def download(self, name: str, path: Path) -> bool:
        try:
            shutil.copyfile(self._at(name), path)
        except FileNotFoundError:
            return False
        return True

    def purge(self, prefix: str) -> None:
        """Do nothing: a directory keeps no old versions."""

    def delete(self, name: str) -> None:
        target = self._at(name)
        self.refuse_links(target)
        target.unlink(missing_ok=True)

    def refuse_links(self, target: Path) -> None:
        """Raise a PermissionError where a folder above `target` is a link: what is written would lie elsewhere."""
        if target.parent.resolve() != self.root.resolve() / target.parent.relative_to(self.root):
            raise PermissionError(
                errno.EPERM,
                f"A folder of the store {self.root} is a link, and nothing is written through links. Put the folder "
                "itself there, or mount it",
            )

    def names(self, prefix: str) -> list[str]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise PermissionError(
                    f"The store {self.root} cannot be read ({error.strerror}). Run as its owner, or share it with a "
                    "group: docs/privacy.md says how."
                )

        base = self.root / prefix
        found = []
        for folder, folders, names in os.walk(base, onerror=refuse):
            # A directory with a record's name is listed, so that reading it is refused and it is not overlooked.
            names += [name for name in folders if name.endswith(".json")]
            folders[:] = [name for name in folders if not name.endswith(".json")]
            found += [str((Path(folder) / name).relative_to(self.root)) for name in names]
        return found

    def _place(self, name: str, fill: Callable[[Path], None], put: Callable[[Path, Path], None]) -> None:
        target = self._at(name)
        part = self.root / PARTIAL / secrets.token_hex(8)
        try:
            for path in (part, target):
                self.refuse_links(path)
                self.make_folder(path.parent)
            fill(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.chmod(stat.S_IRUSR | (self.for_group() & stat.S_IRGRP))
            put(part, target)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno == errno.EPERM and error.filename is None:
                raise  # it says what to do by itself
            raise type(error)(error.errno, unwritable(self.root, error)) from error
        finally:
            with contextlib.suppress(OSError):  # a read-only root has no part to remove
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
            f"{path} is {kind}, and must be a file. Move it away; if a record stood there, restore that from a copy."
        )


def unwritable(root: Path, error: OSError) -> str:
    """Return why the store at `root` cannot be written, and what to do."""
    if error.errno == errno.ENOSPC:
        return (
            f"The store {root} is full. Free some space on its disk, or set MEDLOOP_STORE to another; run again after"
        )
    return (
        f"The store {root} cannot be written ({error.strerror or error}). Make it writable for this user, "
        "or set MEDLOOP_STORE to one that is"
    )
