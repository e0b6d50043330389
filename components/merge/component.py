"""The typed interface of merge."""

from typing import List, NamedTuple  # noqa: UP035 - Kubeflow reads this spelling

from kfp.dsl import Dataset, Input, Output

from components.stage import stage


@stage
def merge(
    portions: Input[List[Dataset]],  # noqa: UP006
    dataset: Output[Dataset],
    store: str,
    options: dict,
) -> NamedTuple(
    "Values",
    [
        ("images", int),
        ("patients", int),
        ("duplicates", int),
        ("near_duplicates", int),
        ("quarantined", int),
        ("left_out", dict),
        ("set_aside", dict),
    ],
):
    from components.stage import call

    return call("merge", locals())
