"""Sources of images, in a directory or a bucket, and their revisions."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from components.shared.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from components.shared.storage.s3 import S3

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".nii", ".nii.gz"})
TABLE_SUFFIXES = frozenset({".csv", ".txt"})
"""Tables of labels, and lists of an official split, in the source's root."""
TABLE = "patients.csv"
"""Default table: one row per image file, with patient, sex, age, site, view and text."""

CHANGED = "A file of the source changed while it was read. Wait until the source is complete, and run again."
SETTLING = 2_000_000_000
"""Nanoseconds after a change in which a file's times may not show another change: file systems' clocks are coarse."""


class Entry(NamedTuple):
    """One file of a source; its name is relative to the source."""

    name: str
    size: int
    changed: int | str
    """Time of the last change in nanoseconds (directory), or ETag (bucket)."""
    version: str = ""
    """Together with name and size, identifies the content permanently; "" just after a change."""

    @property
    def is_image(self) -> bool:
        """Whether the name is that of an image, not of a table."""
        return has_suffix(self.name, IMAGE_SUFFIXES)


def has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    """Return whether a name has one of these suffixes, ignoring case."""
    stem, dot, last = name.rpartition(".")
    last = f".{last.lower()}"
    return bool(dot) and (last in suffixes or (last == ".gz" and f"{stem[-4:].lower()}.gz" in suffixes))


class Source(Protocol):
    """A read-only source of images."""

    address: str
    left_out: Counter[str]
    """Number of files that the last listing left out, by reason."""

    @property
    def name(self) -> str:
        """Name of a data set from this source."""

    def entries(self) -> list[Entry]:
        """Return the files of the source, sorted by name."""

    def has(self, name: str) -> bool:
        """Return whether the source has a file of that name, an image or not."""

    def file(self, entry: Entry) -> AbstractContextManager[Path]:
        """Return a context with a local file of the entry's content."""

    def read(self, entry: Entry) -> bytes:
        """Return the content of an entry; raise UnavailableError if it has changed since it was listed."""


def open_source(address: str) -> Source:
    """Return the source in a directory or s3://bucket/prefix; keys and endpoint come from the environment."""
    if "://" not in address:
        return Directory(address)
    scheme, _, rest = address.partition("://")
    bucket, _, prefix = rest.partition("/")  # not urlsplit: a prefix may contain '#', '?' and '%'
    if scheme != "s3" or not bucket:
        raise UsageError(f"The source is {address!r}; it must be a directory or s3://bucket/prefix.")
    return Bucket(bucket, prefix.strip("/"))


def entries(address: str) -> list[Entry]:
    """Return the files of the source at an address, sorted by name."""
    return open_source(address).entries()


def revision(entries: list[Entry]) -> str:
    """Return the digest of a listing; it changes when a file is added, removed or changed, and reveals no names."""
    content = hashlib.sha256()
    for entry in entries:  # a name may be invalid Unicode
        content.update(f"{entry.name}\0{entry.size}\0{entry.changed}\n".encode("utf-8", "surrogateescape"))
    return content.hexdigest()


def _belongs(name: str, left_out: Counter[str]) -> bool:
    """Return whether a file of that name is part of a source: an image or a table, not hidden, not a folder."""
    if name.startswith(".") or "/." in name or name.endswith("/"):
        return False
    if has_suffix(name, IMAGE_SUFFIXES):
        return True
    if "/" not in name and has_suffix(name, TABLE_SUFFIXES):
        return True
    if name == "synth.json":
        return False
    left_out["of another kind"] += 1
    return False


def _changed(status: os.stat_result) -> int:
    """Return the time of the last change; the modification time alone can be older after copying."""
    return max(status.st_mtime_ns, status.st_ctime_ns)


class Directory:
    """A source in a directory."""

    def __init__(self, address: str) -> None:
        self.left_out: Counter[str] = Counter()
        if not address:
            raise UsageError(
                "The source is missing. Set it to a directory or s3://bucket/prefix with a folder of images for each "
                "class."
            )
        self.address, self.root = address, Path(address)
        if not self.root.exists():
            raise FileNotFoundError(
                f"There is no source {address}. Check the path, or create one to try with `medloop synth DIR`."
            )
        if not self.root.is_dir():
            raise NotADirectoryError(
                f"The source {address} is a file. Set it to a directory with a folder for each class."
            )

    @property
    def name(self) -> str:
        return self.root.resolve().name

    def entries(self) -> list[Entry]:
        self.left_out.clear()
        settled = time.time_ns() - SETTLING
        listing = []
        for name, status in self._files():
            changed = _changed(status)
            version = f"{status.st_ino:x}.{status.st_ctime_ns:x}.{status.st_mtime_ns:x}"
            listing.append(Entry(name, status.st_size, changed, version if changed < settled else ""))
        return sorted(listing)

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        root = self.root.resolve()
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self.root / folder) as listed:
                    for item in listed:
                        if item.name.startswith("."):
                            continue
                        name = f"{folder}{item.name}"
                        if item.is_dir(follow_symlinks=False):
                            folders.append(f"{name}/")
                        elif item.is_symlink() and not self._leads_inside(name, root):
                            self.left_out["links out of it, to folders, or to nothing"] += 1
                        elif _belongs(name, self.left_out) and item.is_file():
                            yield name, item.stat()
            except OSError as error:
                # Without an error, the images of a folder would be missing from the data set unnoticed.
                raise PermissionError(
                    f"A folder of the source {self.root} cannot be read ({error.strerror}). Make it readable, and run "
                    "again."
                ) from None

    def _leads_inside(self, name: str, root: Path) -> bool:
        try:
            path = (self.root / name).resolve()
            return path.is_file() and path.is_relative_to(root)
        except (OSError, RuntimeError):  # a link to itself
            return False

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    @contextmanager
    def file(self, entry: Entry) -> Iterator[Path]:
        path = self.root / entry.name
        yield path
        status = path.stat()
        if (status.st_size, _changed(status)) != (entry.size, entry.changed):
            raise UnavailableError(CHANGED)

    def read(self, entry: Entry) -> bytes:
        with (self.root / entry.name).open("rb") as file:
            data = file.read()
            status = os.fstat(file.fileno())
        if (len(data), status.st_size, _changed(status)) != (entry.size, entry.size, entry.changed):
            raise UnavailableError(CHANGED)
        return data


class Bucket:
    """A source in a bucket. Files are downloaded one by one and deleted after use."""

    def __init__(self, bucket: str, prefix: str) -> None:
        from components.shared.storage import s3

        self.left_out: Counter[str] = Counter()
        # Below ERROR this logger logs the paths of requests, which may contain patients' names.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self.address = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket: S3 = s3.connect(bucket, prefix, of="source")

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    def entries(self) -> list[Entry]:
        with _without_cause():
            objects = list(self._bucket.objects())
        if not objects:
            raise FileNotFoundError(
                f"{self.address} is empty. Check the bucket and the prefix: they must contain a folder of images for "
                "each class."
            )
        self.left_out.clear()
        return sorted(
            Entry(item.name, item.size, item.etag, item.etag) for item in objects if _belongs(item.name, self.left_out)
        )

    def has(self, name: str) -> bool:
        with _without_cause():
            return self._bucket.size(name) is not None

    @contextmanager
    def file(self, entry: Entry) -> Iterator[Path]:
        from components.shared.storage.s3 import Object

        with tempfile.TemporaryDirectory(prefix="medloop-source-") as folder:
            path = Path(folder) / "content"  # not the object's name, which may lead elsewhere
            with _without_cause():
                unchanged = self._bucket.download_version(Object(entry.name, entry.size, str(entry.changed)), path)
            if not unchanged:
                raise UnavailableError(CHANGED)
            yield path

    def read(self, entry: Entry) -> bytes:
        with self.file(entry) as path:
            return path.read_bytes()


@contextmanager
def _without_cause() -> Iterator[None]:
    """Remove the causes of errors, which contain the names of objects."""
    try:
        yield
    except OSError as error:
        raise error from None
