"""A pipeline, with its images and places, as Kubeflow takes it: in memory for the local runner, or as a file."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.shared.errors import UsageError
from components.shared.runtime.interface import nearest
from components.shared.runtime.step_log import IMAGE
from components.stage import PlacedComponent
from workflows.placement import Placement

PIPELINES = ("retrain", "release")
"""The pipelines there are; each is a function in the module of its name."""


def build(
    pipeline: str,
    images: Mapping[str, str] | None = None,
    cluster: Mapping[str, Placement] | None = None,
    defaults: Mapping[str, Any] | None = None,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> Any:
    """The pipeline with each stage in its image (None: in this Python) and, for a cluster, in its place.

    `defaults` replace those that the pipeline states. `environments` are variables for single stages: for a run on this
    machine alone, since they hold keys.
    """
    import importlib

    from kfp import dsl
    from kfp.dsl.graph_component import GraphComponent

    module = importlib.import_module(f"workflows.{pipeline}")
    plain = getattr(module, pipeline)
    inner = {
        name: each for name, each in vars(module).items() if isinstance(each, GraphComponent) and each is not plain
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
        # A pipeline inside must be there, with its tasks in their places, before the one around it is made.
        for name, each in inner.items():
            setattr(module, name, dsl.pipeline(name=each.name, description=each.description)(each.pipeline_func))
        return dsl.pipeline(name=plain.name, description=plain.description)(function)
    finally:
        PlacedComponent.placements.remove(place)
        for name, each in inner.items():
            setattr(module, name, each)


def defaults_on(cluster: Mapping[str, Placement]) -> dict[str, Any]:
    """The pipeline's defaults that follow from a cluster: where training asks for a GPU, it must have it."""
    return {"device": "cuda"} if cluster["train"].accelerators else {}


def oldest_server(cluster: Mapping[str, Placement]) -> tuple[int, int]:
    """The oldest release of Kubeflow Pipelines that does all that is asked for: docs/cluster.md tells why."""
    places = cluster.values()
    if any(place.user >= 0 or place.group >= 0 or place.non_root for place in places):
        return (2, 16)
    return (2, 15) if any(place.secrets or place.secret_files for place in places) else (2, 14)


def check(pipeline: str, output: Path) -> None:
    """Refuse a pipeline that is not there, and a file that no server takes or that cannot be written."""
    if pipeline not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise UsageError(f"There is no pipeline {pipeline!r}.{nearest(pipeline, PIPELINES)} There are: {known}.")
    if output.suffix not in (".yaml", ".yml"):
        raise UsageError(f"The package is {output.name!r}; a server takes a file that ends in .yaml. Name one.")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"There is no directory {output.parent} for the package. Make it, or name another.")


def compile_package(
    pipeline: str,
    images: Mapping[str, str],
    cluster: Mapping[str, Placement],
    output: Path,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Write the pipeline to a YAML file that a Kubeflow Pipelines server takes; `defaults` replace its own."""
    check(pipeline, output)
    from kfp import compiler

    built = build(pipeline, images, cluster, {**defaults_on(cluster), **(defaults or {})})
    compiler.Compiler().compile(built, str(output))
