"""A source of images, a directory or a bucket, and its revision: what resolve records and ingest reads."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from components.shared.contracts import file_digest, fingerprint

if TYPE_CHECKING:
    from components.shared.s3 import S3

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})
TABLE = "patients.csv"
"""A table beside the class folders with a row a file: patient, sex, age, site, view, text."""

CHANGED = "A file of the source changed while it was read. Let the source settle, and run again."


@dataclass(frozen=True)
class Entry:
    """One file of a source: its name relative to the source, its size, and what changes when it is changed."""

    name: str
    size: int
    changed: int | str
    """A directory's time in nanoseconds, or a bucket's ETag."""


class Source(Protocol):
    """Where images come from. It is read, and never written."""

    address: str
    tells_versions: bool
    """Whether name, size and `changed` together name one content for good: an ETag does, a time does not."""

    @property
    def name(self) -> str:
        """What a data set made of it is called."""

    def entries(self) -> list[Entry]:
        """The files that it consists of, by name."""

    def has(self, name: str) -> bool:
        """Whether it holds a file of that name, an image or not."""

    def file(self, entry: Entry) -> AbstractContextManager[Path]:
        """A local file with the entry's content, for as long as the block lasts."""


def open_source(address: str) -> Source:
    """The source at a directory or at s3://bucket/prefix; credentials and endpoint come from the environment."""
    if "://" not in address:
        return Directory(address)
    scheme, _, rest = address.partition("://")
    bucket, _, prefix = rest.partition("/")  # no URL: a prefix may hold '#', '?' and '%'
    if scheme != "s3" or not bucket:
        raise ValueError(f"The source's address is {address!r}. Give a directory or s3://bucket/prefix.")
    return Bucket(bucket, prefix.strip("/"))


def entries(address: str) -> list[Entry]:
    """The files that the source at an address consists of, by name."""
    return open_source(address).entries()


def digest(source: Source, entry: Entry) -> str:
    """The digest of the content of one of a source's files."""
    with source.file(entry) as path:
        return file_digest(path)


def revision(found: list[Entry]) -> str:
    """The digest of a listing: it changes when a file comes, goes or is changed. It tells no names."""
    return fingerprint([[entry.name, entry.size, entry.changed] for entry in found])


def _belongs(name: str) -> bool:
    """Whether a file of that name is part of a source: an image or the table, not hidden, no folder's mark."""
    if name.endswith("/") or any(part.startswith(".") for part in name.split("/")):
        return False
    return name == TABLE or Path(name).suffix.lower() in IMAGE_SUFFIXES


class Directory:
    """A source in a directory, or a sentence that says what is wrong with it."""

    tells_versions = False

    def __init__(self, address: str) -> None:
        if not address:
            raise ValueError(
                "No source was given. Name the directory, or s3://bucket/prefix, that holds a folder of images for "
                "each class."
            )
        self.address, self.root = address, Path(address)
        if not self.root.exists():
            raise FileNotFoundError(
                f"There is no source {address}. Check the path; `medloop synth DIR` makes one to try."
            )
        if not self.root.is_dir():
            raise NotADirectoryError(
                f"The source {address} is a file. Name the directory that holds a folder for each class."
            )

    @property
    def name(self) -> str:
        return self.root.name

    def entries(self) -> list[Entry]:
        found = []
        inside = self.root.resolve()
        for path in self._files():
            name = path.relative_to(self.root).as_posix()
            if not _belongs(name) or not path.is_file() or not path.resolve().is_relative_to(inside):
                continue  # a link that leads out of the source is not part of it
            about = path.stat()
            found.append(Entry(name, about.st_size, about.st_mtime_ns))
        return sorted(found, key=lambda entry: entry.name)

    def _files(self) -> Iterator[Path]:
        def refuse(error: OSError) -> None:
            # Silence here would be a data set without the images of a folder, and nobody would know.
            raise PermissionError(
                f"A folder of the source {self.root} cannot be read ({error.strerror}). Make all of it readable, and "
                "run again."
            ) from None

        for folder, _, names in os.walk(self.root, onerror=refuse):
            yield from (Path(folder) / name for name in names)

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def file(self, entry: Entry) -> AbstractContextManager[Path]:
        return nullcontext(self.root / entry.name)


class Bucket:
    """A source in a bucket: files are fetched one by one, for as long as they are needed."""

    tells_versions = True

    def __init__(self, bucket: str, prefix: str) -> None:
        from components.shared import s3  # only those who name a bucket need the client

        # At its lower levels this logger names the paths of requests, and so perhaps patients.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self.address = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket: S3 = s3.connect(bucket, prefix, of="source")

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    def entries(self) -> list[Entry]:
        with _nameless():
            listed = list(self._bucket.objects())
        if not listed:
            raise FileNotFoundError(
                f"There is nothing at {self.address}. Check the bucket and the prefix: below it stands a folder of "
                "images for each class."
            )
        found = [Entry(item.name, item.size, item.etag) for item in listed if _belongs(item.name)]
        return sorted(found, key=lambda entry: entry.name)

    def has(self, name: str) -> bool:
        with _nameless():
            return self._bucket.size(name) is not None

    @contextmanager
    def file(self, entry: Entry) -> Iterator[Path]:
        from components.shared.s3 import Listed

        with tempfile.TemporaryDirectory(prefix="medloop-source-") as folder:
            path = Path(folder) / "content"  # never the object's own name: it may lead elsewhere
            with _nameless():
                whole = self._bucket.download_version(Listed(entry.name, entry.size, str(entry.changed)), path)
            if not whole:
                raise RuntimeError(CHANGED)
            yield path


@contextmanager
def _nameless() -> Iterator[None]:
    """Let errors go on without those that they came of, which hold the names of objects."""
    try:
        yield
    except OSError as error:
        raise error from None
