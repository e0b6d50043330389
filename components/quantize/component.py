"""The typed interface of quantize."""

from typing import NamedTuple

from kfp.dsl import Dataset, Input, Model, Output

from components.stage import stage


@stage
def quantize(
    model: Input[Model],
    dataset: Input[Dataset],
    splits: Input[Dataset],
    quantized: Output[Model],
    store: str,
    options: dict,
) -> NamedTuple("Values", [("ratio", float)]):
    from components.stage import call

    return call("quantize", locals())
