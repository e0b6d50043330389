"""The pipeline as a file that a Kubeflow Pipelines server takes."""

from __future__ import annotations

import os
from pathlib import Path

from components.stage import REGISTRY


def compile_package(output: Path, images: str = "") -> None:
    """Write the retraining pipeline to a YAML file, its images below `images` (registry/prefix:tag)."""
    if output.suffix not in (".yaml", ".yml"):
        raise ValueError(f"The package is {output.name!r}; a server takes a file that ends in .yaml. Name one.")
    if images:
        os.environ[REGISTRY] = images  # read when the components are made, by the import below
    from kfp import compiler

    from workflows.retrain import retrain

    output.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(retrain, str(output))
