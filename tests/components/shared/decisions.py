"""What a gate and a resolve hand to the stage that ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.shared import contracts, releases
from components.shared.store import Store

SPLIT, REPORT, DATASET = "5" * 64, "4" * 64, "d" * 64


def decision(
    folder: Path, model: str, outcome: str = "approved", champion: str = "", precision: str = "float32"
) -> Path:
    """A decision about a model."""
    folder.mkdir(parents=True)
    subject = {"model": model, "champion": champion, "precision": precision, "dataset": DATASET, "split": SPLIT}
    record = {"outcome": outcome, "sentence": f"It is {outcome}.", "subject": subject, "report": REPORT, "checks": []}
    contracts.write_record("decision", folder / "decision.json", record)
    return folder


def state(folder: Path, store: Store, champion: str = "", request: str = "request-1", **fields: Any) -> Path:
    """What resolve saw: the log as it stands now."""
    folder.mkdir(parents=True)
    record = {
        "revision": "revision",
        "files": 2,
        "key_id": "key",
        "head": releases.head(releases.read_log(store)),
        "request": request,
        "repeats": "",
        "seen": {"previous": "", "champion": champion, "champion_version": ""},
    }
    contracts.write_record("resolved", folder / "resolved.json", {**record, **fields})
    return folder
