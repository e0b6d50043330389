"""The typed interface of deploy for artifacts that are already in the store, named by their digests."""

from typing import NamedTuple

from components.stage import stage


@stage
def deploy(decision: str, model: str, state: str, store: str, run: str, by: str) -> NamedTuple(
    "Values", [("outcome", str), ("version", str), ("sentence", str)]
):
    from components.stage import call

    return call("deploy", locals())
