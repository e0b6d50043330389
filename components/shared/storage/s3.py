"""The backend of a store in S3-compatible storage: a bucket and a prefix, through the minio client."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
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
from components.shared.storage.s3_credentials import Keys

T = TypeVar("T")


@dataclass(frozen=True)
class Object:
    """An object in the listing of a bucket; its name is relative to the prefix."""

    name: str
    size: int
    etag: str


PART = 16 * 2**20  # size of the parts of larger files
SLOWEST = 1024  # bytes per second; slower responses are requested again
DIGEST, WRITER = "x-amz-meta-sha256", "x-amz-meta-writer"


class S3:
    """A store in a bucket. Calls that fail temporarily are retried with growing pauses."""

    def __init__(self, client: Client, bucket: str, prefix: str, patience: float) -> None:
        self.client, self.bucket, self.prefix, self.patience = client, bucket, prefix, patience

    def read(self, name: str, limit: int | None = None) -> bytes | None:
        def call() -> bytes:
            buffer = BytesIO()
            response = self.client.get_object(self.bucket, self._key(name))
            if not self._receive(response, buffer, limit):
                return buffer.getvalue()  # the caller refuses it by its length
            data, expected = buffer.getvalue(), response.headers.get(DIGEST)
            # The name of a record does not contain its digest, and a truncated response may have a matching length.
            if expected and hashlib.sha256(data).hexdigest() != expected:
                raise CutShortError(f"{name} does not match its checksum ({len(data)} bytes arrived)")
            return data

        return self._unless_missing("read", lambda: self.client.retry(call))

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
        """Return the size of an object, or raise an error with the server's reason: a HEAD response has none."""
        try:
            headers = self._headers(name, length=1)
        except S3Error as error:
            if error.code == "InvalidRange":
                return 0
            raise
        total = headers.get("Content-Range", "").rpartition("/")[2]
        return int(total if total.isdecimal() else headers.get("Content-Length", "0"))

    def _headers(self, name: str, **options: int) -> Mapping[str, str]:
        response: urllib3.BaseHTTPResponse = self.client.get_object(self.bucket, self._key(name), **options)
        response.drain_conn()
        response.release_conn()
        return response.headers

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
                # The parts were joined but the response was lost, or the parts were deleted: the size shows which.
                if self.size(name) != size:
                    raise CutShortError(f"the parts of {name} were lost") from error

        self.client.retry(call)

    def create(self, name: str, data: bytes) -> None:
        # If a response is lost, the retried request meets its own object: the mark identifies the writer.
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
            return self._headers(name).get(WRITER)
        except S3Error as error:
            if error.code in MISSING:
                return None  # it existed and was deleted: another writer's
            raise

    def download(self, name: str, path: Path) -> bool:
        def call() -> bool:
            # Continue after the received part: an object never changes, and its reader verifies the digest.
            received = path.stat().st_size if path.exists() else 0
            try:
                response = self.client.get_object(self.bucket, self._key(name), offset=received)
            except S3Error as error:
                if error.code == "InvalidRange" and received:
                    path.unlink()
                    raise CutShortError(f"{name} is shorter than the part that was received") from error
                raise
            self._append(response, path, received)
            return True

        return bool(self._unless_missing("read", lambda: self.client.retry(call)))

    def download_version(self, item: Object, path: Path) -> bool:
        """Download an object to a new file; return False if it was changed or deleted since it was listed."""

        def call() -> bool:
            received = path.stat().st_size if path.exists() else 0
            if received and received == item.size:
                return True  # the previous attempt failed after the last byte
            condition = {"If-Match": f'"{item.etag}"'}
            key = self._key(item.name)
            response = self.client.get_object(self.bucket, key, offset=received, request_headers=condition)
            # Some servers ignore the condition.
            if _etag(response.headers.get("ETag")) != item.etag:
                response.close()
                return False
            self._append(response, path, received)
            received = path.stat().st_size
            if received < item.size:
                raise CutShortError(f"{received} of an object's {item.size} bytes arrived")
            return received == item.size

        with self._explained("read"):
            try:
                return bool(self.client.retry(call))
            except S3Error as error:
                if error.code in (*MISSING, "PreconditionFailed", "InvalidRange"):
                    return False
                raise

    def _append(self, response: urllib3.BaseHTTPResponse, path: Path, received: int) -> None:
        """Write the body of a response to a file, after the received part if the response continues it."""
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {received}-")
        with path.open("ab" if received and continues else "wb") as file:
            self._receive(response, file)

    def _receive(self, response: urllib3.BaseHTTPResponse, file: BinaryIO, limit: int | None = None) -> bool:
        """Write the body of a response to a file; return False if it exceeds `limit`, and raise an error if it is cut
        short or too slow.
        """
        start, received = time.monotonic(), 0
        try:
            while data := response.read1(2**18, decode_content=False):
                received += file.write(data)
                duration = time.monotonic() - start
                if duration > self.patience and received < SLOWEST * duration:
                    raise CutShortError(f"{received} bytes in {duration:.0f} seconds are too slow")
                if limit is not None and received > limit:
                    return False
            return True
        finally:
            response.close()
            response.release_conn()

    def delete(self, name: str) -> None:
        self._unless_missing("delete", lambda: self.client.remove_object(self.bucket, self._key(name)))

    def purge(self, prefix: str) -> None:
        """Delete all objects with this prefix and their old versions; this needs additional rights."""
        with self._explained("delete the versions of"):
            for old in self.client.list_objects(self.bucket, self._key(prefix), include_version=True):
                self.client.remove_object(self.bucket, old.object_name, old.version_id)

    def names(self, prefix: str) -> list[str]:
        with self._explained("list"):
            items = self.client.list_objects(self.bucket, self._key(prefix).rstrip("/") + "/", recursive=True)
            return [str(item.object_name)[len(self._key("")) :] for item in items]

    def objects(self) -> Iterator[Object]:
        """Yield every object below the prefix."""
        with self._explained("list"):
            prefix = self._key("")
            for item in self.client.list_objects(self.bucket, prefix, recursive=True):
                yield Object(str(item.object_name)[len(prefix) :], int(item.size or 0), _etag(item.etag))

    def skew(self) -> float | None:
        return self.client.skew

    def server(self) -> str:
        return f"the server {self.client.server or 'without a name'} at {self.client.endpoint}"

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _unless_missing(self, action: str, call: Callable[[], T]) -> T | None:
        with self._explained(action):
            try:
                return call()
            except S3Error as error:
                if error.code in MISSING:
                    return None
                raise

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except (S3Error, urllib3.exceptions.HTTPError) as error:
            raise self.client.explain(error, f"{action} objects", self.bucket) from error


def _etag(text: str | None) -> str:
    return (text or "").removeprefix("W/").strip('"')


def connect(bucket: str, prefix: str, *, pause: float = 0.1, patience: float = 60.0, of: str = "store") -> S3:
    """Return the backend of a store or a source in a bucket; docs/storage.md lists the environment variables.

    `pause` is the first pause between attempts, in seconds; `patience` the time to wait for a response.
    """
    endpoint = _endpoint()
    # The pool does not retry: the client does, depending on the error.
    verify: dict[str, object] = {"ca_certs": _authority()} if _authority() else {}
    timeout = urllib3.Timeout(connect=min(5.0, patience), read=patience)
    http = urllib3.PoolManager(timeout=timeout, retries=False, maxsize=64, **verify)  # type: ignore[arg-type]
    # Without a region, some servers return an unreadable response to the request for it.
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION", "us-east-1")
    client = Client(endpoint, region, Keys(verify, of), http, pause, of)
    style = (environment.get("AWS_S3_ADDRESSING_STYLE", "auto")).lower()
    if style not in ("auto", "path", "virtual"):
        raise UsageError(f"AWS_S3_ADDRESSING_STYLE is {style!r}; it must be auto, path or virtual.")
    if style == "virtual":
        client.enable_virtual_style_endpoint()
    elif style == "path":
        client.disable_virtual_style_endpoint()
    try:
        check_bucket_name(bucket, strict=True, s3_check=True)
    except ValueError as error:
        raise UsageError(
            f"The {of}'s bucket is {bucket!r}; S3 allows 3 to 63 lower-case letters, digits, hyphens and dots "
            f"({error}). Check {'MEDLOOP_STORE' if of == 'store' else 'its address'}."
        ) from error
    return S3(client, bucket, prefix, patience)


def _endpoint() -> str:
    name = "AWS_ENDPOINT_URL_S3" if environment.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    url = environment.get(name, "https://s3.amazonaws.com")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{name} is {url!r}; it must have http:// or https:// and a host: http://localhost:9000.")
    if parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        raise UsageError(f"{name} contains more than a server. Write {shown}, and the bucket in MEDLOOP_STORE.")
    try:
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{name} is {url!r}; its port is invalid ({error}).") from error
    return f"{parts.scheme}://{parts.netloc}"


def _authority() -> str:
    file = environment.get("AWS_CA_BUNDLE")
    if file and not Path(file).is_file():
        raise UsageError(f"AWS_CA_BUNDLE is {file!r}, but there is no such file. Set it to the authority's PEM file.")
    return file
