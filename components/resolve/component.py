"""The typed interface of resolve."""

from typing import NamedTuple

from kfp.dsl import Artifact, Dataset, Model, Output

from components.stage import stage


@stage
def resolve(  # noqa: PLR0917 - the pipeline gives them by name
    state: Output[Artifact],
    previous: Output[Dataset],
    champion: Output[Model],
    store: str,
    source: str,
    weights: str,
    asked: dict,
    ingest_options: dict,
    merge_options: dict,
    split_options: dict,
    train_options: dict,
    evaluate_options: dict,
    policy: dict,
    quantize_options: dict,
) -> NamedTuple(
    "Values",
    [("revision", str), ("key_id", str), ("weights_digest", str), ("looks", int), ("spent", float), ("signer", str)],
):
    from components.stage import call

    return call("resolve", locals())
