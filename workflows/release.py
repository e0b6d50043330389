"""The release of a model that waited for a person's approval, as a pipeline: deploy alone."""

from kfp import dsl

from components.deploy.component_by_digest import deploy


@dsl.pipeline(name="medloop-release", description="Puts into service what a person has approved; deploy alone.")
def release(store: str, decision: str, model: str, state: str, run: str, by: str = ""):
    deploy(decision=decision, model=model, state=state, store=store, run=run, by=by)
