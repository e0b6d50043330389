"""The retraining loop as a pipeline."""

from kfp import dsl
from kfp.dsl import Dataset

from components.deploy.component import deploy
from components.evaluate.component import evaluate
from components.gate.component import gate
from components.ingest.component import ingest
from components.merge.component import merge
from components.quantize.component import quantize
from components.reject.component import reject
from components.resolve.component import resolve
from components.shared.runtime.stage_interface import default
from components.split.component import split
from components.train.component import train


@dsl.pipeline(name="ingest-side-by-side", description="Ingests the parts of a source in parallel and merges them.")
def side_by_side(
    parts: list,
    store: str,
    source: str,
    revision: str,
    key_id: str,
    ingest_options: dict,
    merge_options: dict,
) -> Dataset:
    # A nested pipeline, because the body of a loop can use the outputs of only one task outside of it.
    with dsl.ParallelFor(parts, name="each part") as part:
        portion = ingest(
            store=store, source=source, revision=revision, key_id=key_id, part=part, options=ingest_options
        )
    merged = merge(portions=dsl.Collected(portion.outputs["portion"]), store=store, options=merge_options)
    return merged.outputs["dataset"]


@dsl.pipeline(
    name="medloop-retrain", description="Trains a model on new scans, and releases it or refuses it with a reason."
)
def retrain(  # noqa: PLR0917 - the pipeline's parameters are passed by name
    source: str,
    store: str,
    by: str = "",
    parts: list = ["1/1"],
    architecture: str = default("train", "architecture"),
    image_size: int = default("train", "image_size"),
    epochs: int = default("train", "epochs"),
    batch_size: int = default("train", "batch_size"),
    learning_rate: float = default("train", "learning_rate"),
    device: str = default("train", "device"),
    seed: int = default("train", "seed"),
    weights: str = default("resolve", "weights"),
    policy: dict = default("gate", "policy"),
    ingest_options: dict = {},
    merge_options: dict = {},
    split_options: dict = {},
    train_options: dict = {},
    evaluate_options: dict = {},
    quantize_options: dict = {},
):
    asked = {
        "architecture": architecture,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "device": device,
        "seed": seed,
    }
    now = resolve(
        store=store,
        source=source,
        weights=weights,
        asked=asked,
        ingest_options=ingest_options,
        merge_options=merge_options,
        split_options=split_options,
        train_options=train_options,
        evaluate_options=evaluate_options,
        policy=policy,
        quantize_options=quantize_options,
    )
    data = side_by_side(
        parts=parts,
        store=store,
        source=source,
        revision=now.outputs["revision"],
        key_id=now.outputs["key_id"],
        ingest_options=ingest_options,
        merge_options=merge_options,
    )
    sides = split(
        dataset=data.output,
        previous=now.outputs["previous"],
        store=store,
        seed=seed,
        options=split_options,
    )
    rows = {"dataset": data.output, "splits": sides.outputs["splits"], "store": store}
    trained = train(
        **rows,
        architecture=architecture,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        device=device,
        seed=seed,
        weights=now.outputs["weights_digest"],
        options=train_options,
    )
    report = evaluate(
        **rows,
        model=trained.outputs["model"],
        champion=now.outputs["champion"],
        precision="float32",
        options=evaluate_options,
    )
    signer = now.outputs["signer"]
    limits = {
        "store": store,
        "policy": policy,
        "looks": now.outputs["looks"],
        "spent": now.outputs["spent"],
        "signer": signer,
        "revision": now.outputs["revision"],
    }
    verdict = gate(**limits, report=report.outputs["report"], shipped=False)
    ending = {"state": now.outputs["state"], "store": store, "by": by}
    # Only the quantized model, which is the one to release, can require approval.
    with dsl.If(verdict.outputs["outcome"] != "refused", "passed as trained"):
        small = quantize(**rows, model=trained.outputs["model"], options=quantize_options)
        shipped = evaluate(
            **rows,
            model=small.outputs["quantized"],
            champion=now.outputs["champion"],
            precision="int8",
            options=evaluate_options,
        )
        final = gate(**limits, report=shipped.outputs["report"], shipped=True)
        with dsl.If(final.outputs["outcome"] == "approved", "approved as shipped"):
            deploy(**ending, decision=final.outputs["decision"], model=small.outputs["quantized"])
        with dsl.Else("refused or awaiting approval as shipped"):
            reject(**ending, decision=final.outputs["decision"])
    with dsl.Else("refused as trained"):
        reject(**ending, decision=verdict.outputs["decision"])
