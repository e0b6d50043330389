"""The store: content-addressed objects and named records, in a directory or in S3-compatible storage."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from urllib.parse import urlsplit

from components.shared import environment
from components.shared.contracts import Blob, digest, file_digest, is_digest
from components.shared.errors import DamagedError, UnavailableError, UsageError
from components.shared.storage.directory import ABANDONED, PARTIAL, Backend, Directory, SlowBytes, unwritable
from components.shared.storage.scratch import VARIABLE as SCRATCH
from components.shared.storage.scratch import Scratch

log = logging.getLogger("medloop.store")

WRITERS, ROUNDS = 8, 4
"""Number of writers that compete for a record, and number of records, in a test of a store."""


class Store:
    """Objects by digest and records by name, in one backend."""

    def __init__(self, uri: str, backend: Backend, cache: Path | None) -> None:
        self.uri = uri
        self.backend = backend
        self._cache = cache
        self._verified: dict[str, tuple[int, ...]] = {}

    # Objects: named by their digest, written once, verified when they are read.

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes; return their digest and size."""
        blob = Blob(digest(data), len(data))
        if self.backend.size(_object(blob.digest)) != blob.size:  # missing or truncated
            self.backend.write(_object(blob.digest), data)
        return blob

    def put_file(self, path: Path, known: str = "") -> Blob:
        """Store a file's content; return its digest (`known` if it was computed already) and its size."""
        blob = Blob(known or file_digest(path), path.stat().st_size)
        if self.backend.size(_object(blob.digest)) != blob.size:
            self.backend.upload(_object(blob.digest), path)
        return blob

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """Yield a path for a large file, which `put_file` then links instead of copying if the store is a directory."""
        folder = self.backend.root / PARTIAL if isinstance(self.backend, Directory) else Path(tempfile.gettempdir())
        path = folder / secrets.token_hex(8)
        try:
            if isinstance(self.backend, Directory):
                self.backend.refuse_links(path)
                self.backend.make_folder(folder)
            yield path
        except OSError as error:
            if isinstance(self.backend, Directory) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
                raise type(error)(error.errno, unwritable(self.backend.root, error)) from None
            if error.errno == errno.ENOSPC:
                raise OSError(error.errno, f"{folder} is full. Free space on its disk; then run again") from None
            raise
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove incomplete files of writers that were killed."""
        if isinstance(self.backend, Directory):
            for part in (self.backend.root / PARTIAL).glob("*"):
                with contextlib.suppress(OSError):
                    if time.time() - part.stat().st_mtime > ABANDONED:
                        part.unlink()

    def discard(self, object_digest: str) -> None:
        """Remove a damaged object, so that it can be created again."""
        self._verified.pop(object_digest, None)
        self.backend.delete(_object(object_digest))

    def has(self, object_digest: str) -> bool:
        return self.backend.size(_object(object_digest)) is not None

    def fetch(self, object_digest: str) -> Path:
        """Return a local, read-only file with the object's content, verified whenever the file has changed."""
        path = self._local(object_digest)
        if self._verified.get(object_digest) != _state(path):
            if self._cache is not None and path.is_file() and file_digest(path) != object_digest:
                path.unlink()  # damaged in the cache: download it again
            if self._cache is not None and not path.exists():
                self._download(object_digest, path)
            state = _state(path)
            if not state:
                raise FileNotFoundError(_missing(object_digest, self.uri))
            if file_digest(path) != object_digest:
                raise OSError(
                    errno.EIO,
                    f"The object {object_digest[:12]} in {self.uri} does not match its digest: it was changed or "
                    "damaged. Restore it from a copy, or delete it and run again to recreate it",
                )
            self._verified[object_digest] = state
        return path

    def owns(self, path: Path) -> bool:
        """Return whether this local file is an object of the store, or its cached copy."""
        return is_digest(path.name) and path == self._local(path.name).resolve()

    def check_again(self, blob: Blob) -> None:
        """Raise an OSError if the store has lost an object or changed it since this process verified it.

        Objects of a bucket are not downloaded again: their size is compared, and the local copy verified.
        """
        self._verified.pop(blob.digest, None)
        if self._cache is not None and self.backend.size(_object(blob.digest)) != blob.size:
            raise FileNotFoundError(_missing(blob.digest, self.uri))
        self.fetch(blob.digest)

    def get(self, object_digest: str) -> bytes:
        return self.fetch(object_digest).read_bytes()

    def fetch_all(self, digests: Iterable[str]) -> list[Path]:
        """Return local files of many objects, downloaded in parallel."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self.fetch, digests))

    def _local(self, object_digest: str) -> Path:
        name = _object(object_digest)
        return Path(self.uri) / name if self._cache is None else self._cache / name.removeprefix("objects/")

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
                log.warning("object %s was damaged in transfer, attempt %d", object_digest[:12], attempt + 1)
            finally:
                part.unlink(missing_ok=True)
        raise OSError(errno.EIO, f"The object {object_digest[:12]} in {self.uri} is damaged. Restore it from a copy")

    # Records: named by their path. Some are created once and never changed.

    def read(self, name: str, limit: int | None = None) -> bytes | None:
        """Return a record's bytes, or None; raise DamagedError if it is not a regular file or exceeds `limit`."""
        data = self.backend.read(name, limit)
        if data is not None and limit is not None and len(data) > limit:
            raise DamagedError(f"{name} is larger than {limit:,} bytes, the maximum. Restore it from a copy.")
        return data

    def write(self, name: str, data: bytes) -> None:
        self.backend.write(name, data)

    def create(self, name: str, data: bytes) -> None:
        """Write a new record; raise FileExistsError if it exists already."""
        self.backend.create(name, data)

    def delete(self, name: str) -> None:
        self.backend.delete(name)

    def names(self, prefix: str) -> list[str]:
        return sorted(self.backend.names(prefix))

    def numbered(self, folder: str, digits: int = 8) -> list[str]:
        """Return the names of a folder's numbered records, in their order; ignore other files.

        File managers, network file systems, editors and object browsers leave files in any folder.
        """
        names = (name for name in self.backend.names(folder) if record_number(name, folder, digits))
        return sorted(names, key=lambda name: record_number(name, folder, digits))

    def creates_once(self) -> bool:
        """Return whether exactly one of several concurrent writers can create a record.

        Some S3 servers ignore the condition. Others check it when a request arrives, before they receive the body:
        therefore the writers send the second half of their bodies after all requests have arrived.
        """
        start, name = Barrier(WRITERS, timeout=60), f"probe/{secrets.token_hex(8)}"

        def succeeds(number: int, data: bytes) -> bool:
            start.wait()
            try:
                self.create(f"{name}-{number}", data)
            except FileExistsError:
                return False
            return True

        def one_succeeds(number: int) -> bool:
            outcomes = [*pool.map(succeeds, [number] * WRITERS, bodies)]
            return sum(outcomes) == 1 and self.read(f"{name}-{number}") == bodies[outcomes.index(True)]

        bodies = [SlowBytes(secrets.token_bytes(64)) for _ in range(WRITERS)]
        try:
            with ThreadPoolExecutor(WRITERS) as pool:
                return all(one_succeeds(number) for number in range(ROUNDS))
        finally:
            # Leftover test records are harmless, and some servers cannot list versions.
            with contextlib.suppress(OSError, ValueError):
                for number in range(ROUNDS):
                    self.delete(f"{name}-{number}")
                self.backend.purge(name)

    def require_create_once(self) -> None:
        """Raise UnavailableError if concurrent writers can create the same record."""
        if not self.creates_once():
            raise UnavailableError(
                f"The store {self.uri} let several writers create the same record ({self.backend.server()} does not "
                "support If-None-Match), so two runs could release at the same time. Use a directory, MinIO or AWS S3; "
                "docs/storage.md lists the servers that were tested."
            )

    def skew(self) -> float | None:
        """Return the seconds by which this machine's clock is ahead of the store's server; None without a server."""
        return self.backend.skew()


def _object(object_digest: str) -> str:
    if not is_digest(object_digest):
        raise DamagedError(
            f"The digest of an object is {str(object_digest)[:20]!r}; it must be the 64 hexadecimal digits of a "
            "SHA-256. The record that contains it was changed; create it again."
        )
    return f"objects/{object_digest[:2]}/{object_digest}"


def record_number(name: str, folder: str, digits: int = 8) -> int:
    """Return the number of a numbered record in its folder; 0 for any other name."""
    match = re.fullmatch(rf"{re.escape(folder)}/([0-9]{{{digits},12}})\.json", name)
    number = int(match[1]) if match else 0
    return number if name == f"{folder}/{number:0{digits}d}.json" else 0


def _state(path: Path) -> tuple[int, ...]:
    """Return the attributes that change with a file's content; () if it is not a regular file."""
    try:
        status = path.stat()
    except OSError:
        return ()
    if not stat.S_ISREG(status.st_mode):
        return ()  # opening a FIFO would block
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _missing(object_digest: str, uri: str) -> str:
    return (
        f"The object {object_digest[:12]} is not in {uri}. It was removed, or the manifest belongs to another store: "
        "use the store that the run used, or run again."
    )


def open_store(uri: str) -> Store:
    """Return the store in a directory or s3://bucket/prefix; keys and endpoint come from the environment."""
    if scratch := environment.get(SCRATCH):
        return open_scratch(uri, Path(scratch))
    address, backend = _backend(uri)
    if isinstance(backend, Directory):
        if any((backend.root / name).is_dir() for name in ("objects", "releases")):
            backend.group_permissions()
        return Store(address, backend, None)
    cache = Path(environment.get("MEDLOOP_CACHE") or Path(tempfile.gettempdir()) / f"medloop-cache-{os.getuid()}")
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.mkdir(mode=0o700, exist_ok=True)  # it will contain images, and everybody can read /tmp
    return Store(address, backend, cache)


def open_scratch(uri: str, scratch: Path) -> Store:
    """Return a store that writes to the directory `scratch` instead."""
    address, backend = _backend(uri)
    return Store(address, Scratch(backend, Directory(scratch / "written")), scratch / "cache")


def _backend(uri: str) -> tuple[str, Backend]:
    """Return the absolute address of a store, and its backend."""
    if not uri:
        raise UsageError("The store's address is empty; it must be a directory or s3://bucket/prefix.")
    if "://" not in uri:
        root = Path(uri).absolute()
        return str(root), Directory(root)
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise UsageError(
            "The store's address contains a user or a password (not shown). Write s3://bucket/prefix only, and set "
            "keys in their own variables, such as AWS_ACCESS_KEY_ID."
        )
    if parts.scheme != "s3" or not parts.netloc or "?" in uri or "#" in uri:
        raise UsageError(f"The store's address is {uri!r}; it must be a directory or s3://bucket/prefix.")
    from components.shared.storage import s3

    return uri.rstrip("/"), s3.connect(parts.netloc, parts.path.strip("/"))
