"""Requests to S3 storage: signed, retried after temporary errors, with explanations of permanent errors."""

from __future__ import annotations

import email.utils
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit
from xml.etree import ElementTree as ET

import urllib3
from minio import Minio
from minio.error import S3Error
from minio.signer import sign_v4_s3
from minio.time import to_amz_date

from components.shared.storage.directory import SlowBytes
from components.shared.storage.s3_credentials import Keys

T = TypeVar("T")
log = logging.getLogger("medloop.store")

ATTEMPTS = 10
LONGEST_PAUSE = 5.0
MAX_RETRY_AFTER = 20.0  # seconds; MinIO requests a minute while it starts

MISSING = frozenset({"NoSuchKey", "NoSuchObject"})
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidTokenId"})
SKEWED = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_UNKNOWN_KEYS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"})
_NO_RIGHTS = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden"})
_FULL = frozenset({"XMinioStorageFull", "InsufficientStorage", "QuotaExceeded", "EntityTooLarge"})
_PASSING = frozenset(
    {
        "SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable", "RequestTimeout",
        "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "OperationAborted",
        # The body of a request arrived truncated or changed; or two conditional writes conflicted.
        "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "ConditionalRequestConflict",
    }
)  # fmt: skip
_BY_STATUS = {
    301: "PermanentRedirect",
    400: "BadRequest",
    403: "AccessDenied",
    412: "PreconditionFailed",
    416: "InvalidRange",
    429: "TooManyRequests",
    501: "NotImplemented",
}


class CutShortError(Exception):
    """A response is incomplete or too slow."""


_FAILURES = (S3Error, urllib3.exceptions.HTTPError, CutShortError)


class Client(Minio):  # type: ignore[misc]  # the client is not typed for us
    """minio's client with another method for requests, which retries and uses the server's time."""

    def __init__(
        self, endpoint: str, region: str, keys: Keys, http: urllib3.PoolManager, pause: float, of: str = "store"
    ) -> None:
        parts = urlsplit(endpoint)
        super().__init__(
            endpoint=parts.netloc, secure=parts.scheme == "https", region=region, credentials=keys, http_client=http
        )
        self.endpoint, self.region, self.keys, self.pause, self.of = endpoint, region, keys, pause, of
        self.skew: float | None = None
        """Seconds by which this machine's clock is ahead of the server's, at the last response."""
        self.server = ""
        """Name of the server in the `Server` header of its responses."""
        self._amend = timedelta()

    def send(self, method: str, bucket: str, key: str | None = None, **rest: Any) -> Any:
        """Return the response to a request that minio's client has no method for."""
        return self._execute(method, bucket, key, **rest)

    def retry(self, call: Callable[[], T]) -> T:
        """Return the result of the call; repeat it with growing pauses while it fails temporarily."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except _FAILURES as error:
                if not self._is_temporary(error):
                    raise
                if attempt == ATTEMPTS:
                    raise self.explain(error) from error
                delay = _retry_after(error)
            # Half of each pause is random, so that clients do not retry at the same time.
            pause = min(self.pause * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
            time.sleep(max(pause, delay))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def explain(self, error: Exception, action: str = "do this", bucket: str = "") -> OSError:
        """Return an exception that explains the failure and its remedy."""
        if not isinstance(error, S3Error):
            return self._explain_connection(error)
        code, message, status = _read_error(error)
        # A server's message may contain the name of the object, which may be a patient's.
        why = code if self.of == "source" else f"{code}, {message}"
        where = f"{bucket or error.bucket_name!r} at {self.endpoint}" if error.bucket_name or bucket else self.endpoint
        if code in SKEWED:
            return PermissionError(
                f"This machine's clock is {_format_skew(self.skew)} the {self.of}'s at {self.endpoint}, which "
                "therefore refuses requests. Set this machine's clock (with NTP), or the server's."
            )
        if region := _region(error):
            return OSError(
                f"The bucket {where} is in the region {region!r}, but the request was for {self.region!r}. "
                f"Set AWS_REGION={region}."
            )
        if code not in _FULL and (code in _PASSING or status >= 500):
            return ConnectionError(
                f"The {self.of} at {self.endpoint} failed on all {ATTEMPTS} attempts: {why}. "
                "It is overloaded or broken: wait, or check the server's log; then run again."
            )
        return self._explain_refusal(code, why, action, where)

    def _explain_refusal(self, code: str, why: str, action: str, where: str) -> OSError:
        source = self.keys.source
        if code == "NoSuchBucket":
            remedy = (
                "Create it with `medloop storage init`, or check the bucket's name in MEDLOOP_STORE."
                if self.of == "store"
                else f"Check the bucket's name in the {self.of}'s address, and that AWS_ENDPOINT_URL names its server."
            )
            return OSError(f"There is no bucket {where} (NoSuchBucket). {remedy}")
        if code in EXPIRED:
            if self.keys.renewable:
                remedy = "Reading them again returned no others: renew them there, and run again."
            else:
                remedy = "Set new keys, with their AWS_SESSION_TOKEN, and run again: the run continues from here."
            return PermissionError(
                f"The keys of the {self.of} have expired ({code}). They come from {source}. {remedy}"
            )
        if code in _UNKNOWN_KEYS:
            return PermissionError(
                f"The {self.of} refused the keys: {why}. They come from {source}. Check them, and that "
                "AWS_ENDPOINT_URL names their server."
            )
        if code in _NO_RIGHTS:
            return PermissionError(
                f"The keys may not {action} in the bucket {where}: {why}. Grant the rights in docs/storage.md, or use "
                "other keys."
            )
        if code in _FULL:
            return OSError(f"The {self.of} at {self.endpoint} is full: {why}. Free some space there.")
        return OSError(f"The {self.of} could not {action} in {where}: {why}. Check the server's log.")

    def _explain_connection(self, error: Exception) -> OSError:
        message = str(error).rstrip(". \n")
        if isinstance(error, urllib3.exceptions.SSLError):
            if "WRONG_VERSION_NUMBER" in message or "RECORD_LAYER_FAILURE" in message:
                return ConnectionError(f"{self.endpoint} does not use TLS. Write http:// in AWS_ENDPOINT_URL.")
            return ConnectionError(
                f"The certificate of {self.endpoint} is not trusted ({message}). Set AWS_CA_BUNDLE to the file of the "
                "authority that signed it."
            )
        if isinstance(error, CutShortError):
            return ConnectionError(
                f"The {self.of} at {self.endpoint} returned an invalid response on all {ATTEMPTS} attempts: "
                f"{message}. Check that AWS_ENDPOINT_URL names an S3 server (not its console), and check the network."
            )
        return ConnectionError(
            f"The {self.of} at {self.endpoint} did not respond on {ATTEMPTS} attempts: {message}. Check the endpoint "
            "in AWS_ENDPOINT_URL, and that its server is running; then run again."
        )

    def _is_temporary(self, error: Exception) -> bool:
        if not isinstance(error, S3Error):
            return not isinstance(error, urllib3.exceptions.SSLError) or "EOF" in str(error)
        code, _, status = _read_error(error)
        if code in EXPIRED:
            self.keys.renew()
            return self.keys.renewable
        if code in SKEWED:
            self._use_server_time()
            return True
        return code not in _FULL and (code in _PASSING or (status >= 500 and status != 501))

    def _use_server_time(self) -> None:
        amend = timedelta(seconds=-round(self.skew or 0))
        if abs(amend - self._amend) > timedelta(seconds=60):
            log.warning(
                "this machine's clock is %s the store's: requests use the store's time; set the clock (with NTP)",
                _format_skew(self.skew),
            )
        self._amend = amend

    # minio's client uses this method for all requests.
    def _url_open(
        self,
        method: str,
        region: str,
        bucket_name: str | None = None,
        object_name: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, Any] | None = None,
        query_params: Mapping[str, Any] | None = None,
        preload_content: bool = True,
        no_body_trace: bool = False,  # noqa: ARG002  # part of the replaced method
    ) -> urllib3.BaseHTTPResponse:
        url = self._base_url.build(
            method=method, region=region, bucket_name=bucket_name, object_name=object_name, query_params=query_params
        )

        def once() -> urllib3.BaseHTTPResponse:
            keys = self.keys.retrieve()
            named, date = self._build_headers(url.netloc, dict(headers or {}), body, keys)
            date += self._amend
            named["x-amz-date"] = to_amz_date(date)
            signed = sign_v4_s3(
                method=method,
                url=url,
                region=region,
                headers=named,
                credentials=keys,
                content_sha256=named["x-amz-content-sha256"],
                date=date,
            )
            flat = urllib3.HTTPHeaderDict()
            for name, value in signed.items():
                for one in value if isinstance(value, (list, tuple)) else [value]:
                    flat.add(name, one)
            content = body.halves() if isinstance(body, SlowBytes) else body
            response: urllib3.BaseHTTPResponse = self._http.urlopen(
                method, urlunsplit(url), body=content, headers=flat, preload_content=preload_content, redirect=False
            )
            self._note_server(response)
            if response.status not in (200, 204, 206):
                raise _s3_error(method, response, url.path, bucket_name, object_name)
            if preload_content and method in ("GET", "POST"):
                _check_xml(method, response, url.path, bucket_name, object_name)
            return response

        return self.retry(once)

    def _note_server(self, response: urllib3.BaseHTTPResponse) -> None:
        self.server = response.headers.get("Server", self.server)
        date = _date(response.headers.get("Date"))
        if date:
            self.skew = (datetime.now(UTC) - date).total_seconds()


def _s3_error(
    method: str, response: urllib3.BaseHTTPResponse, path: str, bucket: str | None, key: str | None
) -> S3Error:
    """Return the error in a response, even without the content type that minio's client requires (rclone)."""
    response.read(cache_content=True)
    response.release_conn()
    text = response.data.decode("utf-8", "replace")
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("Code", "Message"))
    missing = "NoSuchKey" if key else "NoSuchBucket"
    name = code[1] if code else missing if response.status == 404 else _BY_STATUS.get(response.status)
    reason = message[1] if message else f"status {response.status} to {method}"
    return S3Error(response, name or f"HTTP{response.status}", reason, path, None, None, bucket, key)


def _check_xml(method: str, response: urllib3.BaseHTTPResponse, path: str, bucket: str | None, key: str | None) -> None:
    """Raise an error for truncated XML, and for an error in a response with status 200."""
    try:
        root = ET.fromstring(response.data)  # noqa: S314  # from the server of the store
    except ET.ParseError as error:
        raise CutShortError(f"its {len(response.data)} bytes are not complete XML ({error})") from error
    if root.tag.rpartition("}")[2] == "Error":
        raise _s3_error(method, response, path, bucket, key)


def _read_error(error: S3Error) -> tuple[str, str, int]:
    return str(error.code), str(error.message).strip().rstrip("."), int(error.response.status)


def _region(error: S3Error) -> str:
    """Return the region of the bucket if the error is about another region, or ""."""
    code, message, status = _read_error(error)
    if code not in ("PermanentRedirect", "AuthorizationHeaderMalformed", "BadRequest", "TemporaryRedirect"):
        return ""
    body = error.response.data.decode("utf-8", "replace") if status != 200 else ""
    match = re.search(r"<Region>(.*?)</Region>", body) or re.search(r"expecting '([^']+)'", message)
    return match[1] if match else str(error.response.headers.get("x-amz-bucket-region", ""))


def _retry_after(error: Exception) -> float:
    """Return the seconds to wait in the Retry-After header, up to a maximum."""
    value = error.response.headers.get("Retry-After", "") if isinstance(error, S3Error) else ""
    date = _date(value)
    seconds = float(value) if value.isdecimal() else (date - datetime.now(UTC)).total_seconds() if date else 0.0
    return max(0.0, min(seconds, MAX_RETRY_AFTER))


def _date(text: str | None) -> datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _format_skew(skew: float | None) -> str:
    if skew is None:
        return "different from"
    size = abs(skew)
    length = f"{size:.0f} seconds" if size < 120 else f"{size / 60:.0f} minutes" if size < 7200 else _hours(size)
    return f"{length} {'ahead of' if skew > 0 else 'behind'}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds < 172800 else f"{seconds / 86400:.0f} days"
