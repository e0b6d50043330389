"""The doctor's looks at what a run on a cluster needs: server, rights, images, time zones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from components.shared.runtime.interface import stages
from medloop.findings import Finding
from medloop.settings import Settings

SECRET = "medloop"  # noqa: S105 - its name, not what it holds
NOT_NEEDED = "Only submit and schedule need one; KF_PIPELINES_ENDPOINT names it."
RIGHTS = (
    ("list", "", "pods", "", "see what a step waits for"),
    ("get", "", "pods", "log", "read what a step says"),
    ("create", "", "secrets", "", f"make the secret {SECRET} with the keys that stages need"),
)
"""What a person who runs medloop on a cluster is glad to be allowed: verb, group, kind, part, what for."""


def kubeflow(settings: Settings) -> Iterator[Finding]:
    """The Kubeflow Pipelines server: does it answer, is it new enough, does it let us in?"""
    from medloop.kubeflow.cluster import read_cluster
    from medloop.kubeflow.login import connect
    from workflows.package import oldest_server

    if not settings.kubeflow.endpoint:
        yield Finding("Kubeflow", "note", "no server is named", NOT_NEEDED)
        return
    try:
        server = connect(settings.kubeflow)
        about = server.about(oldest_server(read_cluster(settings.cluster_file)))
        list(islice(server.runs(), 1))
    except (ValueError, OSError, RuntimeError) as error:
        yield Finding("Kubeflow", "problem", str(error))
        return
    users = f"many users; this one works in {settings.kubeflow.namespace}" if about.multi_user else "one user"
    yield Finding("Kubeflow", "ok", f"{about.version} at {server.host}, {users}")


def rights(settings: Settings) -> Iterator[Finding]:
    """What the cluster lets this person do, where there is a way to ask."""
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    configuration = client.Configuration()
    try:
        config.load_kube_config(client_configuration=configuration, context=settings.kubeflow.context or None)
    except config.ConfigException:
        yield Finding("Kubernetes", "note", "no cluster is named", "KUBECONFIG names one; nothing here needs it.")
        return
    configuration.retries = 0
    api = client.ApiClient(configuration)
    namespace = settings.kubeflow.namespace or "kubeflow"
    try:
        denied = [right for right in RIGHTS if not _may(client.AuthorizationV1Api(api), namespace, *right[:4])]
        there = _has_secret(client.CoreV1Api(api), namespace)
    except (HTTPError, ApiException) as error:
        why = f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error).rsplit(": ", 1)[-1]
        remedy = "Check KUBECONFIG, and your log-in to the cluster."
        yield Finding("Kubernetes", "note", f"{configuration.host} does not answer: {why}", remedy)
        return
    for verb, _, kind, part, purpose in denied:
        what = f"{verb} {kind}{'/' + part if part else ''} in {namespace}"
        yield Finding("Kubernetes", "note", f"you may not {what}, so you cannot {purpose}", "Ask its administrators.")
    if not denied:
        yield Finding("Kubernetes", "ok", f"{configuration.host}: you may all that helps, in {namespace}")
    if there is not None:
        means = f"{SECRET} is {'there' if there else 'missing'} in {namespace}"
        remedy = "" if there else "Stages take their keys from it: docs/cluster.md says how to make it."
        yield Finding("secret", "ok" if there else "note", means, remedy)


def _may(api: Any, namespace: str, verb: str, group: str, kind: str, part: str) -> bool:
    from kubernetes import client

    asked = client.V1ResourceAttributes(namespace=namespace, verb=verb, group=group, resource=kind, subresource=part)
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=asked))
    return bool(api.create_self_subject_access_review(review, _request_timeout=(5, 20)).status.allowed)


def _has_secret(api: Any, namespace: str) -> bool | None:
    from kubernetes.client.exceptions import ApiException

    try:
        api.read_namespaced_secret(SECRET, namespace, _request_timeout=(5, 20))
    except ApiException as error:
        return False if error.status == 404 else None
    return True


def images(settings: Settings) -> Iterator[Finding]:
    """Whether the images are where they will be pulled from."""
    from workflows.container_registry import pin
    from workflows.image_names import choose

    if not settings.images:
        yield Finding("images", "note", "no registry is named", "MEDLOOP_IMAGES=registry/prefix:tag names one.")
        return
    try:
        pin(choose(settings.images, []))
    except (ValueError, OSError) as error:
        yield Finding("images", "problem", str(error))
        return
    yield Finding("images", "ok", f"{settings.images}: all {len(stages())} are there and can be read")


def zones(settings: Settings) -> Iterator[Finding]:
    """The clocks that matter: this machine's, and the one by which the server keeps schedules."""
    from medloop.kubeflow.cron import zone

    here = datetime.now(UTC).astimezone()
    try:
        there = zone(settings.kubeflow.timezone)
    except ValueError as error:
        yield Finding("time zone", "problem", f"MEDLOOP_KFP_TIMEZONE: {error}", "The package tzdata brings the list.")
        return
    yield Finding("time zone", "ok", f"{here:%Z (%z)} here; schedules are kept by the server's clock in {there.key}")
