"""The S3-compatible side of the store: one bucket and prefix, through the minio client."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, S3Error, ServerError

T = TypeVar("T")


class S3:
    """A store in a bucket. Calls that fail for a passing reason are tried again with growing pauses."""

    def __init__(self, client: Minio, bucket: str, prefix: str, http: urllib3.PoolManager) -> None:
        self.client, self.bucket, self.prefix, self.http = client, bucket, prefix, http

    def read(self, name: str) -> bytes | None:
        def call() -> bytes:
            response = self.client.get_object(self.bucket, self._key(name))
            try:
                return bytes(response.read())
            finally:
                response.close()
                response.release_conn()

        return self._unless_missing(call)

    def has(self, name: str) -> bool:
        return self._unless_missing(lambda: self.client.stat_object(self.bucket, self._key(name))) is not None

    def write(self, name: str, data: bytes) -> None:
        _retry(lambda: self.client.put_object(self.bucket, self._key(name), BytesIO(data), len(data)))

    def create(self, name: str, data: bytes) -> None:
        # minio's put_object has no argument for the condition, so the request is signed and sent by hand.
        tries = 0

        def call() -> int:
            nonlocal tries
            tries += 1
            url = self.client.presigned_put_object(self.bucket, self._key(name))
            answer = self.http.request("PUT", url, body=data, headers={"If-None-Match": "*"}, redirect=False)
            if answer.status in (409, 412):
                raise FileExistsError(errno.EEXIST, "was created before", name)
            if answer.status >= 300:
                body = answer.data.decode("utf-8", "replace")
                raise InvalidResponseError(answer.status, answer.headers.get("Content-Type"), body)
            return int(answer.status)

        # A retried create can meet its own first try; what stands there then says whose it is.
        try:
            _retry(call)
        except FileExistsError:
            if tries == 1 or self.read(name) != data:
                raise

    def upload(self, name: str, path: Path) -> None:
        _retry(lambda: self.client.fput_object(self.bucket, self._key(name), str(path)))

    def download(self, name: str, path: Path) -> bool:
        fetched = self._unless_missing(lambda: self.client.fget_object(self.bucket, self._key(name), str(path)))
        return fetched is not None

    def delete(self, name: str) -> None:
        self._unless_missing(lambda: self.client.remove_object(self.bucket, self._key(name)))

    def names(self, prefix: str) -> list[str]:
        def call() -> list[str]:
            found = self.client.list_objects(self.bucket, self._key(prefix).rstrip("/") + "/", recursive=True)
            return [str(item.object_name)[len(self._key("")) :] for item in found]

        return _retry(call)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _unless_missing(self, call: Callable[[], T]) -> T | None:
        try:
            return _retry(call)
        except MissingError:
            return None


class MissingError(FileNotFoundError):
    """There is no object of that name."""


_MISSING = ("NoSuchKey", "NoSuchObject")
_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "ExpiredToken", "HTTP403")
_PASSING = ("", "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout")
_FAILURES = (S3Error, InvalidResponseError, ServerError, urllib3.exceptions.HTTPError)


def _retry(call: Callable[[], T], attempts: int = 6) -> T:
    for attempt in range(attempts):
        try:
            return call()
        except _FAILURES as error:
            code, said = _answer(error)
            said = said.rstrip(". \n")
            if code in _MISSING:
                raise MissingError(errno.ENOENT, said) from error
            if code in _REFUSED:
                raise PermissionError(
                    f"The store refused the request: {code}, {said}. Check the bucket's name, and the "
                    "keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what they may do."
                ) from error
            if code not in _PASSING and not code.startswith("HTTP5"):
                raise OSError(f"The store could not do it: {code}, {said}. Look at the server's log.") from error
            if attempt == attempts - 1:
                raise ConnectionError(f"The store did not answer: {said}. Check the endpoint and run again.") from error
        time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _answer(error: Exception) -> tuple[str, str]:
    """The code and the words of a failure; no code where no answer came at all."""
    if isinstance(error, S3Error):
        return str(error.code), str(error.message)
    if isinstance(error, ServerError):
        return f"HTTP{error.status_code}", str(error)
    # Some servers (rclone) label their XML in a way that the client does not read: what matters stands in it.
    found = re.search(r"Response code: (\d+)", str(error)) if isinstance(error, InvalidResponseError) else None
    if not found:
        return "", str(error)
    code, said = (re.search(f"<{tag}>(.*?)</{tag}>", str(error), re.DOTALL) for tag in ("Code", "Message"))
    return code[1] if code else f"HTTP{found[1]}", said[1] if said else "without a word"


def connect(bucket: str, prefix: str) -> S3:
    """The bucket's side of a store; endpoint, region and credentials come from the environment."""
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "https://s3.amazonaws.com"))
    # The pool does not try again by itself: `_retry` does, and knows what is worth it.
    http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=10, read=60), retries=False, maxsize=16)
    client = Minio(
        endpoint=endpoint.netloc,
        access_key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        session_token=os.environ.get("AWS_SESSION_TOKEN"),
        secure=endpoint.scheme == "https",
        region=os.environ.get("AWS_REGION", "us-east-1"),  # without one, some servers answer the look-up unreadably
        http_client=http,
    )
    return S3(client, bucket, prefix, http)
