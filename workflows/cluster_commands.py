"""The commands for a Kubeflow Pipelines server: compile, submit, schedule, runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflows.options import Brought, ImagesAt, images, refuse

app = typer.Typer()

Cluster = Annotated[Path | None, typer.Option("--cluster", help="YAML file that says where and how stages run.")]
NoPin = Annotated[bool, typer.Option("--no-pin", help="Leave images at their tags, whatever these will name.")]


@app.command(name="compile", short_help="Write the pipeline as a Kubeflow package.")
def compile_(
    pipeline: Annotated[str, typer.Argument(metavar="[PIPELINE]", help="Which one: retrain.")] = "retrain",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; PIPELINE.yaml by default.")] = None,
    where: ImagesAt = "",
    brought: Brought = None,
    cluster: Cluster = None,
    no_pin: NoPin = False,
) -> None:
    """Write a pipeline as a package for a Kubeflow Pipelines server, its images pinned by digest.

    \b
        medloop compile --images registry.example/medloop:0.1.0
        medloop compile --images registry.example/medloop:0.1.0 --cluster cluster.yaml --output team.yaml
        medloop compile --image train=registry.example/ours/train:2
    """
    from workflows.package import compile_package

    path = output or Path(f"{pipeline}.yaml")
    compile_package(pipeline, _pinned(where, brought, no_pin), _cluster(cluster), path)
    typer.echo(f"{path}: {path.stat().st_size:,} bytes")


def _pinned(where: str, brought: list[str] | None, no_pin: bool) -> dict[str, str]:
    """The image of each stage, by digest; those of this machine, which no registry knows, stay as they are."""
    from workflows.images import pin

    chosen = images(where, brought)
    if no_pin:
        return chosen
    far = {stage: name for stage, name in chosen.items() if "/" in name}
    for name in sorted({name for name in chosen.values() if "/" not in name}):
        if not where and not brought:
            break
        typer.echo(f"medloop: {name} is an image of this machine, so it has no digest to pin.", err=True)
    return {**chosen, **pin(far)}


def _cluster(file: Path | None):  # type: ignore[no-untyped-def]  # its type would have to be imported at start-up
    from workflows.cluster import read_cluster
    from workflows.settings import read_settings

    named = file or (Path(read_settings().cluster) if read_settings().cluster else None)
    try:
        return read_cluster(named)
    except ValueError as error:
        refuse(str(error))
