"""Read and validate the cluster file, and merge it with the defaults."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from components.shared.errors import UsageError
from components.shared.parsing.yaml_documents import read_yaml
from components.shared.runtime.stage_interface import nearest, stages
from workflows.placement import SHARED_MEMORY, Placement, seconds

SHIPPED = Path(__file__).parent / "default_placement.yaml"
ALL = "all"


def read_cluster(file: Path | None) -> dict[str, Placement]:
    """Return the placement of every stage: the defaults overridden by the file; raise UsageError if it is invalid."""
    shipped, own = _read(SHIPPED), _read(file) if file else {}
    layers = [(SHIPPED, shipped), (file or SHIPPED, own)]
    placements = {}
    for stage in stages():
        settled: dict[str, Any] = {}
        for path, content in layers:
            for part in (ALL, stage):
                for name, value in content.get(part, {}).items():
                    checked = _check(f"{path.name}: {part}.{name}", name, value)
                    settled[name] = {**settled.get(name, {}), **checked} if isinstance(checked, dict) else checked
        mounted = {*settled.get("volumes", {}), *settled.get("secret_files", {})}
        if settled.get("shared_memory") and any(path.rstrip("/") == SHARED_MEMORY for path in mounted):
            raise UsageError(
                f"{(file or SHIPPED).name}: {stage} mounts {SHARED_MEMORY}, which is the path of its shared_memory. "
                "Choose another path, or set shared_memory to '' for this stage."
            )
        placements[stage] = Placement(**{name: _without_none(value) for name, value in settled.items()})
        _check_consistency(f"{(file or SHIPPED).name}: {stage}", placements[stage])
    return placements


RESERVED_PATHS = ("/tmp", "/medloop", "/opt/medloop")  # noqa: S108 - a container's


def _check_consistency(where: str, placement: Placement) -> None:
    """Raise UsageError for combinations that no cluster accepts."""
    cpu, limit = placement.cpu, placement.cpu_limit
    if cpu and limit and _cores(limit) < _cores(cpu):
        raise UsageError(f"{where}: cpu_limit is {limit}, which is less than cpu ({cpu}). Raise it, or lower cpu.")
    if placement.user == 0 and placement.non_root:
        raise UsageError(f"{where}: user is 0 (root), but non_root is true. Set another user, or non_root: false.")
    for path in (*placement.volumes, *placement.secret_files):
        if path in RESERVED_PATHS:
            raise UsageError(f"{where}: {path} is used by the image. Mount at another path, such as /scans.")


def _cores(cpu: str) -> float:
    return float(cpu.removesuffix("m")) / 1000 if cpu.endswith("m") else float(cpu)


def _without_none(value: Any) -> Any:
    """Remove keys without a value from a mapping, so that a file can remove a default."""
    return {key: inner for key, inner in value.items() if inner is not None} if isinstance(value, dict) else value


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = read_yaml(path) or {}
    except FileNotFoundError:
        raise UsageError(
            f"The cluster file {path} does not exist. Start from a copy of medloop/kubeflow/default_placement.yaml."
        ) from None
    if not isinstance(content, dict) or not all(isinstance(part or {}, dict) for part in content.values()):
        raise UsageError(
            f"{path} must contain mappings named `{ALL}` or after a stage, with one `key: value` per line."
        )
    for part in content:
        if part != ALL and part not in stages():
            known = [ALL, *stages()]
            raise UsageError(
                f"{path}: there is no stage {part!r}.{nearest(str(part), known)} Allowed: {', '.join(known)}."
            )
    return {part: inner or {} for part, inner in content.items()}


# Each check returns the value in the right type, or raises UsageError with the allowed values.

_Check = Callable[[Any], Any]


def _check(where: str, name: str, value: Any) -> Any:
    if name not in _CHECKS:
        known = [each.name for each in fields(Placement)]
        raise UsageError(f"{where}: there is no such key.{nearest(str(name), known)} Keys: {', '.join(known)}.")
    try:
        return _CHECKS[name](value)
    except ValueError as error:
        raise UsageError(f"{where} is {value!r}: {error}") from None


def _matching(pattern: str, allowed: str, value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, bool | dict | list) or not re.fullmatch(pattern, text):
        raise UsageError(f"write {allowed}.")
    return text


def _number(low: int, high: int, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"write a whole number from {low} to {high}.")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError("write true or false.")
    return value


def _mapping(key: _Check, inner: _Check, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError("write a mapping.")
    return {key(name): None if item is None else inner(item) for name, item in value.items()}


def _list(inner: _Check, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise UsageError("write a list.")
    return tuple(inner(item) for item in value)


_TOLERATION = {
    "key": str,
    "operator": ("Equal", "Exists"),
    "value": str,
    "effect": ("NoExecute", "NoSchedule", "PreferNoSchedule"),
    "seconds": int,
}


def _toleration(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise UsageError(f"write a mapping with some of {', '.join(_TOLERATION)}.")
    for name, item in value.items():
        allowed = _TOLERATION.get(name)
        if allowed is None:
            raise UsageError(f"a toleration has no key {name!r}; allowed: {', '.join(_TOLERATION)}.")
        if isinstance(allowed, tuple) and item not in allowed:
            raise UsageError(f"its {name} must be one of {', '.join(allowed)}.")
        if isinstance(allowed, type) and (not isinstance(item, allowed) or isinstance(item, bool)):
            raise UsageError(f"its {name} must be {'a whole number' if allowed is int else 'a text in quotes'}.")
    if "value" in value and value.get("operator") == "Exists":
        raise UsageError("with the operator Exists, it must have no value.")
    if not value.get("key") and value.get("operator") != "Exists":
        raise UsageError("without a key, its operator must be Exists.")
    if "seconds" in value and value.get("effect") != "NoExecute":
        raise UsageError("seconds are allowed only with the effect NoExecute.")
    return {"toleration_seconds" if name == "seconds" else name: item for name, item in value.items()}


def _quoted(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError("values must be texts; put numbers, true and false in quotes.")
    return value


_NAME = r"(?=.{1,253}(?:/|$))[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
"""A Kubernetes name (RFC 1123)."""

_quantity = partial(_matching, r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", "a Kubernetes quantity, such as 500m, 2 or 4Gi")
_key = partial(
    _matching,
    rf"({_NAME}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?",
    "keys of at most 63 letters, digits, - _ and ., with an optional domain and slash before them",
)
_cpu = partial(_matching, r"\d+(\.\d+)?|\d+m", "a number of cores, such as 2 or 0.5, or of millicores, such as 500m")
_memory = partial(
    _matching, r"\d+([EPTGMK]i?)?", "a whole number of bytes, or one with K, M, G, T, Ki, Mi, Gi or Ti, such as 4Gi"
)
_path = partial(_matching, r"/[^:\s]+", "absolute paths in the container")
_variable = partial(_matching, r"[A-Za-z_][A-Za-z0-9_]*", "names of environment variables: letters, digits and _")


def _own_key(value: Any) -> str:
    if str(value).startswith("pipeline"):
        raise UsageError("labels that begin with pipeline are reserved by Kubeflow; choose another name.")
    return _key(value)


def _free_variable(value: Any) -> str:
    if value in ("MEDLOOP_RUN", "MEDLOOP_IMAGE"):
        raise UsageError(f"medloop sets {value} itself; leave it out.")
    return _variable(value)


def _public_variable(value: Any) -> str:
    name = str(value)
    secret = re.search("SECRET|TOKEN|PASSWORD|HASH_KEY|SIGNING_KEY|STAGE_KEY|ACCESS_KEY", name)
    if secret and not name.endswith("_FILE"):
        raise UsageError(f"{name} seems to be a secret, and everyone can read it in the package; use `secrets`.")
    return _free_variable(value)


def _label(value: Any) -> str:
    if not re.fullmatch(r"([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?", _quoted(value)):
        raise UsageError(
            "values must have at most 63 letters, digits, - _ and ., and begin and end with a letter or digit."
        )
    return str(value)


def _duration(value: Any) -> str:
    seconds(str(value))
    return str(value)


def kubernetes_name(value: Any) -> str:
    """Return the value if it is a valid Kubernetes name; raise UsageError otherwise."""
    return _matching(_NAME, "a valid Kubernetes name: at most 253 lower-case letters, digits and -", value)


def _secret(value: Any) -> str:
    name, slash, key = str(value).rstrip("?").partition("/")
    if not slash or not re.fullmatch(r"[-._A-Za-z0-9]{1,253}", key):
        raise UsageError("write secret/key, followed by a question mark if it is optional.")
    kubernetes_name(name)
    return str(value)


_CHECKS: dict[str, _Check] = {
    "cpu": _cpu,
    "cpu_limit": _cpu,
    "memory": _memory,
    "accelerator": _key,
    "accelerators": partial(_number, 0, 64),
    "shared_memory": _quantity,
    "node_selector": partial(_mapping, _key, _label),
    "tolerations": partial(_list, _toleration),
    "spot": _boolean,
    "retries": partial(_number, 0, 100),
    "backoff": _duration,
    "backoff_factor": partial(_number, 1, 10),  # Argo takes whole numbers only
    "timeout": _duration,
    "user": partial(_number, -1, 2**31 - 1),
    "group": partial(_number, -1, 2**31 - 1),
    "non_root": _boolean,
    "image_pull_policy": partial(_matching, "Always|IfNotPresent|Never", "Always, IfNotPresent or Never"),
    "image_pull_secrets": partial(_list, kubernetes_name),
    "labels": partial(_mapping, _own_key, _label),
    "annotations": partial(_mapping, _key, _quoted),
    "environment": partial(_mapping, _public_variable, _quoted),
    "secrets": partial(_mapping, _free_variable, _secret),
    "secret_files": partial(_mapping, _path, lambda value: kubernetes_name(str(value).rstrip("?")) and str(value)),
    "volumes": partial(_mapping, _path, kubernetes_name),
}
