"""Checks of what a run on a cluster needs: server, permissions, images, time zone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from components.shared.runtime.stage_interface import stages
from medloop.check_results import CheckResult
from medloop.settings import Settings

SECRET = "medloop"  # noqa: S105 - its name, not what it holds
RIGHTS = (
    ("list", "", "pods", "", "see why a step is pending"),
    ("get", "", "pods", "log", "read the logs of a step"),
    ("create", "", "secrets", "", f"create the secret {SECRET} with the keys for the stages"),
)
"""Useful permissions on a cluster: verb, group, resource, subresource, purpose."""


def kubeflow(settings: Settings) -> Iterator[CheckResult]:
    """Check that the Kubeflow Pipelines server responds, is recent enough and accepts the credentials."""
    from medloop.kubeflow.cluster_file import read_cluster
    from medloop.kubeflow.login import connect
    from workflows.package import oldest_server

    if not settings.kubeflow.endpoint:
        remedy = "Only submit and schedule need one; set KF_PIPELINES_ENDPOINT."
        yield CheckResult("Kubeflow", "note", "no server is configured", remedy)
        return
    try:
        server = connect(settings.kubeflow)
        info = server.check(oldest_server(read_cluster(settings.cluster_file)))
        list(islice(server.runs(), 1))
    except (ValueError, OSError, RuntimeError) as error:
        yield CheckResult("Kubeflow", "problem", str(error))
        return
    users = f"multi-user, namespace {settings.kubeflow.namespace}" if info.multi_user else "single-user"
    yield CheckResult("Kubeflow", "ok", f"{info.version} at {server.host}, {users}")


def rights(settings: Settings) -> Iterator[CheckResult]:
    """Check the user's permissions in the cluster, if one is configured."""
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    configuration = client.Configuration()
    try:
        config.load_kube_config(client_configuration=configuration, context=settings.kubeflow.context or None)
    except config.ConfigException:
        yield CheckResult("Kubernetes", "note", "no cluster is configured", "Optional; set KUBECONFIG.")
        return
    configuration.retries = 0
    api = client.ApiClient(configuration)
    namespace = settings.kubeflow.namespace or "kubeflow"
    try:
        denied = [right for right in RIGHTS if not _may(client.AuthorizationV1Api(api), namespace, *right[:4])]
        has_secret = _has_secret(client.CoreV1Api(api), namespace)
    except (HTTPError, ApiException) as error:
        why = f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error).rsplit(": ", 1)[-1]
        remedy = "Check KUBECONFIG and your login to the cluster."
        yield CheckResult("Kubernetes", "note", f"{configuration.host} does not respond: {why}", remedy)
        return
    for verb, _, kind, part, purpose in denied:
        means = f"no permission to {verb} {kind}{'/' + part if part else ''} in {namespace}, needed to {purpose}"
        yield CheckResult("Kubernetes", "note", means, "Ask the administrators of the cluster.")
    if not denied:
        yield CheckResult("Kubernetes", "ok", f"{configuration.host}: all useful permissions in {namespace}")
    if has_secret is not None:
        means = f"{SECRET} {'exists' if has_secret else 'does not exist'} in {namespace}"
        remedy = "" if has_secret else "It contains the keys for the stages; docs/cluster.md explains how to create it."
        yield CheckResult("secret", "ok" if has_secret else "note", means, remedy)


def _may(api: Any, namespace: str, verb: str, group: str, kind: str, part: str) -> bool:
    from kubernetes import client

    access = client.V1ResourceAttributes(namespace=namespace, verb=verb, group=group, resource=kind, subresource=part)
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=access))
    return bool(api.create_self_subject_access_review(review, _request_timeout=(5, 20)).status.allowed)


def _has_secret(api: Any, namespace: str) -> bool | None:
    from kubernetes.client.exceptions import ApiException

    try:
        api.read_namespaced_secret(SECRET, namespace, _request_timeout=(5, 20))
    except ApiException as error:
        return False if error.status == 404 else None
    return True


def images(settings: Settings) -> Iterator[CheckResult]:
    """Check that the stage images exist in the registry."""
    from workflows.container_registry import pin
    from workflows.image_names import choose

    if not settings.images:
        yield CheckResult("images", "note", "no registry is configured", "Set MEDLOOP_IMAGES=registry/prefix:tag.")
        return
    try:
        pin(choose(settings.images, []))
    except (ValueError, OSError) as error:
        yield CheckResult("images", "problem", str(error))
        return
    yield CheckResult("images", "ok", f"{settings.images}: all {len(stages())} images can be pulled")


def zones(settings: Settings) -> Iterator[CheckResult]:
    """Check the time zone of the server's schedules."""
    from medloop.kubeflow.cron import zone

    now = datetime.now(UTC).astimezone()
    try:
        server_zone = zone(settings.kubeflow.timezone)
    except ValueError as error:
        remedy = "The package tzdata contains the list of zones."
        yield CheckResult("time zone", "problem", f"MEDLOOP_KFP_TIMEZONE: {error}", remedy)
        return
    yield CheckResult("time zone", "ok", f"{now:%Z (%z)} on this machine, {server_zone.key} for the server's schedules")
