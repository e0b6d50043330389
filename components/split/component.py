"""The typed interface of split."""

from typing import NamedTuple

from kfp.dsl import Dataset, Input, Output

from components.stage import stage


@stage
def split(
    dataset: Input[Dataset], previous: Input[Dataset], splits: Output[Dataset], store: str, seed: int, options: dict
) -> NamedTuple("Values", [("train", int), ("val", int), ("test", int)]):
    from components.stage import call

    return call("split", locals())
