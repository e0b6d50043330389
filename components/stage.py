"""The pipeline's side of a stage: the decorator for component.py, and the one call that its body makes."""

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
from components.shared.privacy.redaction import protect_process
from components.shared.runtime import events, work
from components.shared.runtime.interface import read
from components.shared.storage import artifacts
from components.shared.storage.store import open_store

SHELL = "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main"
EXEC = SHELL.replace("python3", "exec python3")


def stage(function: Callable[..., Any]) -> Any:
    """Make a KFP component of a typed interface; its folder's name is the task's, the image's and the group's name."""
    from kfp import dsl

    name = function.__module__.split(".")[-2]
    component = dsl.component(function, base_image=image(name), install_kfp_package=False)
    container = component.component_spec.implementation.container
    # The shell that KFP begins with gives its place to Python, so that Python hears when the container is to end.
    container.command = [part.replace(SHELL, EXEC) for part in container.command]
    return Placed(component)


class Placed:
    """A component whose tasks are put into their place (image, node, rights) as they come into being."""

    places: ClassVar[list[Callable[[Any], None]]] = []
    """What is done with each new task: filled by the one who builds a pipeline, while it is built."""

    def __init__(self, component: Any) -> None:
        self._component = component

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        task = self._component(*arguments, **named)
        for place in self.places:
            place(task)
        return task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._component, name)


def image(name: str) -> str:
    """The image of a stage as `make images` names it; a pipeline is built with others where they are wanted."""
    return f"medloop-{name}:latest"


def call(name: str, arguments: Mapping[str, Any]) -> Any:
    """Do a stage's work with what the executor hands in: artifacts and parameters. Gives the values it declares."""
    protect_process()
    events.configure_logging()
    interface = read(name)
    given = {
        key: value
        for key, value in arguments.items()
        if key in interface.parameters or key not in (*interface.inputs, *interface.outputs, "store", "options", "call")
    }
    shown = {key: given.pop(key) for key in [*given] if _is_artifact(given[key])}
    options = dict(arguments.get("options") or {})
    try:
        with tempfile.TemporaryDirectory(prefix="medloop-inputs-") as folder:
            inputs = {key: _manifest(key, arguments[key], arguments["store"], folder) for key in interface.inputs}
            done = work.step(name, arguments["store"], inputs, {**options, **given})
    except Exception as error:
        why = {"stage": name, "why": events.sentence(error)}
        if is_foreseen(error):
            events.log.error("failed", extra={"fields": why})
            sys.exit(1)
        trace = "".join(traceback.format_tb(error.__traceback__))
        events.log.error("failed", extra={"fields": {**why, "trace": trace}})
        raise
    for key, manifest in done.outputs.items():
        Path(arguments[key].path).write_bytes(manifest.encode())
        arguments[key].metadata.update({"digest": manifest.digest, "bytes": manifest.bytes})
    if shown:
        _show(shown, done.outputs["report"], arguments["store"])
    return collections.namedtuple("Values", done.values)(**done.values) if done.values else None


def _manifest(name: str, artifact: Any, store_uri: str, folder: str) -> Path:
    """The manifest file of an input, which may be named by its digest; of a list of artifacts, that of all together."""
    if isinstance(artifact, str):
        return open_store(store_uri).fetch(artifact)
    if not isinstance(artifact, list):
        return Path(artifact.path)
    several = [Manifest.decode(Path(each.path).read_bytes(), name) for each in artifact]
    path = Path(folder) / name
    path.write_bytes(artifacts.together(open_store(store_uri), several).encode())
    return path


def _is_artifact(value: Any) -> bool:
    return hasattr(value, "metadata") and hasattr(value, "path")


def _show(shown: Mapping[str, Any], report: Manifest, store_uri: str) -> None:
    """Fill what the pipeline's own page displays: figures, curves and the report, from the report's files."""
    store = open_store(store_uri)
    metrics = read_json(store.get(report.files["metrics.json"].digest), "metrics.json")
    for artifact in shown.values():
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
