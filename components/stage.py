"""Stages as KFP components: the decorator for component.py, and the call in its body."""

from __future__ import annotations

import collections
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from components.shared.contracts import Manifest
from components.shared.errors import is_foreseen
from components.shared.parsing.json_documents import read_json
from components.shared.privacy.secret_redaction import protect_process
from components.shared.runtime import events, work
from components.shared.runtime.stage_interface import read
from components.shared.storage import artifacts
from components.shared.storage.store import open_store

SHELL = "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main"
EXEC = SHELL.replace("python3", "exec python3")


def stage(function: Callable[..., Any]) -> Any:
    """Turn a typed interface into a KFP component; its folder's name is also the name of the task and the image."""
    from kfp import dsl

    name = function.__module__.split(".")[-2]
    component = dsl.component(function, base_image=image(name), install_kfp_package=False)
    container = component.component_spec.implementation.container
    # KFP starts a shell; `exec` replaces it by Python, so that Python receives SIGTERM.
    container.command = [part.replace(SHELL, EXEC) for part in container.command]
    return PlacedComponent(component)


class PlacedComponent:
    """A component whose new tasks are placed (image, node, rights)."""

    placements: ClassVar[list[Callable[[Any], None]]] = []
    """Functions that are called with each new task, while a pipeline is built."""

    def __init__(self, component: Any) -> None:
        self._component = component

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        task = self._component(*arguments, **named)
        for place in self.placements:
            place(task)
        return task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._component, name)


def image(name: str) -> str:
    """Return the image of a stage as `make images` names it, the default of a pipeline."""
    return f"medloop-{name}:latest"


def call(name: str, arguments: Mapping[str, Any]) -> Any:
    """Run a stage with the artifacts and parameters of the KFP executor; return the stage's values."""
    protect_process()
    events.configure_logging()
    interface = read(name)
    parameters = {
        key: value
        for key, value in arguments.items()
        if key in interface.parameters or key not in (*interface.inputs, *interface.outputs, "store", "options", "call")
    }
    displayed = {key: parameters.pop(key) for key in [*parameters] if _is_artifact(parameters[key])}
    options = dict(arguments.get("options") or {})
    try:
        with tempfile.TemporaryDirectory(prefix="medloop-inputs-") as folder:
            inputs = {key: _manifest(key, arguments[key], arguments["store"], folder) for key in interface.inputs}
            result = work.step(name, arguments["store"], inputs, {**options, **parameters})
    except Exception as error:
        fields = {"stage": name, "why": events.sentence(error)}
        if is_foreseen(error):
            events.log.error("failed", extra={"fields": fields})
            sys.exit(1)
        trace = "".join(traceback.format_tb(error.__traceback__))
        events.log.error("failed", extra={"fields": {**fields, "trace": trace}})
        raise
    for key, manifest in result.outputs.items():
        Path(arguments[key].path).write_bytes(manifest.encode())
        arguments[key].metadata.update({"digest": manifest.digest, "bytes": manifest.bytes})
    if displayed:
        _display(displayed, result.outputs["report"], arguments["store"])
    return collections.namedtuple("Values", result.values)(**result.values) if result.values else None


def _manifest(name: str, artifact: Any, store_uri: str, folder: str) -> Path:
    """Return the manifest of an input: an artifact, the digest of one, or a list of artifacts to combine."""
    if isinstance(artifact, str):
        return open_store(store_uri).fetch(artifact)
    if not isinstance(artifact, list):
        return Path(artifact.path)
    manifests = [Manifest.decode(Path(member.path).read_bytes(), name) for member in artifact]
    path = Path(folder) / name
    path.write_bytes(artifacts.combine(open_store(store_uri), manifests).encode())
    return path


def _is_artifact(value: Any) -> bool:
    return hasattr(value, "metadata") and hasattr(value, "path")


def _display(displayed: Mapping[str, Any], report: Manifest, store_uri: str) -> None:
    """Write the artifacts that KFP displays (figures, curves and the report) from the report's files."""
    store = open_store(store_uri)
    metrics = read_json(store.get(report.files["metrics.json"].digest), "metrics.json")
    for artifact in displayed.values():
        kind = type(artifact).__name__
        if kind == "Metrics":
            for name, figure in metrics["all"]["figures"].items():
                artifact.log_metric(name, figure["value"])
        elif kind == "ClassificationMetrics":
            if table := metrics["all"]["confusion"]:
                artifact.log_confusion_matrix(metrics["classes"], table)
            if curve := metrics["all"].get("roc"):
                artifact.log_roc_curve(curve["fpr"], curve["tpr"], curve["threshold"])
        elif kind == "HTML":
            Path(artifact.path).write_bytes(store.get(report.files["report.html"].digest))
