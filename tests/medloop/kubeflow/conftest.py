"""Packages that tests submit are compiled once a process: each takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from medloop.kubeflow import submit
from workflows import package
from workflows.placement import Placement

COMPILED: dict[str, bytes] = {}


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_once(pipeline: str, images: Mapping[str, str], cluster: Mapping[str, Placement], output: Path) -> None:
        name = repr((pipeline, images, cluster))
        if name not in COMPILED:
            package.compile_package(pipeline, images, cluster, output)
            COMPILED[name] = output.read_bytes()
        output.write_bytes(COMPILED[name])

    monkeypatch.setattr(submit, "compile_package", compile_once)
