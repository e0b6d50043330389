"""A whole evaluation with small real things: dataset, split, bundles, store; and its results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import numpy_helper

from components.evaluate.evaluate import evaluate
from components.shared import contracts
from components.shared.datasets import parquet_tables
from components.shared.runtime.stage_interface import read
from components.shared.runtime.work import Work
from components.shared.storage.store import Store, open_store
from tests import made

DIGESTS = {"model": "a" * 64, "champion": "b" * 64, "dataset": "c" * 64, "splits": "d" * 64}


@dataclass
class Scene:
    """Directories as the evaluate stage gets them."""

    root: Path
    store: Store

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def metrics(self) -> dict[str, Any]:
        return contracts.read_record("metrics", self.report / "metrics.json")

    @property
    def page(self) -> str:
        return (self.report / "report.html").read_text(encoding="utf-8")

    def run(self, report: str = "report", **parameters: Any) -> Mapping[str, Any]:
        (self.root / report).mkdir()
        model, champion, data, splits = (self.root / name for name in DIGESTS)
        work = Work("key", self.store, DIGESTS)
        interface = read("evaluate")
        arguments = interface.arguments(interface.complete({"resamples": 300, "explained": 1, **parameters}))
        return evaluate(model, champion, data, splits, self.root / report, work, **arguments)


def make(
    root: Path,
    patients: int = 120,
    classes: list[str] = made.CLASSES,
    champion: bool = False,
    core: bool = True,
    wrong: int = 7,
    task: str = "classification",
) -> Scene:
    """A scene in which every `wrong`-th patient has another label than the images show."""
    scene = Scene(root, open_store(str(root / "store")))
    folder = made.make_dataset(root / "dataset", scene.store, patients, classes=classes, task=task)
    if wrong:
        change(folder, "labels", lambda row, old: [(old[0] + 1) % len(classes)] if row // 2 % wrong == 0 else old)
    made.make_split(root / "splits", folder, core)
    made.make_bundle(root / "model", classes, gain=4, task=task)
    if champion:
        made.make_bundle(root / "champion", classes, gain=3, size=8, task=task)
    else:
        (root / "champion").mkdir()
    return scene


def change(folder: Path, column: str, new: Any) -> None:
    """Give every row of a dataset's index a new value in one column."""
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    for place, row in enumerate(rows):
        row[column] = new(place, row[column])
    parquet_tables.write_table(pa.Table.from_pylist(rows, schema=parquet_tables.INDEX), folder / "index.parquet")


def change_metadata(bundle: Path, **fields: Any) -> None:
    """Change what a bundle says of its model."""
    path = bundle / "configs" / "metadata.json"
    document = json.loads(path.read_text())
    document["medloop"].update(fields)
    path.write_text(json.dumps(document))


def change_weights(bundle: Path, factor: float, name: str = "model.onnx", into: str = "model.onnx") -> None:
    """Scale the last layer's bias of a graph."""
    graph = onnx.load(str(bundle / "models" / name))
    for tensor in graph.graph.initializer:
        if tensor.name == "bias":
            tensor.CopyFrom(
                numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float32), "bias")
            )
    onnx.save(graph, str(bundle / "models" / into))


def add_int8(bundle: Path, factor: float = 1.0) -> None:
    """Give a bundle a second graph under the name of the int8 one, off by a factor in its bias."""
    change_weights(bundle, factor, into="model.int8.onnx")
    change_metadata(bundle, precisions={"float32": {"bytes": 1}, "int8": {"bytes": 1}})
