"""Keys for S3 storage: where they come from, and their renewal."""

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
"""The source whose keys this process cannot renew."""


class Keys(Provider):  # type: ignore[misc]  # the client is not typed for us
    """Keys for requests, from the first source that the environment names; read again when they have expired."""

    def __init__(self, http: dict[str, object], of: str = "store") -> None:
        self.source, self._make = _source(http)
        self._of = of
        self._provider: Provider | None = None
        self._lock = Lock()

    @property
    def renewable(self) -> bool:
        """Whether reading the source again may return other keys."""
        return self.source != ENVIRONMENT

    def retrieve(self) -> Credentials:
        """Return the keys; raise a PermissionError if the source has none."""
        with self._lock:
            self._provider = self._provider or self._make()
            try:
                return self._provider.retrieve()
            except (ValueError, KeyError, OSError, configparser.Error, urllib3.exceptions.HTTPError) as error:
                # The error's text may contain a token, and is not shown.
                status = re.search(r"HTTP status code (\d+)", str(error))
                why = f"responded with status {status[1]}" if status else f"has none ({type(error).__name__})"
                raise PermissionError(
                    f"No keys for the {self._of}: {self.source} {why}. Set {ENVIRONMENT}, or one of the other "
                    "sources in docs/storage.md."
                ) from None

    def renew(self) -> None:
        """Discard the keys, so that the source is read again."""
        with self._lock:
            self._provider = None


def _source(http: dict[str, object]) -> tuple[str, Callable[[], Provider]]:
    """Return the first available source, in the order of AWS's own clients, and the constructor of its provider."""
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
    # Outside of AWS this endpoint does not exist: try once, briefly.
    endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    return "the machine's role (no other source is set)", role(endpoint, 0, 1)


def _has_default(file: Path) -> bool:
    parser = configparser.ConfigParser()
    try:
        return bool(parser.read(file)) and parser.has_section("default")
    except (OSError, configparser.Error):
        return True  # it exists but cannot be read: reading keys will report that
