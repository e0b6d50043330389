"""The typed interface of train."""

from typing import NamedTuple

from kfp.dsl import Dataset, Input, Model, Output

from components.stage import stage


@stage
def train(  # noqa: PLR0917 - the pipeline gives them by name
    dataset: Input[Dataset],
    splits: Input[Dataset],
    model: Output[Model],
    store: str,
    architecture: str,
    image_size: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    device: str,
    seed: int,
    weights: str,
    options: dict,
) -> NamedTuple("Values", [("best_epoch", int), ("val_auc", float)]):
    from components.stage import call

    return call("train", locals())
