"""Build a pipeline with images and placement, in memory for the local runner or as a Kubeflow package."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.shared.errors import UsageError
from components.shared.runtime.stage_interface import nearest
from components.shared.runtime.step_log import IMAGE
from components.stage import PlacedComponent
from workflows.placement import Placement

PIPELINES = ("retrain", "release")
"""Pipelines; each is a function in the module of the same name."""


def build(
    pipeline: str,
    images: Mapping[str, str] | None = None,
    cluster: Mapping[str, Placement] | None = None,
    defaults: Mapping[str, Any] | None = None,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> Any:
    """Return the pipeline with the image (None: this Python) and placement of each stage.

    `defaults` override those of the pipeline. `environments` are variables per stage; they contain keys, so use them
    only for local runs.
    """
    import importlib

    from kfp import dsl
    from kfp.dsl.graph_component import GraphComponent

    module = importlib.import_module(f"workflows.{pipeline}")
    plain = getattr(module, pipeline)
    inner = {
        name: graph for name, graph in vars(module).items() if isinstance(graph, GraphComponent) and graph is not plain
    }

    def place(task: Any) -> None:
        stage = task.component_spec.name
        if images:
            task.set_container_image(images[stage])
            task.set_env_variable(IMAGE, images[stage])
        for name, value in (environments or {}).get(stage, {}).items():
            task.set_env_variable(name, value)
        if cluster:
            cluster[stage].apply(task)

    @functools.wraps(plain.pipeline_func)
    def function(*arguments: Any, **named: Any) -> None:
        plain.pipeline_func(*arguments, **named)

    signature = inspect.signature(plain.pipeline_func)
    changed = [
        parameter.replace(default=(defaults or {}).get(name, parameter.default))
        for name, parameter in signature.parameters.items()
    ]
    function.__signature__ = signature.replace(parameters=changed)  # type: ignore[attr-defined]
    PlacedComponent.placements.append(place)
    try:
        # Nested pipelines must be built, with placement, before the pipeline that contains them.
        for name, graph in inner.items():
            setattr(module, name, dsl.pipeline(name=graph.name, description=graph.description)(graph.pipeline_func))
        return dsl.pipeline(name=plain.name, description=plain.description)(function)
    finally:
        PlacedComponent.placements.remove(place)
        for name, graph in inner.items():
            setattr(module, name, graph)


def defaults_on(cluster: Mapping[str, Placement]) -> dict[str, Any]:
    """Return the defaults that depend on the placement: training with accelerators requires a GPU."""
    return {"device": "cuda"} if cluster["train"].accelerators else {}


def oldest_server(cluster: Mapping[str, Placement]) -> tuple[int, int]:
    """Return the oldest version of Kubeflow Pipelines that supports this placement; see docs/cluster.md."""
    placements = cluster.values()
    if any(placement.user >= 0 or placement.group >= 0 or placement.non_root for placement in placements):
        return (2, 16)
    return (2, 15) if any(placement.secrets or placement.secret_files for placement in placements) else (2, 14)


def check(pipeline: str, output: Path) -> None:
    """Raise UsageError if the pipeline does not exist or the output file is unsuitable."""
    if pipeline not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise UsageError(f"There is no pipeline {pipeline!r}.{nearest(pipeline, PIPELINES)} Pipelines: {known}.")
    if output.suffix not in (".yaml", ".yml"):
        raise UsageError(f"The package is {output.name!r}; its name must end in .yaml.")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"The directory {output.parent} does not exist. Create it, or name another.")


def compile_package(
    pipeline: str,
    images: Mapping[str, str],
    cluster: Mapping[str, Placement],
    output: Path,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Compile the pipeline to a YAML file for a Kubeflow Pipelines server; `defaults` override its own."""
    check(pipeline, output)
    from kfp import compiler

    built = build(pipeline, images, cluster, {**defaults_on(cluster), **(defaults or {})})
    compiler.Compiler().compile(built, str(output))
