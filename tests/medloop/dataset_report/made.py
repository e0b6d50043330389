"""Changes to small made data sets: what real ones have, planted where the test knows of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.shared.datasets import dataset, parquet_tables
from components.shared.datasets.dataset import Data
from components.shared.storage.store import Store
from medloop.dataset_report.counts import Rows
from medloop.dataset_report.report_input import ReportInput
from medloop.dataset_report.statistics import Figures, figures
from tests.made import write_shard

Row = dict[str, Any]


def change(folder: Path, edit: Callable[[list[Row]], object]) -> None:
    """Let `edit` change the rows of a data set's index."""
    rows = pq.read_table(folder / "index.parquet", schema=parquet_tables.INDEX).to_pylist()
    edit(rows)
    parquet_tables.write_table(pa.Table.from_pylist(rows, schema=parquet_tables.INDEX), folder / "index.parquet")


def tell(folder: Path, **fields: Any) -> None:
    """Change what a data set's description says."""
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def place(splits: Path, sides: dict[str, tuple[str, str]]) -> None:
    """Put these images on another side, with a reason."""
    rows = pq.read_table(splits / "splits.parquet").to_pylist()
    for row in rows:
        row["side"], row["why"] = sides.get(row["image_id"], (row["side"], row["why"]))
    parquet_tables.write_table(pa.Table.from_pylist(rows, schema=parquet_tables.SPLIT), splits / "splits.parquet")


def one_shard_for_each_patient(folder: Path, store: Store) -> None:
    """Divide the one shard of a made data set into one for each patient."""
    about = json.loads((folder / "dataset.json").read_text())
    masters = dataset.read_shard(store.fetch(about["shards"][0]["digest"]))
    shards = []
    for first in range(0, len(masters), 2):
        path = folder / "shard"
        write_shard(masters[first : first + 2], path)
        blob = store.put_file(path)
        path.unlink()
        shards.append({"digest": blob.digest, "rows": 2, "bytes": blob.size})
    tell(folder, shards=shards)
    change(folder, lambda rows: [row.update(shard=row["row"] // 2, row=row["row"] % 2) for row in rows])


def look(folder: Path, splits: Path | None, store: Store) -> tuple[Figures, Rows]:
    """A data set's figures, and its rows."""
    chosen = ReportInput("the test", folder, splits, {}, folder / "data.html")
    data = Data.open(folder, store)
    rows = Rows(data, splits)
    return figures(chosen, data, rows), rows
