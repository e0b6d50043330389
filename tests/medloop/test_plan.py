"""Which steps of a run follow from what is known: the conditions as Kubeflow writes them."""

from __future__ import annotations

import pytest
from google.protobuf import json_format

from medloop.runner.plan import UNKNOWN, _holds
from workflows.retrain import retrain


def conditions() -> list[str]:
    """The conditions of the pipeline's branches on one decision."""
    dag = json_format.MessageToDict(retrain.pipeline_spec)["root"]["dag"]["tasks"]
    inner = next(task for name, task in dag.items() if "condition-branches" in name)
    spec = json_format.MessageToDict(retrain.pipeline_spec)["components"][inner["componentRef"]["name"]]
    return [task["triggerPolicy"]["condition"] for task in spec["dag"]["tasks"].values()]


@pytest.mark.parametrize(
    ("outcome", "goes_on"), [("approved", True), ("awaiting approval", True), ("refused", False), (UNKNOWN, None)]
)
def test_what_passes_as_trained_goes_on_also_when_a_person_is_to_approve(outcome: object, goes_on: bool | None) -> None:
    found = conditions()
    assert len(found) == 2
    name = found[0].split("'")[1]
    answers = {condition: _holds(condition, {name: outcome}) for condition in found}
    assert sorted(answers.values(), key=str) == sorted([goes_on, None if goes_on is None else not goes_on], key=str)
    onward = next(condition for condition in found if not condition.startswith("!"))
    assert answers[onward] is goes_on
