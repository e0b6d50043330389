"""The cluster file: where and how each stage runs, read, checked, and merged with what is shipped."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from components.shared.errors import UsageError
from components.shared.parsing.yaml_documents import read_yaml
from components.shared.runtime.interface import nearest, stages
from workflows.placement import SHARED_MEMORY, Placement, seconds

SHIPPED = Path(__file__).parent / "cluster.yaml"
ALL = "all"


def read_cluster(file: Path | None) -> dict[str, Placement]:
    """The placement of every stage: the shipped one, changed by what the file says; ValueError for what is wrong."""
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
                f"{(file or SHIPPED).name}: {stage} mounts {SHARED_MEMORY}, where its shared_memory lies. Choose "
                "another path, or set shared_memory to nothing ('') for it."
            )
        placements[stage] = Placement(**{name: _without_nothing(value) for name, value in settled.items()})
        _agree(f"{(file or SHIPPED).name}: {stage}", placements[stage])
    return placements


TAKEN = ("/tmp", "/medloop", "/opt/medloop")  # noqa: S108 - a container's


def _agree(where: str, place: Placement) -> None:
    """Refuse what no cluster takes together."""
    if place.cpu and place.cpu_limit and _amount(place.cpu_limit) < _amount(place.cpu):
        raise UsageError(
            f"{where}: cpu_limit is {place.cpu_limit}, below the {place.cpu} of cpu. Raise it, or lower cpu."
        )
    if place.user == 0 and place.non_root:
        raise UsageError(
            f"{where}: user is 0, which is root, and non_root is true. Set another user, or non_root: false."
        )
    for path in (*place.volumes, *place.secret_files):
        if path in TAKEN:
            raise UsageError(f"{where}: {path} is taken by the image itself. Mount at another path, such as /scans.")


def _amount(cpu: str) -> float:
    return float(cpu.removesuffix("m")) / 1000 if cpu.endswith("m") else float(cpu)


def _without_nothing(value: Any) -> Any:
    """A mapping less the keys that were given no value: so a file takes a shipped one away."""
    return {key: inner for key, inner in value.items() if inner is not None} if isinstance(value, dict) else value


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = read_yaml(path) or {}
    except FileNotFoundError:
        raise UsageError(f"There is no cluster file {path}. Copy from medloop/kubeflow/cluster.yaml.") from None
    if not isinstance(content, dict) or not all(isinstance(part or {}, dict) for part in content.values()):
        raise UsageError(f"{path} must hold a mapping for `{ALL}` or a stage's name, with one `key: value` a line.")
    for part in content:
        if part != ALL and part not in stages():
            known = [ALL, *stages()]
            raise UsageError(
                f"{path}: there is no stage {part!r}.{nearest(str(part), known)} It takes: {', '.join(known)}."
            )
    return {part: inner or {} for part, inner in content.items()}


# What each key takes. A check gives the value in its type, or says what it wants.

_Check = Callable[[Any], Any]


def _check(where: str, name: str, value: Any) -> Any:
    if name not in _CHECKS:
        known = [each.name for each in fields(Placement)]
        raise UsageError(f"{where}: there is no such key.{nearest(str(name), known)} The keys are: {', '.join(known)}.")
    try:
        return _CHECKS[name](value)
    except ValueError as error:
        raise UsageError(f"{where} is {value!r}: {error}") from None


def _matching(pattern: str, wants: str, value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, bool | dict | list) or not re.fullmatch(pattern, text):
        raise UsageError(f"write {wants}.")
    return text


def _number(low: int, high: int, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"write a whole number from {low} to {high}.")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError("write true or false.")
    return value


def _each(key: _Check, inner: _Check, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError("write a mapping.")
    return {key(name): None if each is None else inner(each) for name, each in value.items()}


def _list(inner: _Check, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise UsageError("write a list.")
    return tuple(inner(each) for each in value)


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
    for name, each in value.items():
        wanted = _TOLERATION.get(name)
        if wanted is None:
            raise UsageError(f"a toleration has no {name!r}; it takes {', '.join(_TOLERATION)}.")
        if isinstance(wanted, tuple) and each not in wanted:
            raise UsageError(f"its {name} is one of {', '.join(wanted)}.")
        if isinstance(wanted, type) and not isinstance(each, wanted):
            raise UsageError(f"its {name} is {'a whole number' if wanted is int else 'a text; put it into quotes'}.")
        if isinstance(each, bool):
            raise UsageError(f"its {name} is no true or false.")
    if "value" in value and value.get("operator") == "Exists":
        raise UsageError("with the operator Exists it takes no value.")
    if not value.get("key") and value.get("operator") != "Exists":
        raise UsageError("without a key its operator must be Exists.")
    if "seconds" in value and value.get("effect") != "NoExecute":
        raise UsageError("seconds go with the effect NoExecute alone.")
    return {"toleration_seconds" if name == "seconds" else name: each for name, each in value.items()}


def _quoted(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError("values must be texts; put numbers, true and false into quotes.")
    return value


_NAME = r"(?=.{1,253}(?:/|$))[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
"""What Kubernetes takes as a name (RFC 1123)."""

_quantity = partial(
    _matching, r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", "a quantity as Kubernetes takes it, such as 500m, 2 or 4Gi"
)
_key = partial(
    _matching,
    rf"({_NAME}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?",
    "keys of at most 63 letters, digits, - _ and ., with a domain and a slash before them where needed",
)
_cpu = partial(_matching, r"\d+(\.\d+)?|\d+m", "processors, such as 2 or 0.5, or thousandths of one, such as 500m")
_memory = partial(
    _matching, r"\d+([EPTGMK]i?)?", "a whole number of bytes, or one with K, M, G, T, Ki, Mi, Gi or Ti, such as 4Gi"
)
_path = partial(_matching, r"/[^:\s]+", "paths within the container, from / on")
_variable = partial(_matching, r"[A-Za-z_][A-Za-z0-9_]*", "names of environment variables: letters, digits and _")


def _own_key(value: Any) -> str:
    if str(value).startswith("pipeline"):
        raise UsageError("labels that begin with pipeline are Kubeflow's own; choose another name.")
    return _key(value)


def _free_variable(value: Any) -> str:
    if value in ("MEDLOOP_RUN", "MEDLOOP_IMAGE"):
        raise UsageError(f"{value} is set by medloop itself; leave it out.")
    return _variable(value)


def _plain_variable(value: Any) -> str:
    if re.search("SECRET|TOKEN|PASSWORD|HASH_KEY|SIGNING_KEY|STAGE_KEY|ACCESS_KEY", str(value)) and not str(
        value
    ).endswith("_FILE"):
        raise UsageError(
            f"{value} is a secret by its name, and this stands in the package for all to read; see `secrets`."
        )
    return _free_variable(value)


def _label(value: Any) -> str:
    if not re.fullmatch(r"([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?", _quoted(value)):
        raise UsageError(
            "values have at most 63 letters, digits, - _ and ., and begin and end with one of the first two."
        )
    return str(value)


def _duration(value: Any) -> str:
    seconds(str(value))
    return str(value)


def kubernetes_name(value: Any) -> str:
    """The value, if Kubernetes takes it as a name; ValueError otherwise."""
    return _matching(_NAME, "a name that Kubernetes allows: small letters, digits and -, at most 253 of them", value)


def _secret(value: Any) -> str:
    name, slash, key = str(value).rstrip("?").partition("/")
    if not slash or not re.fullmatch(r"[-._A-Za-z0-9]{1,253}", key):
        raise UsageError("write secret/key, and a question mark after it if the stage can do without.")
    kubernetes_name(name)
    return str(value)


_CHECKS: dict[str, _Check] = {
    "cpu": _cpu,
    "cpu_limit": _cpu,
    "memory": _memory,
    "accelerator": _key,
    "accelerators": partial(_number, 0, 64),
    "shared_memory": _quantity,
    "node_selector": partial(_each, _key, _label),
    "tolerations": partial(_list, _toleration),
    "spot": _truth,
    "retries": partial(_number, 0, 100),
    "backoff": _duration,
    "backoff_factor": partial(_number, 1, 10),  # Argo takes whole numbers only
    "timeout": _duration,
    "user": partial(_number, -1, 2**31 - 1),
    "group": partial(_number, -1, 2**31 - 1),
    "non_root": _truth,
    "image_pull_policy": partial(_matching, "Always|IfNotPresent|Never", "Always, IfNotPresent or Never"),
    "image_pull_secrets": partial(_list, kubernetes_name),
    "labels": partial(_each, _own_key, _label),
    "annotations": partial(_each, _key, _quoted),
    "environment": partial(_each, _plain_variable, _quoted),
    "secrets": partial(_each, _free_variable, _secret),
    "secret_files": partial(_each, _path, lambda value: kubernetes_name(str(value).rstrip("?")) and str(value)),
    "volumes": partial(_each, _path, kubernetes_name),
}
