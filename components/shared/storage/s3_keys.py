"""Where the keys of S3 storage come from, and how they are renewed when they have expired."""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import urllib3
from minio.credentials import AWSConfigProvider, Credentials, EnvAWSProvider, IamAwsProvider, Provider

from components.shared import environment

ENVIRONMENT = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
"""The source of keys that this process cannot renew."""


class Keys(Provider):  # type: ignore[misc]  # the client is not typed for us
    """The keys to sign with, from the first source that the environment names; asked anew when they are refused."""

    def __init__(self, http: dict[str, object], of: str = "store") -> None:
        self.source, self._make = _source(http)
        self._of = of
        self._provider: Provider | None = None
        self._lock = Lock()

    @property
    def renewable(self) -> bool:
        """Whether the source may give other keys when it is asked again."""
        return self.source != ENVIRONMENT

    def retrieve(self) -> Credentials:
        """The keys; a PermissionError that says where none were found."""
        with self._lock:
            self._provider = self._provider or self._make()
            try:
                return self._provider.retrieve()
            except (ValueError, KeyError, OSError, configparser.Error, urllib3.exceptions.HTTPError) as error:
                # Its own words may hold the token that was sent, so they go nowhere.
                status = re.search(r"HTTP status code (\d+)", str(error))
                why = f"answered {status[1]}" if status else f"gave none ({type(error).__name__})"
                raise PermissionError(
                    f"No keys for the {self._of}: {self.source} {why}. Set {ENVIRONMENT}, or one of the other "
                    "sources in docs/storage.md."
                ) from None

    def renew(self) -> None:
        """Forget the keys, so that the source is asked again."""
        with self._lock:
            self._provider = None


def _source(http: dict[str, object]) -> tuple[str, Callable[[], Provider]]:
    """The first source that is there, in the order that AWS's own clients keep, and what makes its provider."""
    if environment.get("AWS_ACCESS_KEY_ID") or environment.get("AWS_SECRET_ACCESS_KEY"):
        return ENVIRONMENT, EnvAWSProvider

    def role(endpoint: str | None, tries: int, seconds: float) -> Callable[[], Provider]:
        codes = (429, 500, 502, 503, 504)
        again = urllib3.Retry(tries, backoff_factor=0.3, status_forcelist=codes, allowed_methods=None)
        pool = urllib3.PoolManager(timeout=seconds, retries=again, **http)  # type: ignore[arg-type]
        return lambda: IamAwsProvider(custom_endpoint=endpoint, http_client=pool)

    if environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return "the web identity in AWS_WEB_IDENTITY_TOKEN_FILE", role(environment.get("AWS_ENDPOINT_URL_STS"), 4, 10)
    file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    profile = environment.get("AWS_PROFILE")
    if profile or _has_default(file):
        return f"the profile {profile or 'default'!r} in {file}", lambda: AWSConfigProvider(str(file), profile)
    if any(environment.get(f"AWS_CONTAINER_CREDENTIALS_{which}_URI") for which in ("RELATIVE", "FULL")):
        return "the container's role", role(None, 4, 10)
    if environment.get("AWS_EC2_METADATA_DISABLED").lower() == "true":
        return "the environment", EnvAWSProvider
    # Off AWS nobody answers there: one short try.
    endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    return "the machine's role (no other source is set)", role(endpoint, 0, 1)


def _has_default(file: Path) -> bool:
    parser = configparser.ConfigParser()
    try:
        return bool(parser.read(file)) and parser.has_section("default")
    except (OSError, configparser.Error):
        return True  # it is there and cannot be read: asking it for keys says so
