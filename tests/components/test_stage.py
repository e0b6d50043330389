"""The pipeline's side of a stage."""

from __future__ import annotations

import importlib

import pytest

from components.shared.runtime.stage_interface import stages


@pytest.mark.parametrize("name", stages())
def test_python_takes_the_place_of_the_shell_so_that_it_hears_when_to_end(name: str) -> None:
    component = getattr(importlib.import_module(f"components.{name}.component"), name)
    shell = component.component_spec.implementation.container.command[2]
    assert "_KFP_RUNTIME=true exec python3 -m kfp.dsl.executor_main" in shell
