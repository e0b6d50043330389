"""The typed interface of deploy for what lies in the store already: artifacts are named by the digests of manifests."""

from typing import NamedTuple

from components.stage import stage


@stage
def deploy(decision: str, model: str, state: str, store: str, run: str, by: str) -> NamedTuple(
    "Values", [("outcome", str), ("version", str), ("sentence", str)]
):
    from components.stage import call

    return call("deploy", locals())
