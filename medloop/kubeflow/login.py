"""Connection to a Kubeflow Pipelines server: its address and the common login methods."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from yaml import YAMLError

from components.shared import environment
from components.shared.errors import RefusedError
from medloop.kubeflow.server import HOME, LOGIN, Server
from medloop.settings import Kubeflow

PRINTABLE = re.compile(r"[\x20-\x7e]+")
"""Characters allowed in a header."""

PROXY = "api/v1/namespaces/{}/services/ml-pipeline:http/proxy"
INSIDE = "http://ml-pipeline.{}.svc.cluster.local:8888"


def connect(settings: Kubeflow) -> Server:
    """Return a client of the server in the settings, or of the cluster of this pod or of KUBECONFIG."""
    from kfp_server_api import ApiClient, Configuration

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # its warnings repeat the error message
    configuration = Configuration()
    configuration.retries = urllib3.Retry(
        4, connect=2, other=0, backoff_factor=0.3, status_forcelist=(429, 502, 503, 504), raise_on_status=False
    )
    if settings.endpoint:
        configuration.host = _address(settings.endpoint)
    else:
        _find_cluster(configuration, settings)
    if settings.ca:
        if not Path(settings.ca).is_file():
            raise RefusedError(
                f"MEDLOOP_KFP_CA is {settings.ca!r}, but no such file exists. Name the certificate of the authority."
            )
        configuration.ssl_ca_cert = settings.ca
    _log_in(configuration, settings)
    cookies = settings.cookies and _header(settings.cookies, "MEDLOOP_KFP_COOKIES")
    client = ApiClient(configuration, cookie=cookies or None)
    return Server(client, settings.ui or configuration.host, settings.namespace)


def _address(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RefusedError(
            f"The server's address is {endpoint!r}; it must begin with http:// or https://, such as "
            "http://127.0.0.1:8080 or https://kubeflow.example/pipeline."
        )
    if "@" in parts.netloc:
        raise RefusedError(
            "KF_PIPELINES_ENDPOINT contains a user or password (not shown), which would appear in messages and links. "
            f"Set it to {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}. {LOGIN}"
        )
    return endpoint.rstrip("/")


def _find_cluster(configuration: Any, settings: Kubeflow) -> None:
    from kubernetes import config
    from kubernetes.config import ConfigException

    try:
        config.load_incluster_config()
        configuration.host = INSIDE.format(HOME)
    except ConfigException:
        try:
            file = environment.get("KUBECONFIG") or None
            config.load_kube_config(file, settings.context or None, configuration)
        except (ConfigException, YAMLError) as error:
            raise RefusedError(
                "No Kubeflow Pipelines server is configured. Set KF_PIPELINES_ENDPOINT to its address, such as "
                "http://127.0.0.1:8080, or KUBECONFIG to a file with its cluster"
                + (f" ({file}: {' '.join(str(error).split())})." if file else ".")
            ) from None
        configuration.host = address = f"{configuration.host.rstrip('/')}/{PROXY.format(HOME)}"
        if renew := configuration.refresh_api_key_hook:

            def renew_token(configuration: Any) -> None:
                renew(configuration)
                # The hook also replaces the address and itself; restore both.
                configuration.host, configuration.refresh_api_key_hook = address, renew_token

            configuration.refresh_api_key_hook = renew_token


def _log_in(configuration: Any, settings: Kubeflow) -> None:
    if settings.token:
        configuration.api_key["authorization"] = _header(settings.token, "MEDLOOP_KFP_TOKEN")
        configuration.refresh_api_key_hook = None
        configuration.api_key_prefix["authorization"] = "Bearer"
    elif settings.token_file:
        file = Path(settings.token_file)

        def read_token(configuration: Any) -> None:  # the cluster renews the file about every hour
            try:
                token = file.read_bytes().decode("utf-8", "replace")
                configuration.api_key["authorization"] = _header(token, f"The token file {file}")
            except OSError as error:
                raise PermissionError(
                    f"The token file {file} cannot be read ({error.strerror}). Set KF_PIPELINES_SA_TOKEN_PATH to "
                    "a readable file."
                ) from None

        configuration.api_key["authorization"] = ""
        configuration.api_key_prefix["authorization"] = "Bearer"
        configuration.refresh_api_key_hook = read_token
    elif client := environment.get("KF_PIPELINES_IAP_OAUTH2_CLIENT_ID"):
        from kfp.client import auth

        other = (environment.get(f"KF_PIPELINES_APP_OAUTH2_CLIENT_{part}") for part in ("ID", "SECRET"))
        configuration.api_key["authorization"], _ = auth.get_auth_token(client, *other)
        configuration.api_key_prefix["authorization"] = "Bearer"


def _header(secret: str, what: str) -> str:
    """Return the secret as a header value; raise RefusedError, without showing it, if it is invalid."""
    text = secret.strip()
    if not PRINTABLE.fullmatch(text):
        problem = "contains characters that are not allowed in a header" if text else "is empty"
        raise RefusedError(f"{what} {problem} (value not shown). Set it to only the token or cookies, on one line.")
    return text
