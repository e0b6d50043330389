"""The way to a Kubeflow Pipelines server: its address, and the log-ins that are usual there."""

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
"""What a header may hold."""

PROXY = "api/v1/namespaces/{}/services/ml-pipeline:http/proxy"
INSIDE = "http://ml-pipeline.{}.svc.cluster.local:8888"


def connect(settings: Kubeflow) -> Server:
    """The server that the settings name, else that of the cluster this machine or pod belongs to; logged in."""
    from kfp_server_api import ApiClient, Configuration

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # what it warns of is told in the error
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
                f"MEDLOOP_KFP_CA is {settings.ca!r}, and there is no such file. Name the authority's file."
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
            f"The server's address is {endpoint!r}. Write it with http:// or https://, such as http://127.0.0.1:8080 "
            "or https://kubeflow.example/pipeline."
        )
    if "@" in parts.netloc:
        raise RefusedError(
            "KF_PIPELINES_ENDPOINT holds a user or a password (not shown), which would stand in messages and links. "
            f"Write {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path} there. {LOGIN}"
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
            named = environment.get("KUBECONFIG") or None
            config.load_kube_config(named, settings.context or None, configuration)
        except (ConfigException, YAMLError) as error:
            raise RefusedError(
                "No Kubeflow Pipelines server is named. Set KF_PIPELINES_ENDPOINT to its address, such as "
                "http://127.0.0.1:8080, or KUBECONFIG to a file that leads to its cluster"
                + (f" ({named}: {' '.join(str(error).split())})." if named else ".")
            ) from None
        configuration.host = address = f"{configuration.host.rstrip('/')}/{PROXY.format(HOME)}"
        if renew := configuration.refresh_api_key_hook:

            def renew_token_alone(configuration: Any) -> None:
                renew(configuration)
                # With the token it sets the address of the cluster itself, and itself as what renews.
                configuration.host, configuration.refresh_api_key_hook = address, renew_token_alone

            configuration.refresh_api_key_hook = renew_token_alone


def _log_in(configuration: Any, settings: Kubeflow) -> None:
    if settings.token:
        configuration.api_key["authorization"] = _header(settings.token, "MEDLOOP_KFP_TOKEN")
        configuration.refresh_api_key_hook = None
        configuration.api_key_prefix["authorization"] = "Bearer"
    elif settings.token_file:
        file = Path(settings.token_file)

        def read_anew(configuration: Any) -> None:  # the cluster renews it every hour or so
            try:
                token = file.read_bytes().decode("utf-8", "replace")
                configuration.api_key["authorization"] = _header(token, f"The token file {file}")
            except OSError as error:
                raise PermissionError(
                    f"The token file {file} cannot be read ({error.strerror}). Set KF_PIPELINES_SA_TOKEN_PATH to "
                    "one that can."
                ) from None

        configuration.api_key["authorization"] = ""
        configuration.api_key_prefix["authorization"] = "Bearer"
        configuration.refresh_api_key_hook = read_anew
    elif client := environment.get("KF_PIPELINES_IAP_OAUTH2_CLIENT_ID"):
        from kfp.client import auth

        other = (environment.get(f"KF_PIPELINES_APP_OAUTH2_CLIENT_{part}") for part in ("ID", "SECRET"))
        configuration.api_key["authorization"], _ = auth.get_auth_token(client, *other)
        configuration.api_key_prefix["authorization"] = "Bearer"


def _header(secret: str, what: str) -> str:
    """The secret as a header can carry it; refused without showing it."""
    text = secret.strip()
    if not PRINTABLE.fullmatch(text):
        wrong = "holds characters that no header can carry" if text else "is empty"
        raise RefusedError(
            f"{what} {wrong} (its value is not shown). Set it to the token or cookies alone, on one line."
        )
    return text
