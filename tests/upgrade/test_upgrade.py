"""What an earlier version wrote, this one opens, explains, serves and continues.

`stores/<version>/store.tar.xz` holds a signed store and its key: a refused run, v1, v2 after new patients came, a
rollback to v1 and a promotion of v2; `expected.json` is what that version printed of it. Each release adds one.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from components.shared.storage.store import open_store
from tests.e2e.loop import ROOT, Place, outputs

STORES = sorted((Path(__file__).parent / "stores").iterdir())
OPTIONS = (
    *("--set", "ingest_options.max_side=64", "--set", "parts=2", "--set", "train_options.hidden=8"),
    *("--set", "train_options.draw_images=false", "--set", "evaluate_options.explained=0", "--set", "seed=8"),
)


@pytest.fixture(scope="module", params=STORES, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, dict[str, Any]]:
    place, expected = restored(request.param, tmp_path_factory.mktemp("old"))
    place.medloop("synth", str(place.scans), "--patients", "50")
    return place, expected


def restored(stored: Path, home: Path) -> tuple[Place, dict[str, Any]]:
    """A home with the store of an earlier version, and what that version printed of it."""
    with tarfile.open(stored / "store.tar.xz") as archive:
        archive.extractall(home, filter="data")
    key = (home / "signing.key").read_text(encoding="ascii")
    expected = json.loads((stored / "expected.json").read_text(encoding="utf-8"))
    return Place(home, {"MEDLOOP_SIGNING_KEY": key}), expected


@pytest.mark.slow
def test_the_log_and_the_versions_are_as_they_were(old: tuple[Place, dict[str, Any]]) -> None:
    place, expected = old
    assert place.models() == expected["models"]
    assert "v1" in place.medloop("models").stdout


def test_every_entry_is_verified_with_its_decision_report_and_lineage(old: tuple[Place, dict[str, Any]]) -> None:
    place, _ = old
    found = json.loads(place.medloop("audit", "verify", "--json").stdout)
    assert found["problems"] == []


@pytest.mark.slow
def test_its_runs_are_explained(old: tuple[Place, dict[str, Any]]) -> None:
    place, expected = old
    runs = [entry["run"] for entry in expected["models"]["log"] if entry["what"] in ("release", "refusal")]
    for run in runs:
        told = json.loads(place.medloop("explain", run, "--json").stdout)
        assert told["run"] == run
        assert run in place.medloop("explain", run).stdout
    assert json.loads(place.medloop("explain", "--json").stdout)["sentence"] == expected["sentence"]


@pytest.mark.slow
def test_its_model_answers_as_it_did(old: tuple[Place, dict[str, Any]]) -> None:
    place, expected = old
    command = [sys.executable, "-m", "medloop.cli.main", "serve", "--port", "0"]
    service = subprocess.Popen(command, cwd=ROOT, env=place.environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert service.stderr
        line = next(line for line in service.stderr if "serving v2 at" in line)
        address = line.partition(" at ")[2].split('"')[0].strip()
        image = (place.scans / "NORMAL" / "person0001_1.png").read_bytes()
        told = httpx.post(f"{address}/predict", files={"file": ("a.png", image, "image/png")}, timeout=60).json()
    finally:
        service.terminate()
        service.communicate(timeout=60)
    assert told.pop("inference_time_ms") > 0
    probabilities, before = told.pop("probabilities"), expected["prediction"]["probabilities"]
    assert probabilities == pytest.approx(before, abs=1e-3)  # INT8 differs a little from processor to processor
    assert told["model_version"] == "v2"


@pytest.mark.slow
def test_the_next_run_goes_on_from_it(old: tuple[Place, dict[str, Any]]) -> None:
    """Run last: no file is decoded again, every patient keeps the side, the looks go on, and the log grows."""
    place, expected = old
    store = open_store(str(place.home / "store"))
    before = json.loads(place.medloop("explain", "--json").stdout)
    done = place.run(*OPTIONS)
    assert done["outcome"] in ("released", "unchanged")
    log = place.models()["log"]
    assert log[: len(expected["models"]["log"])] == expected["models"]["log"]
    sides = [
        {
            row["patient_id"]: row["side"]
            for row in pq.read_table(
                io.BytesIO(store.get(manifest(store, outputs(run, "split")["splits"])["patients.parquet"]["digest"]))
            ).to_pylist()
        }
        for run in (before, done)
    ]
    assert sides[0] == sides[1]
    decoded = [step["values"].get("decoded", 0) for step in done["stages"] if step["stage"] == "ingest"]
    assert decoded == [0] * len(decoded)
    assert json.loads(place.medloop("audit", "verify", "--json").stdout)["problems"] == []


def manifest(store: Any, digest: str) -> dict[str, Any]:
    """The files of an artifact."""
    return dict(json.loads(store.get(digest))["files"])
