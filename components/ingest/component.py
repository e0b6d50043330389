"""The typed interface of ingest."""

from typing import NamedTuple

from kfp.dsl import Dataset, Output

from components.stage import stage


@stage
def ingest(
    portion: Output[Dataset], store: str, source: str, revision: str, key_id: str, part: str, options: dict
) -> NamedTuple("Values", [("images", int), ("quarantined", int)]):
    from components.stage import call

    return call("ingest", locals())
