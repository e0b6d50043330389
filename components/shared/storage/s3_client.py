"""Requests to S3 storage: signed, sent, sent again when they failed in passing, explained when they cannot succeed."""

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

from components.shared.storage.directory import Paused
from components.shared.storage.s3_keys import Keys

T = TypeVar("T")
log = logging.getLogger("medloop.store")

ATTEMPTS = 10
LONGEST_PAUSE = 5.0
LONGEST_ASKED = 20.0  # seconds that a server may ask for by Retry-After; MinIO asks for a minute while it starts

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
        # The body of a request arrived cut or changed; or two conditional writes met.
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
    """An answer came that is not whole, or came too slowly to wait for."""


_FAILURES = (S3Error, urllib3.exceptions.HTTPError, CutShortError)


class Client(Minio):  # type: ignore[misc]  # the client is not typed for us
    """minio's client with its one place for requests replaced: by one that perseveres, and keeps the server's time."""

    def __init__(
        self, endpoint: str, region: str, keys: Keys, http: urllib3.PoolManager, pause: float, of: str = "store"
    ) -> None:
        parts = urlsplit(endpoint)
        super().__init__(
            endpoint=parts.netloc, secure=parts.scheme == "https", region=region, credentials=keys, http_client=http
        )
        self.endpoint, self.region, self.keys, self.pause, self.of = endpoint, region, keys, pause, of
        self.skew: float | None = None
        """Seconds by which this machine's clock is ahead of the server's, as the last answer showed."""
        self.server = ""
        """What the server calls itself, in its answers' `Server` header."""
        self._amend = timedelta()

    def send(self, method: str, bucket: str, key: str | None = None, **rest: Any) -> Any:
        """The answer to a request that minio's client has no method for."""
        return self._execute(method, bucket, key, **rest)

    def persevere(self, call: Callable[[], T]) -> T:
        """What the call gives, called again with growing pauses while it fails for passing reasons."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except _FAILURES as error:
                if not self._worth_another_try(error):
                    raise
                if attempt == ATTEMPTS:
                    raise self.explain(error) from error
                asked = _retry_after(error)
            # Full back-off makes crowds; half of each pause is drawn.
            pause = min(self.pause * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
            time.sleep(max(pause, asked))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def explain(self, error: Exception, doing: str = "do this", bucket: str = "") -> OSError:
        """The failure as an exception that says what it means and what to do."""
        if not isinstance(error, S3Error):
            return self._unanswered(error)
        code, said, status = _said(error)
        # A server's words may hold the name of the object, and a scan's name may be a patient's.
        why = code if self.of == "source" else f"{code}, {said}"
        where = f"{bucket or error.bucket_name!r} at {self.endpoint}" if error.bucket_name or bucket else self.endpoint
        if code in SKEWED:
            return PermissionError(
                f"This machine's clock is {_off(self.skew)} the {self.of}'s at {self.endpoint}, and it refuses "
                "requests that are dated so. Set this machine's clock (with NTP), or the server's."
            )
        if region := _region(error):
            return OSError(
                f"The bucket {where} is in the region {region!r}, and the request was made for {self.region!r}. "
                f"Set AWS_REGION={region}."
            )
        if code not in _FULL and (code in _PASSING or status >= 500):
            return ConnectionError(
                f"The {self.of} at {self.endpoint} did not do it in {ATTEMPTS} tries: {why}. "
                "It is overloaded or broken: wait, or look at the server's log; then run again."
            )
        return self._refused(code, why, doing, where)

    def _refused(self, code: str, why: str, doing: str, where: str) -> OSError:
        source = self.keys.source
        if code == "NoSuchBucket":
            mend = (
                "Make it with `medloop storage init`, or check the bucket's name in MEDLOOP_STORE."
                if self.of == "store"
                else f"Check the bucket's name in the {self.of}'s address, and that AWS_ENDPOINT_URL names its server."
            )
            return OSError(f"There is no bucket {where} (NoSuchBucket). {mend}")
        if code in EXPIRED:
            renewed = "It gave no others when asked again: renew them there, and run again."
            fixed = "Set new ones, with their AWS_SESSION_TOKEN, and run again: it goes on from here."
            return PermissionError(
                f"The keys of the {self.of} have expired ({code}). They come from {source}. "
                + (renewed if self.keys.renewable else fixed)
            )
        if code in _UNKNOWN_KEYS:
            return PermissionError(
                f"The {self.of} refused the keys: {why}. They come from {source}. Check them, and that "
                "AWS_ENDPOINT_URL names the server that they belong to."
            )
        if code in _NO_RIGHTS:
            return PermissionError(
                f"The keys may not {doing} in the bucket {where}: {why}. Give them the rights that "
                "docs/storage.md lists, or use other keys."
            )
        if code in _FULL:
            return OSError(f"The {self.of} at {self.endpoint} is full: {why}. Free some space there.")
        return OSError(f"The {self.of} could not {doing} in {where}: {why}. Look at the server's log.")

    def _unanswered(self, error: Exception) -> OSError:
        said = str(error).rstrip(". \n")
        if isinstance(error, urllib3.exceptions.SSLError):
            if "WRONG_VERSION_NUMBER" in said or "RECORD_LAYER_FAILURE" in said:
                return ConnectionError(f"{self.endpoint} does not speak TLS. Write http:// in AWS_ENDPOINT_URL.")
            return ConnectionError(
                f"The certificate of {self.endpoint} is not trusted ({said}). Set AWS_CA_BUNDLE to the file of the "
                "authority that signed it."
            )
        if isinstance(error, CutShortError):
            return ConnectionError(
                f"The {self.of} at {self.endpoint} answered {ATTEMPTS} times, and never well: {said}. Check that "
                "AWS_ENDPOINT_URL names an S3 server (and not its console), and the network between."
            )
        return ConnectionError(
            f"The {self.of} at {self.endpoint} did not answer in {ATTEMPTS} tries: {said}. Check the endpoint in "
            "AWS_ENDPOINT_URL and that its server runs; then run again."
        )

    def _worth_another_try(self, error: Exception) -> bool:
        if not isinstance(error, S3Error):
            return not isinstance(error, urllib3.exceptions.SSLError) or "EOF" in str(error)
        code, _, status = _said(error)
        if code in EXPIRED:
            self.keys.renew()
            return self.keys.renewable
        if code in SKEWED:
            self._keep_the_servers_time()
            return True
        return code not in _FULL and (code in _PASSING or (status >= 500 and status != 501))

    def _keep_the_servers_time(self) -> None:
        amend = timedelta(seconds=-round(self.skew or 0))
        if abs(amend - self._amend) > timedelta(seconds=60):
            log.warning(
                "this machine's clock is %s the store's: requests are dated by the store's; set the clock (with NTP)",
                _off(self.skew),
            )
        self._amend = amend

    # minio's client makes each of its requests by this method.
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
        no_body_trace: bool = False,  # noqa: ARG002  # part of the method that this one replaces
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
            sent = body.halves() if isinstance(body, Paused) else body
            answer: urllib3.BaseHTTPResponse = self._http.urlopen(
                method, urlunsplit(url), body=sent, headers=flat, preload_content=preload_content, redirect=False
            )
            self._note_server(answer)
            if answer.status not in (200, 204, 206):
                raise _refusal(method, answer, url.path, bucket_name, object_name)
            if preload_content and method in ("GET", "POST"):
                _whole(method, answer, url.path, bucket_name, object_name)
            return answer

        return self.persevere(once)

    def _note_server(self, answer: urllib3.BaseHTTPResponse) -> None:
        self.server = answer.headers.get("Server", self.server)
        date = _date(answer.headers.get("Date"))
        if date:
            self.skew = (datetime.now(UTC) - date).total_seconds()


def _refusal(method: str, answer: urllib3.BaseHTTPResponse, path: str, bucket: str | None, key: str | None) -> S3Error:
    """The server's error, also where its kind of content is not named as minio's client wants it (rclone)."""
    answer.read(cache_content=True)
    answer.release_conn()
    text = answer.data.decode("utf-8", "replace")
    code, said = (re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("Code", "Message"))
    missing = "NoSuchKey" if key else "NoSuchBucket"
    named = code[1] if code else missing if answer.status == 404 else _BY_STATUS.get(answer.status)
    words = said[1] if said else f"status {answer.status} to {method}"
    return S3Error(answer, named or f"HTTP{answer.status}", words, path, None, None, bucket, key)


def _whole(method: str, answer: urllib3.BaseHTTPResponse, path: str, bucket: str | None, key: str | None) -> None:
    """Refuse XML that was cut where no length told so, and the error that may follow a 200."""
    try:
        root = ET.fromstring(answer.data)  # noqa: S314  # from the server that holds the models
    except ET.ParseError as error:
        raise CutShortError(f"its {len(answer.data)} bytes are not whole XML ({error})") from error
    if root.tag.rpartition("}")[2] == "Error":
        raise _refusal(method, answer, path, bucket, key)


def _said(error: S3Error) -> tuple[str, str, int]:
    return str(error.code), str(error.message).strip().rstrip("."), int(error.response.status)


def _region(error: S3Error) -> str:
    """The region that the bucket is in, where the refusal is about that."""
    code, said, status = _said(error)
    if code not in ("PermanentRedirect", "AuthorizationHeaderMalformed", "BadRequest", "TemporaryRedirect"):
        return ""
    body = error.response.data.decode("utf-8", "replace") if status != 200 else ""
    found = re.search(r"<Region>(.*?)</Region>", body) or re.search(r"expecting '([^']+)'", said)
    return found[1] if found else str(error.response.headers.get("x-amz-bucket-region", ""))


def _retry_after(error: Exception) -> float:
    """The seconds that the server asks to wait, within reason."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, S3Error) else ""
    date = _date(asked)
    seconds = float(asked) if asked.isdecimal() else (date - datetime.now(UTC)).total_seconds() if date else 0.0
    return max(0.0, min(seconds, LONGEST_ASKED))


def _date(text: str | None) -> datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(text or "")
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _off(skew: float | None) -> str:
    """By how much a clock is off, in words."""
    if skew is None:
        return "off from"
    size = abs(skew)
    length = f"{size:.0f} seconds" if size < 120 else f"{size / 60:.0f} minutes" if size < 7200 else _hours(size)
    return f"{length} {'ahead of' if skew > 0 else 'behind'}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds < 172800 else f"{seconds / 86400:.0f} days"
