"""A source of images, a directory or a bucket, and its revision: what resolve records and ingest reads."""

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
"""Tables of labels and lists of an official split, which stand in the source's root."""
TABLE = "patients.csv"
"""The table that is read unless another is named: a row a file, with patient, sex, age, site, view, text."""

CHANGED = "A file of the source changed while it was read. Let the source settle, and run again."
SETTLING = 2_000_000_000
"""For so many nanoseconds after a change a file's times may not show the next one: file systems' clocks are coarse."""


class Entry(NamedTuple):
    """One file of a source: its name relative to the source, its size, and what changes when it is changed."""

    name: str
    size: int
    changed: int | str
    """A directory's time in nanoseconds, or a bucket's ETag."""
    version: str = ""
    """What, with name and size, names one content for good; nothing where that cannot be told yet."""

    @property
    def is_image(self) -> bool:
        """Whether its name is that of an image, not of a table."""
        return has_suffix(self.name, IMAGE_SUFFIXES)


def has_suffix(name: str, suffixes: frozenset[str]) -> bool:
    """Whether a name ends in one of these, in capitals or not."""
    stem, dot, last = name.rpartition(".")
    last = f".{last.lower()}"
    return bool(dot) and (last in suffixes or (last == ".gz" and f"{stem[-4:].lower()}.gz" in suffixes))


class Source(Protocol):
    """Where images come from. It is read, and never written."""

    address: str
    left_out: Counter[str]
    """What the last listing left out, in words, and how many files that were."""

    @property
    def name(self) -> str:
        """What a data set made of it is called."""

    def entries(self) -> list[Entry]:
        """The files that it consists of, by name."""

    def has(self, name: str) -> bool:
        """Whether it holds a file of that name, an image or not."""

    def file(self, entry: Entry) -> AbstractContextManager[Path]:
        """A local file with the entry's content, for as long as the block lasts."""

    def read(self, entry: Entry) -> bytes:
        """The content of an entry; a RuntimeError where it is no longer what was listed."""


def open_source(address: str) -> Source:
    """The source at a directory or at s3://bucket/prefix; credentials and endpoint come from the environment."""
    if "://" not in address:
        return Directory(address)
    scheme, _, rest = address.partition("://")
    bucket, _, prefix = rest.partition("/")  # no URL: a prefix may hold '#', '?' and '%'
    if scheme != "s3" or not bucket:
        raise UsageError(f"The source's address is {address!r}. Give a directory or s3://bucket/prefix.")
    return Bucket(bucket, prefix.strip("/"))


def entries(address: str) -> list[Entry]:
    """The files that the source at an address consists of, by name."""
    return open_source(address).entries()


def revision(found: list[Entry]) -> str:
    """The digest of a listing: it changes when a file comes, goes or is changed. It tells no names."""
    content = hashlib.sha256()
    for entry in found:  # a name may be no valid Unicode
        content.update(f"{entry.name}\0{entry.size}\0{entry.changed}\n".encode("utf-8", "surrogateescape"))
    return content.hexdigest()


def _belongs(name: str, left_out: Counter[str]) -> bool:
    """Whether a file of that name is part of a source: an image or a table, not hidden, no folder's mark."""
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


def _changed(about: os.stat_result) -> int:
    """When a file's content last changed; its modification time alone can be set back by those who copy files."""
    return max(about.st_mtime_ns, about.st_ctime_ns)


class Directory:
    """A source in a directory, or a sentence that says what is wrong with it."""

    def __init__(self, address: str) -> None:
        self.left_out: Counter[str] = Counter()
        if not address:
            raise UsageError(
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
        return self.root.resolve().name

    def entries(self) -> list[Entry]:
        self.left_out.clear()
        settled = time.time_ns() - SETTLING
        found = []
        for name, about in self._files():
            changed = _changed(about)
            version = f"{about.st_ino:x}.{about.st_ctime_ns:x}.{about.st_mtime_ns:x}"
            found.append(Entry(name, about.st_size, changed, version if changed < settled else ""))
        found.sort()
        return found

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        inside = self.root.resolve()
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
                        elif item.is_symlink() and not self._leads_inside(name, inside):
                            self.left_out["links out of it, to folders, or to nothing"] += 1
                        elif _belongs(name, self.left_out) and item.is_file():
                            yield name, item.stat()
            except OSError as error:
                # Silence here would be a data set without the images of a folder, and nobody would know.
                raise PermissionError(
                    f"A folder of the source {self.root} cannot be read ({error.strerror}). Make all of it readable, "
                    "and run again."
                ) from None

    def _leads_inside(self, name: str, inside: Path) -> bool:
        try:
            path = (self.root / name).resolve()
            return path.is_file() and path.is_relative_to(inside)
        except (OSError, RuntimeError):  # a link that leads to itself
            return False

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    @contextmanager
    def file(self, entry: Entry) -> Iterator[Path]:
        path = self.root / entry.name
        yield path
        about = path.stat()
        if (about.st_size, _changed(about)) != (entry.size, entry.changed):
            raise UnavailableError(CHANGED)

    def read(self, entry: Entry) -> bytes:
        with (self.root / entry.name).open("rb") as file:
            data = file.read()
            about = os.fstat(file.fileno())
        if (len(data), about.st_size, _changed(about)) != (entry.size, entry.size, entry.changed):
            raise UnavailableError(CHANGED)
        return data


class Bucket:
    """A source in a bucket: files are fetched one by one, for as long as they are needed."""

    def __init__(self, bucket: str, prefix: str) -> None:
        from components.shared.storage import s3

        self.left_out: Counter[str] = Counter()

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
        self.left_out.clear()
        return sorted(
            Entry(item.name, item.size, item.etag, item.etag) for item in listed if _belongs(item.name, self.left_out)
        )

    def has(self, name: str) -> bool:
        with _nameless():
            return self._bucket.size(name) is not None

    @contextmanager
    def file(self, entry: Entry) -> Iterator[Path]:
        from components.shared.storage.s3 import Listed

        with tempfile.TemporaryDirectory(prefix="medloop-source-") as folder:
            path = Path(folder) / "content"  # never the object's own name: it may lead elsewhere
            with _nameless():
                whole = self._bucket.download_version(Listed(entry.name, entry.size, str(entry.changed)), path)
            if not whole:
                raise UnavailableError(CHANGED)
            yield path

    def read(self, entry: Entry) -> bytes:
        with self.file(entry) as path:
            return path.read_bytes()


@contextmanager
def _nameless() -> Iterator[None]:
    """Let errors go on without those that they came of, which hold the names of objects."""
    try:
        yield
    except OSError as error:
        raise error from None
