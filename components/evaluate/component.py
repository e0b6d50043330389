"""The typed interface of evaluate."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.stage import stage


@stage
def evaluate(
    model: Input[Model],
    champion: Input[Model],
    dataset: Input[Dataset],
    splits: Input[Dataset],
    report: Output[Artifact],
    figures: Output[Metrics],
    curves: Output[ClassificationMetrics],
    page: Output[HTML],
    store: str,
    precision: str,
    options: dict,
) -> NamedTuple("Values", [("accuracy", float), ("auc", float)]):
    from components.stage import call

    return call("evaluate", locals())
