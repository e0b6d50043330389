"""The pipeline that releases an approved model; it consists of deploy only."""

from kfp import dsl

from components.deploy.component_by_digest import deploy


@dsl.pipeline(name="medloop-release", description="Releases an approved model.")
def release(store: str, decision: str, model: str, state: str, run: str, by: str = ""):
    deploy(decision=decision, model=model, state=state, store=store, run=run, by=by)
