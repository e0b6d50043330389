"""The typed interface of deploy."""

from typing import NamedTuple

from kfp.dsl import Artifact, Input, Model

from components.stage import stage


@stage
def deploy(decision: Input[Artifact], model: Input[Model], state: Input[Artifact], store: str, by: str) -> NamedTuple(
    "Values", [("outcome", str), ("version", str), ("sentence", str)]
):
    from components.stage import call

    return call("deploy", locals())
