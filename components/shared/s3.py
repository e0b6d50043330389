"""The S3-compatible side of the store: one bucket and prefix, through the minio client."""

from __future__ import annotations

import errno
import os
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

    def __init__(self, client: Minio, bucket: str, prefix: str) -> None:
        self.client, self.bucket, self.prefix = client, bucket, prefix
        self.http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=10, read=60), retries=False)

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
        def call() -> int:
            url = self.client.presigned_put_object(self.bucket, self._key(name))
            answer = self.http.request("PUT", url, body=data, headers={"If-None-Match": "*"}, redirect=False)
            if answer.status in (409, 412):
                raise FileExistsError(errno.EEXIST, "was created before", name)
            if answer.status >= 300:
                code = f"HTTP{answer.status}"
                raise S3Error(answer, code, answer.data[:200].decode("utf-8", "replace"), name, "", "")
            return int(answer.status)

        # A retried create can meet its own first try; what stands there then says whose it is.
        try:
            _retry(call)
        except FileExistsError:
            if self.read(name) != data:
                raise
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(f"The store did not answer: {error}. Check the network and run again.") from error

    def upload(self, name: str, path: Path) -> None:
        _retry(lambda: self.client.fput_object(self.bucket, self._key(name), str(path)))

    def download(self, name: str, path: Path) -> bool:
        fetched = self._unless_missing(lambda: self.client.fget_object(self.bucket, self._key(name), str(path)))
        return fetched is not None

    def delete(self, name: str) -> None:
        _retry(lambda: self.client.remove_object(self.bucket, self._key(name)))

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
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                return None
            raise


_REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket", "ExpiredToken")


def _retry(call: Callable[[], T], attempts: int = 5) -> T:
    for attempt in range(attempts):
        try:
            return call()
        except S3Error as error:
            if error.code in _REFUSED:
                raise PermissionError(
                    f"The store refused the request: {error.code}, {error.message}. Check the bucket's name, and the "
                    "keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what they may do."
                ) from error
            passing = error.code in ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout")
            if not (passing or error.code.startswith("HTTP5")) or attempt == attempts - 1:
                raise
        except (InvalidResponseError, ServerError, urllib3.exceptions.HTTPError) as error:
            if attempt == attempts - 1:
                raise ConnectionError(
                    f"The store did not answer: {error}. Check the endpoint and run again."
                ) from error
        time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


def connect(bucket: str, prefix: str) -> S3:
    """The bucket's side of a store; endpoint, region and credentials come from the environment."""
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "https://s3.amazonaws.com"))
    client = Minio(
        endpoint=endpoint.netloc,
        access_key=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        session_token=os.environ.get("AWS_SESSION_TOKEN"),
        secure=endpoint.scheme == "https",
        region=os.environ.get("AWS_REGION", "us-east-1"),  # without one, some servers answer the look-up unreadably
    )
    return S3(client, bucket, prefix)
