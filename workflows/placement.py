"""Placement of a stage on a cluster, and its translation to Kubeflow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from components.shared.errors import UsageError

SPOT_TAINTS = (
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
    ("karpenter.sh/capacity-type", "spot"),
)
"""Taints of preemptible nodes of the cloud providers."""

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - Linux's path for it

YEAR = 365 * 24 * 3600

RUN_LABEL = "metadata.labels['pipeline/runid']"
"""Field of a Kubeflow pod with the id of its run."""


@dataclass(frozen=True)
class Placement:
    """Resources and placement of one stage. Empty values mean the default of the cluster."""

    cpu: str = ""
    cpu_limit: str = ""
    memory: str = ""
    accelerator: str = "nvidia.com/gpu"
    accelerators: int = 0
    shared_memory: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    spot: bool = False
    retries: int = 0
    backoff: str = "30s"
    backoff_factor: int = 2
    timeout: str = ""
    user: int = -1
    group: int = -1
    non_root: bool = False
    image_pull_policy: str = ""
    image_pull_secrets: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    secret_files: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)

    def apply(self, task: Any) -> None:
        """Apply the placement to a task of a pipeline."""
        task.set_caching_options(False)  # medloop's work keys include more than Kubeflow's cache keys
        self._set_resources(task)
        self._set_nodes(task)
        self._set_retries(task)
        self._set_security_and_images(task)
        self._set_environment(task)

    def _set_resources(self, task: Any) -> None:
        from kfp import kubernetes

        if self.cpu:
            task.set_cpu_request(self.cpu)
        if self.cpu_limit:
            task.set_cpu_limit(self.cpu_limit)
        if self.memory:  # memory above the request could be taken by another pod, so the limit equals the request
            task.set_memory_request(self.memory)
            task.set_memory_limit(self.memory)
        if self.accelerators:
            task.set_accelerator_type(self.accelerator)
            task.set_accelerator_limit(self.accelerators)
        if size := self.shared_memory:
            kubernetes.empty_dir_mount(task, "shared-memory", SHARED_MEMORY, "Memory", size)
        for path, claim in self.volumes.items():
            kubernetes.mount_pvc(task, claim, path)

    def _set_nodes(self, task: Any) -> None:
        from kfp import kubernetes

        for key, value in self.node_selector.items():
            kubernetes.add_node_selector(task, key, value)
        for toleration in (*self.tolerations, *(_SPOT if self.spot else ())):
            kubernetes.add_toleration(task, **toleration)
        for key, value in self.labels.items():
            kubernetes.add_pod_label(task, key, value)
        for key, value in self.annotations.items():
            kubernetes.add_pod_annotation(task, key, value)

    def _set_retries(self, task: Any) -> None:
        from kfp import kubernetes

        if self.retries:
            first = seconds(self.backoff)
            pauses = min(sum(first * self.backoff_factor**number for number in range(self.retries)), YEAR)
            # Argo applies this limit to pauses and work together; a lower one would drop retries silently.
            limit = pauses + (self.retries + 1) * (seconds(self.timeout) if self.timeout else YEAR)
            task.set_retry(self.retries, f"{first}s", self.backoff_factor, f"{limit}s")
        if self.timeout:
            kubernetes.set_timeout(task, seconds(self.timeout))

    def _set_security_and_images(self, task: Any) -> None:
        from kfp import kubernetes

        if self.user >= 0 or self.group >= 0 or self.non_root:
            user, group = (number if number >= 0 else None for number in (self.user, self.group))
            kubernetes.set_security_context(task, user, group, self.non_root or None)
        if self.image_pull_policy:
            kubernetes.set_image_pull_policy(task, self.image_pull_policy)
        if self.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(self.image_pull_secrets))

    def _set_environment(self, task: Any) -> None:
        from kfp import kubernetes

        for name, value in self.environment.items():
            task.set_env_variable(name, value)
        for name, reference in self.secrets.items():
            secret, _, key = reference.rstrip("?").partition("/")
            kubernetes.use_secret_as_env(task, secret, {key: name}, optional=reference.endswith("?"))
        for path, secret in self.secret_files.items():
            kubernetes.use_secret_as_volume(task, secret.rstrip("?"), path, optional=secret.endswith("?"))
        kubernetes.use_field_path_as_env(task, "MEDLOOP_RUN", RUN_LABEL)


_SPOT = tuple({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in SPOT_TAINTS)


def seconds(duration: str) -> int:
    """Return the seconds of a duration such as 90, 30s, 10m, 2h or 1d."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", duration)
    if not match:
        raise UsageError(f"{duration!r} is not a duration. Write a number and s, m, h or d, such as 90s or 2h.")
    result = int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if result > YEAR:
        raise UsageError(f"{duration!r} is more than a year. Write at most 365d.")
    return result
