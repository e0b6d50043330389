"""What a gate and a resolve hand to the stage that ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.shared import contracts, releases, signing
from components.shared.contracts import Manifest
from components.shared.store import Store

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
        "budget": {"error_at_this_look": 0.002},
        "shipped": shipped,
    }
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


def state(folder: Path, store: Store, champion: str = "", request: str = "request-1", **fields: Any) -> Path:
    """What resolve saw: the log as it stands now."""
    folder.mkdir(parents=True)
    record = {
        "revision": "revision",
        "files": 2,
        "key_id": "key",
        "head": releases.head(releases.read_log(store)),
        "request": request,
        "code": "c" * 64,
        "repeats": "",
        "seen": {"previous": "", "champion": champion, "champion_version": ""},
    }
    contracts.write_record("resolved", folder / "resolved.json", {**record, **fields})
    signing.sign_file(folder / "resolved.json", "resolved")
    return folder
