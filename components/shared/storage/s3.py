"""The S3-compatible side of the store: one bucket and prefix, through the minio client."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

import urllib3
from minio.error import S3Error
from minio.helpers import check_bucket_name

from components.shared import environment
from components.shared.errors import UsageError
from components.shared.storage.s3_client import MISSING, Client, CutShortError
from components.shared.storage.s3_keys import Keys

T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """An object as its bucket lists it: its name below the prefix, its size, and the ETag that changes with it."""

    name: str
    size: int
    etag: str


PART = 16 * 2**20  # what larger files are sent in
SLOWEST = 1024  # bytes a second; what comes slower is asked for again
DIGEST, WRITER = "x-amz-meta-sha256", "x-amz-meta-writer"


class S3:
    """A store in a bucket. Calls that fail for a passing reason are tried again with growing pauses."""

    def __init__(self, client: Client, bucket: str, prefix: str, patience: float) -> None:
        self.client, self.bucket, self.prefix, self.patience = client, bucket, prefix, patience

    def read(self, name: str, limit: int | None = None) -> bytes | None:
        def call() -> bytes:
            into = BytesIO()
            answer = self.client.get_object(self.bucket, self._key(name))
            if not self._receive(answer, into, limit):
                return into.getvalue()  # the reader refuses it by its length
            data, meant = into.getvalue(), answer.headers.get(DIGEST)
            # A record has no digest in its name, and a length may be cut to fit: so it carries its digest.
            if meant and hashlib.sha256(data).hexdigest() != meant:
                raise CutShortError(f"{name} does not hold what was written ({len(data)} bytes arrived)")
            return data

        return self._unless_missing("read", lambda: self.client.persevere(call))

    def size(self, name: str) -> int | None:
        def call() -> int:
            try:
                return int(self.client.stat_object(self.bucket, self._key(name)).size)
            except S3Error as error:
                if error.code in MISSING:
                    raise
            return self._size_by_reading(name)

        return self._unless_missing("read", call)

    def _size_by_reading(self, name: str) -> int:
        """The size of an object, or the reason of a refusal: the answer to HEAD has no room for one."""
        try:
            answer = self.client.get_object(self.bucket, self._key(name), offset=0, length=1)
        except S3Error as error:
            if error.code == "InvalidRange":
                return 0
            raise
        answer.drain_conn()
        answer.release_conn()
        whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(whole if whole.isdecimal() else answer.headers.get("Content-Length", "0"))

    def write(self, name: str, data: bytes) -> None:
        with self._explained("write"):
            self._send(name, BytesIO(data), len(data), {DIGEST: hashlib.sha256(data).hexdigest()})

    def upload(self, name: str, path: Path) -> None:
        with self._explained("write"), path.open("rb") as file:
            self._send(name, file, path.stat().st_size, {})

    def _send(self, name: str, file: BinaryIO, size: int, metadata: dict[str, str]) -> None:
        def call() -> None:
            file.seek(0)
            try:
                self.client.put_object(
                    self.bucket, self._key(name), file, size, part_size=PART, metadata=metadata or None
                )
            except S3Error as error:
                if error.code != "NoSuchUpload":
                    raise
                # Parts were joined and the answer was lost, or somebody took them away: what stands there tells.
                if self.size(name) != size:
                    raise CutShortError(f"the parts of {name} were lost on the way") from error

        self.client.persevere(call)

    def create(self, name: str, data: bytes) -> None:
        # A request whose answer was lost meets its own object when it is sent again: the mark says whose it is.
        mark = secrets.token_hex(16)
        headers = {
            "If-None-Match": "*",
            "Content-Type": "application/octet-stream",
            DIGEST: hashlib.sha256(data).hexdigest(),
            WRITER: mark,
        }
        with self._explained("write"):
            try:
                # minio's put_object has no argument for the condition.
                self.client.send("PUT", self.bucket, self._key(name), body=data, headers=headers)
            except S3Error as error:
                if error.code != "PreconditionFailed":
                    raise
                if self._writer(name) != mark:
                    raise FileExistsError(errno.EEXIST, "was created before", name) from error

    def _writer(self, name: str) -> str | None:
        try:
            answer = self.client.get_object(self.bucket, self._key(name))
        except S3Error as error:
            if error.code in MISSING:
                return None  # it was there and has gone: another's
            raise
        answer.drain_conn()
        answer.release_conn()
        mark = answer.headers.get(WRITER)
        return str(mark) if mark else None

    def download(self, name: str, path: Path) -> bool:
        def call() -> bool:
            # What arrived before a break is kept: an object never changes, and its reader checks the digest.
            have = path.stat().st_size if path.exists() else 0
            try:
                answer = self.client.get_object(self.bucket, self._key(name), offset=have)
            except S3Error as error:
                if error.code == "InvalidRange" and have:
                    path.unlink()
                    raise CutShortError(f"{name} is shorter than what arrived of it") from error
                raise
            goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            with path.open("ab" if have and goes_on else "wb") as file:
                self._receive(answer, file)
            return True

        return bool(self._unless_missing("read", lambda: self.client.persevere(call)))

    def download_version(self, listed: Listed, path: Path) -> bool:
        """Bring an object as it was listed into a new file; False where another or none has taken its place."""

        def call() -> bool:
            have = path.stat().st_size if path.exists() else 0
            if have and have == listed.size:
                return True  # all had arrived when the try before it broke
            asked = {"If-Match": f'"{listed.etag}"'}
            answer = self.client.get_object(self.bucket, self._key(listed.name), offset=have, request_headers=asked)
            # Some servers do not look at the condition.
            if _etag(answer.headers.get("ETag")) != listed.etag:
                answer.close()
                return False
            goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            with path.open("ab" if have and goes_on else "wb") as file:
                self._receive(answer, file)
            got = path.stat().st_size
            if got < listed.size:
                raise CutShortError(f"{got} of an object's {listed.size} bytes arrived")
            return got == listed.size

        with self._explained("read"):
            try:
                return bool(self.client.persevere(call))
            except S3Error as error:
                if error.code in (*MISSING, "PreconditionFailed", "InvalidRange"):
                    return False
                raise

    def _receive(self, answer: urllib3.BaseHTTPResponse, into: BinaryIO, limit: int | None = None) -> bool:
        """Write the body of an answer; one that ends early or hardly moves is a failure. False: it is over `limit`."""
        begun, got = time.monotonic(), 0
        try:
            while data := answer.read1(2**18, decode_content=False):
                got += into.write(data)
                took = time.monotonic() - begun
                if took > self.patience and got < SLOWEST * took:
                    raise CutShortError(f"{got} bytes in {took:.0f} seconds are too slow")
                if limit is not None and got > limit:
                    return False
            return True
        finally:
            answer.close()
            answer.release_conn()

    def delete(self, name: str) -> None:
        self._unless_missing("delete", lambda: self.client.remove_object(self.bucket, self._key(name)))

    def purge(self, prefix: str) -> None:
        """Delete everything whose name begins so, with its old versions: the keys need more rights than otherwise."""
        with self._explained("delete the versions of"):
            for old in self.client.list_objects(self.bucket, self._key(prefix), include_version=True):
                self.client.remove_object(self.bucket, old.object_name, old.version_id)

    def names(self, prefix: str) -> list[str]:
        with self._explained("list"):
            found = self.client.list_objects(self.bucket, self._key(prefix).rstrip("/") + "/", recursive=True)
            return [str(item.object_name)[len(self._key("")) :] for item in found]

    def objects(self) -> Iterator[Listed]:
        """Every object below the prefix, page by page."""
        with self._explained("list"):
            below = self._key("")
            for item in self.client.list_objects(self.bucket, below, recursive=True):
                yield Listed(str(item.object_name)[len(below) :], int(item.size or 0), _etag(item.etag))

    def skew(self) -> float | None:
        return self.client.skew

    def server(self) -> str:
        return f"the server at {self.client.endpoint}, which calls itself {self.client.server or 'nothing'},"

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _unless_missing(self, doing: str, call: Callable[[], T]) -> T | None:
        with self._explained(doing):
            try:
                return call()
            except S3Error as error:
                if error.code in MISSING:
                    return None
                raise

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (S3Error, urllib3.exceptions.HTTPError) as error:
            raise self.client.explain(error, f"{doing} objects", self.bucket) from error


def _etag(text: str | None) -> str:
    return (text or "").removeprefix("W/").strip('"')


def connect(bucket: str, prefix: str, *, pause: float = 0.1, patience: float = 60.0, of: str = "store") -> S3:
    """The bucket's side of a store, or of a source; what the environment says of it stands in docs/storage.md.

    `pause` is the first pause between tries, in seconds; `patience` how long to wait for a sign of life.
    """
    endpoint = _endpoint()
    # The pool does not try again by itself: the client does, and knows what is worth it.
    verify: dict[str, object] = {"ca_certs": _authority()} if _authority() else {}
    timeout = urllib3.Timeout(connect=min(5.0, patience), read=patience)
    http = urllib3.PoolManager(timeout=timeout, retries=False, maxsize=64, **verify)  # type: ignore[arg-type]
    # Without a region, some servers answer the look-up unreadably.
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION", "us-east-1")
    client = Client(endpoint, region, Keys(verify, of), http, pause, of)
    style = (environment.get("AWS_S3_ADDRESSING_STYLE", "auto")).lower()
    if style not in ("auto", "path", "virtual"):
        raise UsageError(f"AWS_S3_ADDRESSING_STYLE is {style!r}, and must be auto, path or virtual.")
    if style == "virtual":
        client.enable_virtual_style_endpoint()
    elif style == "path":
        client.disable_virtual_style_endpoint()
    try:
        check_bucket_name(bucket, strict=True, s3_check=True)
    except ValueError as error:
        raise UsageError(
            f"The {of}'s bucket is {bucket!r}, and S3 does not allow that name: 3 to 63 of small letters, digits, "
            f"hyphens and dots ({error}). Check {'MEDLOOP_STORE' if of == 'store' else 'its address'}."
        ) from error
    return S3(client, bucket, prefix, patience)


def _endpoint() -> str:
    name = "AWS_ENDPOINT_URL_S3" if environment.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    given = environment.get(name, "https://s3.amazonaws.com")
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{name} is {given!r}, and needs http:// or https:// and a host: http://localhost:9000.")
    if parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        raise UsageError(f"{name} names more than a server. Write {shown}; the bucket goes into MEDLOOP_STORE.")
    try:
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{name} is {given!r}, and its port is none ({error}).") from error
    return f"{parts.scheme}://{parts.netloc}"


def _authority() -> str:
    file = environment.get("AWS_CA_BUNDLE")
    if file and not Path(file).is_file():
        raise UsageError(f"AWS_CA_BUNDLE is {file!r}, and there is no such file. Name the authority's PEM file.")
    return file
