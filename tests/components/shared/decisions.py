"""What a gate and a resolve hand to the stage that ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.ledger import lineage, release_log, signing, stage_signing
from components.shared.storage.store import Store

NOTHING = Manifest().digest
SPLIT, DATASET = "5" * 64, "d" * 64
PAGE = b"<html>the report, with the decision in it</html>"
FIGURES = {
    "accuracy": {"value": 0.9, "low": 0.86, "high": 0.93},
    "auc": {"value": 0.96, "low": 0.93, "high": 0.98},
}


def decision(
    folder: Path,
    store: Store,
    model: str,
    outcome: str = "approved",
    champion: str = "",
    precision: str = "float32",
    shipped: bool = True,
) -> Path:
    """A decision about a model, and the report that it names; signed where a key is set."""
    folder.mkdir(parents=True)
    subject = {"model": model, "champion": champion, "precision": precision, "dataset": DATASET, "split": SPLIT}
    record = {
        "outcome": outcome,
        "sentence": f"It is {outcome}.",
        "subject": subject,
        "report": report(store, subject),
        "checks": [],
        "page": contracts.digest(PAGE),
        "policy_digest": "9" * 64,
        "budget": {"look": 1, "error_at_this_look": 0.002, "spent": 0.002},
        "shipped": shipped,
        "lineage": "",
    }
    if signing.signer():
        data = lineage.encode(steps(store, subject, str(record["report"])))
        (folder / lineage.FILE).write_bytes(data)
        record["lineage"] = contracts.digest(data)
    (folder / "page.html").write_bytes(PAGE)
    contracts.write_record("decision", folder / "decision.json", record)
    signing.sign_file(folder / "decision.json", "decision")
    return folder


def report(store: Store, subject: dict[str, str]) -> str:
    """A report about this subject in the store."""
    metrics = {
        "subject": subject,
        "classes": ["NORMAL", "PNEUMONIA"],
        "positive": "PNEUMONIA",
        "confidence": 0.95,
        "all": {"images": 240, "patients": 120, "figures": FIGURES},
    }
    content = {"metrics.json": contracts.encode("metrics", metrics), "report.html": PAGE}
    manifest = Manifest({name: store.put_bytes(data) for name, data in content.items()})
    return store.put_bytes(manifest.encode()).digest


def steps(store: Store, subject: dict[str, Any], report: str) -> list[dict[str, Any]]:
    """The signed results of the steps of a run that came to this report."""
    portion = Manifest({"portion.json": store.put_bytes(b"{}")})
    store.put_bytes(portion.encode())
    several = store.put_bytes(Manifest.of([portion]).encode()).digest
    rows = {"dataset": subject["dataset"], "splits": subject["split"]}
    trained = "7" * 64 if subject["precision"] == "int8" else subject["model"]
    judged = {"model": subject["model"], "champion": subject["champion"] or NOTHING, **rows}
    results = [
        result("evaluate", judged, {"report": report}, precision=subject["precision"]),
        result("train", rows, {"model": trained}),
        result("split", {"dataset": subject["dataset"], "previous": NOTHING}, {"splits": subject["split"]}),
        result("merge", {"portions": several}, {"dataset": subject["dataset"]}),
        result("ingest", {}, {"portion": portion.digest}, revision="revision", key_id="key", part="1/1"),
    ]
    if trained != subject["model"]:
        results.append(result("quantize", {"model": trained, **rows}, {"quantized": subject["model"]}))
    return results


def keep(store: Store, results: list[dict[str, Any]]) -> None:
    """Keep these results where the steps would have put them."""
    for record in results:
        key = lineage.key_of(record)
        store.write(f"work/{key}/result.json", contracts.encode("result", record))
        for digest in record["outputs"].values():
            store.write(f"refs/{digest}.json", contracts.encode("ref", {"key": key, "stage": record["stage"]}))


def result(stage: str, inputs: dict[str, str], outputs: dict[str, str], **parameters: Any) -> dict[str, Any]:
    """The result of a step, signed by its stage."""
    key = stage_signing.held(stage)
    assert key is not None
    made = {"stage": stage, "inputs": inputs, "parameters": parameters, "code": "c", "outputs": outputs, "values": {}}
    return contracts.decode("result", contracts.encode("result", key.sign("result", {**made, "seconds": 1.0})), stage)


def state(folder: Path, store: Store, champion: str = "", request: str = "request-1", **fields: Any) -> Path:
    """What resolve saw: the log as it stands now."""
    folder.mkdir(parents=True)
    record = {
        "revision": "revision",
        "files": 2,
        "key_id": "key",
        "head": release_log.head(release_log.read_log(store)),
        "request": request,
        "code": "c" * 64,
        "repeats": "",
        "seen": {"previous": "", "champion": champion, "champion_version": ""},
        "handed": {"previous": NOTHING, "champion": champion or NOTHING},
        "looks": 1,
        "spent": 0.0,
    }
    contracts.write_record("resolved", folder / "resolved.json", {**record, **fields})
    signing.sign_file(folder / "resolved.json", "resolved")
    return folder
