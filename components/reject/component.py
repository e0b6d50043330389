"""The typed interface of reject."""

from typing import NamedTuple

from kfp.dsl import Artifact, Input

from components.stage import stage


@stage
def reject(decision: Input[Artifact], state: Input[Artifact], store: str, by: str) -> NamedTuple(
    "Values", [("outcome", str), ("version", str), ("sentence", str)]
):
    from components.stage import call

    return call("reject", locals())
