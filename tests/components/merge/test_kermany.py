"""Real chest X-rays, where they are at hand: kept as they were published, nobody on two sides, copies found."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from components.shared.storage.store import open_store
from components.split.leakage import leaks
from tests.components.ingest.test_ingest import Scans, ingest
from tests.components.shared.steps import contents, laid_out, nothing, output, step

ROOT = Path(__file__).resolve().parents[3]
KERMANY = ROOT.parent / "shared" / "data" / "kermany_cxr"


@pytest.mark.slow
@pytest.mark.skipif(not KERMANY.exists(), reason="the chest X-rays are not at hand")
def test_the_published_split_is_kept_and_identical_images_are_found(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    asked = yaml.safe_load((ROOT / "workflows" / "params" / "kermany.yaml").read_text())["ingest_options"]
    done = ingest(store, Scans(KERMANY), 3, **asked)
    data = laid_out(store, done, "dataset", tmp_path / "data")
    rows = pq.read_table(data / "index.parquet").to_pylist()
    assert [sum(row["official"] == side for row in rows) for side in ("train", "test")] == [5216, 624]
    of_side = {side: {row["patient_id"] for row in rows if row["official"] == side} for side in ("train", "test")}
    assert not of_side["train"] & of_side["test"]
    copies: dict[str, list[str]] = {}
    for row in rows:
        copies.setdefault(row["pixel_digest"], []).append(row["image_id"])
    groups = [images for images in copies.values() if len(images) > 1]
    assert (len(groups), sum(map(len, groups))) == (30, 62)
    assert json.loads((data / "dataset.json").read_text())["counts"]["near_duplicates"] == 0

    split = step("split", store, {"dataset": output(store, done, "dataset"), "previous": nothing(store)})
    sides = laid_out(store, split, "splits", tmp_path / "splits")
    assert split.values["train"] + split.values["val"] == 5216
    assert split.values["test"] == 624
    assert leaks(data, sides) == []
    told = csv.DictReader(io.StringIO(contents(store.uri, done.outputs["dataset"])["warnings.csv"].decode()))
    assert {row["reason"] for row in told} <= {"copies across patients", "not in the listing", "writing in the image"}
