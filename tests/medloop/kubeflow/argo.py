"""What a Kubeflow Pipelines server makes of a package, told by its own compiler and driver (tests/argo)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.loop import ROOT

PROGRAM = ROOT / "tests" / "argo"
KFP = "github.com/kubeflow/pipelines"
MODULES = {KFP: ".", f"{KFP}/api": "api", f"{KFP}/kubernetes_platform": "kubernetes_platform"}
RELEASE = "2.17.0"
SOURCE = "MEDLOOP_KFP_SOURCE"  # a checkout of KFP, for machines whose module proxy does not have it
BUILD_SECONDS = 1800  # the program is built once a machine; KFP has 1,500 packages below it
RUN = "3c9f1f6e-5f5b-4f0e-9d8a-0c4b8a2d7e11"


@dataclass(frozen=True)
class Task:
    """A container task as the cluster gets it: the pod is KFP's template with the driver's patch merged in."""

    record: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def stage(self) -> str:
        """The stage's name: `evaluate` for the tasks `evaluate` and `evaluate-2`."""
        return re.sub(r"-\d+$", "", self.name)

    @property
    def path(self) -> list[str]:
        """The DAGs it lies in, from the root: one branch of a condition is one path."""
        return list(self.record["path"])

    @property
    def caching(self) -> bool:
        return bool(self.record["caching"])

    @property
    def inputs(self) -> dict[str, Any]:
        """The parameters that are known before the run."""
        return dict(self.record["inputs"])

    @property
    def pod(self) -> dict[str, Any]:
        return dict(self.record["pod"])

    @property
    def container(self) -> dict[str, Any]:
        return next(dict(c) for c in self.pod["containers"] if c["name"] == "main")

    @property
    def image(self) -> str:
        return str(self.container["image"])

    @property
    def limits(self) -> dict[str, str]:
        return dict(self.container["resources"].get("limits", {}))

    @property
    def requests(self) -> dict[str, str]:
        return dict(self.container["resources"].get("requests", {}))

    @property
    def env(self) -> dict[str, str]:
        """Plain variables, by name."""
        return {e["name"]: e.get("value", "") for e in self.container.get("env", []) if "valueFrom" not in e}

    @property
    def secrets(self) -> dict[str, tuple[str, str, bool]]:
        """The variables that come from secrets: secret, key, and whether it may be missing."""
        found = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in self._derived if "secretKeyRef" in e["valueFrom"]}
        return {name: (ref["name"], ref["key"], bool(ref.get("optional"))) for name, ref in found.items()}

    @property
    def fields(self) -> dict[str, str]:
        """The variables that come from the pod's own fields."""
        found = {e["name"]: e["valueFrom"]["fieldRef"] for e in self._derived if "fieldRef" in e["valueFrom"]}
        return {name: ref["fieldPath"] for name, ref in found.items()}

    @property
    def _derived(self) -> list[dict[str, Any]]:
        return [e for e in self.container.get("env", []) if "valueFrom" in e]

    @property
    def security(self) -> dict[str, Any]:
        return dict(self.container.get("securityContext", {}))

    @property
    def pull_policy(self) -> str:
        return str(self.container.get("imagePullPolicy", ""))

    @property
    def pull_secrets(self) -> list[str]:
        return [secret["name"] for secret in self.pod.get("imagePullSecrets", [])]

    @property
    def node_selector(self) -> dict[str, str]:
        return dict(self.pod.get("nodeSelector", {}))

    @property
    def tolerations(self) -> list[dict[str, Any]]:
        return list(self.pod.get("tolerations", []))

    @property
    def deadline(self) -> int | None:
        """Seconds after which Kubernetes ends the pod; each attempt has its own."""
        return self.pod.get("activeDeadlineSeconds")

    @property
    def mounts(self) -> dict[str, dict[str, Any]]:
        """The volumes, by the path they are mounted at."""
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        return {mount["mountPath"]: volumes[mount["name"]] for mount in self.container["volumeMounts"]}

    @property
    def retry(self) -> dict[str, Any]:
        """Argo's retry strategy; empty when a failure is final."""
        return dict(self.record["template"].get("retryStrategy") or {})

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.record["metadata"]["labels"])

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.record["metadata"]["annotations"])


@dataclass(frozen=True)
class Workflow:
    """The Argo Workflow and the tasks in it."""

    record: dict[str, Any]
    tasks: dict[str, Task]

    def pod(self, name: str) -> Task:
        return self.tasks[name]

    def stage(self, name: str) -> list[Task]:
        """Every task of a stage; a stage can stand in the pipeline more than once."""
        return [task for task in self.tasks.values() if task.stage == name]


def workflow(package: Path, run: str = RUN, **parameters: object) -> Workflow:
    """What the server makes of a package; skips the test where the program can't be built."""
    done = compiled(package, run, **parameters)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return Workflow(told["workflow"], {task["name"]: Task(task) for task in told["tasks"]})


def compiled(package: Path, run: str = RUN, **parameters: object) -> subprocess.CompletedProcess[str]:
    """The program's raw answer: the server's refusal is on the standard error."""
    command = [str(program()), "--run", run, "--parameters", json.dumps(parameters), str(package)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def program() -> Path:
    """The program, built once for each version of its sources; skips the test where it can't be built."""
    built, missing = _program()
    if built is None:
        pytest.skip(missing)
    return built


@cache
def _program() -> tuple[Path | None, str]:
    if shutil.which("go") is None:
        return None, "Go is not on the PATH: what KFP makes of a package is not checked."
    source = os.environ.get(SOURCE, "")
    if source and Path(source, "VERSION").read_text().strip() != RELEASE:
        return None, f"{SOURCE} names a checkout of another release than {RELEASE}, for which the program is made."
    digest = hashlib.sha256()
    for file in sorted(PROGRAM.iterdir()):
        digest.update(file.read_bytes())
    binary = Path.home() / ".cache" / "medloop" / "bin" / f"argo-{digest.hexdigest()[:16]}"
    if binary.exists():
        return binary, ""
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        work = Path(folder) / "argo"
        shutil.copytree(PROGRAM, work)  # go writes into go.mod and go.sum
        if source:
            places = [f"-replace={module}={Path(source, below).resolve()}" for module, below in MODULES.items()]
            _go(work, "mod", "edit", *places).check_returncode()
        elif (got := _go(work, "mod", "download", *MODULES)).returncode:
            return (
                None,
                f"The module proxy does not give KFP, and {SOURCE} names no checkout: {got.stderr.splitlines()[0]}",
            )
        made = _go(work, "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", "program", ".")
        if made.returncode:
            raise RuntimeError(f"tests/argo does not build:\n{made.stderr}")
        (work / "program").replace(binary)
    return binary, ""


def _go(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["go", *arguments], cwd=folder, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
