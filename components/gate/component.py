"""The typed interface of gate."""

from typing import NamedTuple

from kfp.dsl import Artifact, Input, Output

from components.stage import stage


@stage
def gate(
    report: Input[Artifact],
    decision: Output[Artifact],
    store: str,
    policy: dict,
    looks: int,
    spent: float,
    signer: str,
    revision: str,
    shipped: bool,
) -> NamedTuple("Values", [("outcome", str), ("sentence", str)]):
    from components.stage import call

    return call("gate", locals())
