"""The store: content-addressed objects and named records, in a directory or in S3-compatible storage."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from components.shared.contracts import Blob, digest, file_digest
from components.shared.scratch import VARIABLE as SCRATCH
from components.shared.scratch import Scratch

log = logging.getLogger("medloop.store")

PARTIAL = "partial"
"""Where files of a directory's store lie while they are written."""
ABANDONED = 3600
"""Seconds after which nobody writes any more to a file that was not touched."""


class Backend(Protocol):
    """Where the bytes lie. Names are relative, with slashes."""

    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, data: bytes) -> None: ...
    def create(self, name: str, data: bytes) -> None: ...
    def delete(self, name: str) -> None: ...
    def names(self, prefix: str) -> list[str]: ...
    def size(self, name: str) -> int | None: ...
    def upload(self, name: str, path: Path) -> None: ...
    def download(self, name: str, path: Path) -> bool: ...
    def skew(self) -> float | None: ...


class Store:
    """Objects by digest, and records by name, over one backend."""

    def __init__(self, uri: str, backend: Backend, cache: Path | None) -> None:
        self.uri = uri
        self.backend = backend
        self._cache = cache
        self._verified: set[str] = set()

    # Objects: named by what they hold, written once, verified when they are read.

    def put_bytes(self, data: bytes) -> Blob:
        """Keep these bytes; gives their digest and size."""
        blob = Blob(digest(data), len(data))
        if self.backend.size(_object(blob.digest)) != blob.size:  # one cut short is written anew
            self.backend.write(_object(blob.digest), data)
        return blob

    def put_file(self, path: Path, known: str = "") -> Blob:
        """Keep this file's content; gives its digest, `known` where it was taken in writing, and its size."""
        blob = Blob(known or file_digest(path), path.stat().st_size)
        if self.backend.size(_object(blob.digest)) != blob.size:
            self.backend.upload(_object(blob.digest), path)
        return blob

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """The path of a large file to write, which is kept without being copied if it lies where the store does."""
        place = self.backend.root / PARTIAL if isinstance(self.backend, Directory) else Path(tempfile.gettempdir())
        path = place / secrets.token_hex(8)
        try:
            if isinstance(self.backend, Directory):
                self.backend.make_folder(place)
            yield path
        except OSError as error:
            if isinstance(self.backend, Directory) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise type(error)(error.errno, _unwritable(self.backend.root, error)) from None
            if error.errno == errno.ENOSPC:
                raise OSError(error.errno, f"{place} is full. Free some space on its disk; run again after") from None
            raise
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what writers that were killed have left half-written."""
        if isinstance(self.backend, Directory):
            for part in (self.backend.root / PARTIAL).glob("*"):
                with contextlib.suppress(OSError):
                    if time.time() - part.stat().st_mtime > ABANDONED:
                        part.unlink()

    def discard(self, object_digest: str) -> None:
        """Remove an object that does not hold what its name says, so that it can be made again."""
        self._verified.discard(object_digest)
        self.backend.delete(_object(object_digest))

    def has(self, object_digest: str) -> bool:
        """Whether the store holds the object."""
        return self.backend.size(_object(object_digest)) is not None

    def fetch(self, object_digest: str) -> Path:
        """A local, read-only file with the object's content, verified once per process."""
        path = self._local(object_digest)
        if object_digest not in self._verified:
            if self._cache is not None and path.exists() and file_digest(path) != object_digest:
                path.unlink()  # a damaged cache is no loss: fetch it again
            if self._cache is not None and not path.exists():
                self._download(object_digest, path)
            if not path.exists():
                raise FileNotFoundError(_missing(object_digest, self.uri))
            if file_digest(path) != object_digest:
                raise OSError(
                    errno.EIO,
                    f"The object {object_digest[:12]} in {self.uri} does not hold what its name says: it was changed "
                    "or damaged. Restore it from a copy, or delete it and run again to make it anew",
                )
            self._verified.add(object_digest)
        return path

    def get(self, object_digest: str) -> bytes:
        """The object's content."""
        return self.fetch(object_digest).read_bytes()

    def fetch_all(self, digests: Iterable[str]) -> list[Path]:
        """Local files for many objects, fetched side by side."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self.fetch, digests))

    def _local(self, object_digest: str) -> Path:
        if self._cache is not None:
            return self._cache / object_digest[:2] / object_digest
        return Path(self.uri) / _object(object_digest)

    def _download(self, object_digest: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(3):
            part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            try:
                if not self.backend.download(_object(object_digest), part):
                    raise FileNotFoundError(_missing(object_digest, self.uri))
                if file_digest(part) == object_digest:
                    part.replace(path)
                    return
                log.warning("object %s arrived damaged, attempt %d", object_digest[:12], attempt + 1)
            finally:
                part.unlink(missing_ok=True)
        raise OSError(errno.EIO, f"The object {object_digest[:12]} in {self.uri} arrives damaged each time. Restore it")

    # Records: named by their place. Some are created once and never changed.

    def read(self, name: str) -> bytes | None:
        """A record's bytes, or None."""
        return self.backend.read(name)

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a record, atomically."""
        self.backend.write(name, data)

    def create(self, name: str, data: bytes) -> None:
        """Write a record that must not exist yet; FileExistsError when another writer was first."""
        self.backend.create(name, data)

    def delete(self, name: str) -> None:
        """Remove a record, if it is there."""
        self.backend.delete(name)

    def names(self, prefix: str) -> list[str]:
        """The names of the records below a prefix, sorted."""
        return sorted(self.backend.names(prefix))

    def creates_once(self) -> bool:
        """Whether this store really refuses to create a record twice (some S3 servers overwrite it)."""
        name = f"probe/{secrets.token_hex(8)}"
        try:
            self.create(name, b"first")
            try:
                self.create(name, b"second")
            except FileExistsError:
                return self.read(name) == b"first"
            return False
        finally:
            # A probe that stays harms nobody: what was found out counts.
            with contextlib.suppress(OSError):
                self.delete(name)

    def skew(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the store's server; None where there is no other clock."""
        return self.backend.skew()


def _object(object_digest: str) -> str:
    return f"objects/{object_digest[:2]}/{object_digest}"


def _missing(object_digest: str, uri: str) -> str:
    return (
        f"The object {object_digest[:12]} is not in {uri}. It was removed, or the manifest belongs to another store: "
        "use the store that the run used, or run again."
    )


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

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def skew(self) -> float | None:
        return None

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
            shutil.copyfile(self.root / name, path)
        except FileNotFoundError:
            return False
        return True

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise PermissionError(
                    f"The store {self.root} cannot be read ({error.strerror}). Run as its owner, or share it with a "
                    "group: docs/privacy.md says how."
                )

        base = self.root / prefix
        walk = os.walk(base, onerror=refuse)
        return [str((Path(folder) / name).relative_to(self.root)) for folder, _, names in walk for name in names]

    def _place(self, name: str, fill: Callable[[Path], None], put: Callable[[Path, Path], None]) -> None:
        target = self.root / name
        part = self.root / PARTIAL / secrets.token_hex(8)
        try:
            self.make_folder(part.parent)
            self.make_folder(target.parent)
            fill(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.chmod(stat.S_IRUSR | (self.for_group() & stat.S_IRGRP))
            put(part, target)
        except FileExistsError:
            raise
        except OSError as error:
            raise type(error)(error.errno, _unwritable(self.root, error)) from error
        finally:
            with contextlib.suppress(OSError):  # a read-only root has no part to remove
                part.unlink(missing_ok=True)


def _unwritable(root: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return (
            f"The store {root} is full. Free some space on its disk, or set MEDLOOP_STORE to another; run again after"
        )
    return (
        f"The store {root} cannot be written ({error.strerror or error}). Make it writable for this user, "
        "or set MEDLOOP_STORE to one that is"
    )


def open_store(uri: str) -> Store:
    """The store at a directory or at s3://bucket/prefix; credentials and endpoint come from the environment."""
    if scratch := os.environ.get(SCRATCH, ""):
        return over(uri, Path(scratch))
    where, backend = _backend(uri)
    if isinstance(backend, Directory):
        if any((backend.root / name).is_dir() for name in ("objects", "releases")):
            backend.for_group()
        return Store(where, backend, None)
    cache = Path(os.environ.get("MEDLOOP_CACHE") or Path(tempfile.gettempdir()) / f"medloop-cache-{os.getuid()}")
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.mkdir(mode=0o700, exist_ok=True)  # scans come to lie there, and others may look into /tmp
    return Store(where, backend, cache)


def over(uri: str, scratch: Path) -> Store:
    """The store as it is, with all that is written going to a directory of its own."""
    where, backend = _backend(uri)
    return Store(where, Scratch(backend, Directory(scratch / "written")), scratch / "cache")


def _backend(uri: str) -> tuple[str, Backend]:
    """The address in full, and what keeps the bytes there."""
    if not uri:
        raise ValueError("The store's address is empty. Give a directory or s3://bucket/prefix.")
    if "://" not in uri:
        root = Path(uri).absolute()
        return str(root), Directory(root)
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise ValueError(
            "The store's address holds a user or a password (not shown). Write s3://bucket/prefix alone; keys have "
            "variables of their own, such as AWS_ACCESS_KEY_ID."
        )
    if parts.scheme != "s3" or not parts.netloc or "?" in uri or "#" in uri:
        raise ValueError(f"The store's address is {uri!r}. Give a directory or s3://bucket/prefix.")
    from components.shared import s3  # only those who name a bucket need the client

    return uri.rstrip("/"), s3.connect(parts.netloc, parts.path.strip("/"))
