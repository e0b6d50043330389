"""Quantizing adds a smaller graph that says nearly the same, and leaves the first as it was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from components.shared.contracts import Manifest
from components.shared.datasets.dataset import Data
from components.shared.inference import Model, read_bundle
from components.shared.runtime.work import Result
from components.shared.storage.store import Store, open_store
from tests import made
from tests.components.shared.steps import contents, laid_out, manifest, remove, step

SIZE = 16


def convolutional(folder: Path) -> Path:
    """A bundle whose graph is large enough that its weights make up most of it."""
    made.make_bundle(folder, size=SIZE)
    rng = np.random.default_rng(0)
    shapes = {"first": (32, 1, 3, 3), "second": (64, 32, 3, 3), "weights": (2, 64)}
    values = {name: rng.normal(0, 0.3 / np.sqrt(np.prod(shape[1:])), shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["feature_map"]),
        helper.make_node("ReduceMean", ["feature_map"], ["features"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["features", "weights"], ["logits"], transB=1),
    ]
    shaped = {"logits": ["batch", 2], "features": ["batch", 64], "feature_map": ["batch", 64, SIZE, SIZE]}
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shaped.items()],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, str(folder / "models" / "model.onnx"))
    return folder


@dataclass
class Bench:
    """A store with a dataset, a split and a model."""

    store: Store
    inputs: dict[str, Path]

    def quantize(self, **parameters: Any) -> Result:
        return step("quantize", self.store, self.inputs, **parameters)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    store = open_store(str(tmp_path / "store"))
    dataset = made.make_dataset(tmp_path / "dataset", store)
    folders = {
        "dataset": dataset,
        "splits": made.make_split(tmp_path / "splits", dataset),
        "model": convolutional(tmp_path / "model"),
    }
    return Bench(store, {name: manifest(store, folder) for name, folder in folders.items()})


def test_the_bundle_has_both_graphs_and_the_first_is_untouched(bench: Bench, tmp_path: Path) -> None:
    done = bench.quantize()
    before = contents(bench.store.uri, bench_model(bench))
    after = contents(bench.store.uri, done.outputs["quantized"])
    assert set(after) == {*before, "models/model.int8.onnx"}
    assert after["models/model.onnx"] == before["models/model.onnx"]
    about = read_bundle(laid_out(bench.store, done, "quantized", tmp_path / "out"))
    assert about["precisions"]["int8"] == {"bytes": len(after["models/model.int8.onnx"]), "calibration_images": 48}
    was = json.loads(before["configs/metadata.json"])["medloop"]
    assert about["precisions"]["float32"] == was["precisions"]["float32"]
    changed = {name for name, value in about.items() if was[name] != value}
    assert changed == {"precisions"}


def bench_model(bench: Bench) -> Manifest:
    return Manifest.decode(bench.inputs["model"].read_bytes(), "model")


def test_the_new_graph_is_smaller(bench: Bench) -> None:
    done = bench.quantize()
    sizes = {name: blob.size for name, blob in done.outputs["quantized"].files.items()}
    assert sizes["models/model.int8.onnx"] < 0.5 * sizes["models/model.onnx"]
    assert done.values == {"ratio": round(sizes["models/model.int8.onnx"] / sizes["models/model.onnx"], 4)}


def test_both_graphs_say_nearly_the_same(bench: Bench, tmp_path: Path) -> None:
    bundle = laid_out(bench.store, bench.quantize(), "quantized", tmp_path / "out")
    dataset = tmp_path / "dataset"
    views = Data.open(dataset, bench.store).views(SIZE, "pad")[np.arange(80, dtype=np.int64)]
    exact, rounded = (Model(bundle, precision)(views) for precision in ("float32", "int8"))
    spread = float(exact.logits.std())
    assert spread > 0
    assert np.abs(exact.logits - rounded.logits).mean() < 0.1 * spread
    assert not np.array_equal(exact.logits, rounded.logits)
    assert rounded.features.shape == exact.features.shape
    assert Model(bundle, "int8").feature_maps(views[:2]).shape == (2, 64, SIZE, SIZE)


def test_it_is_calibrated_on_as_many_training_images_as_asked(bench: Bench) -> None:
    done = bench.quantize(calibration_images=8)
    metadata = json.loads(contents(bench.store.uri, done.outputs["quantized"])["configs/metadata.json"])
    assert metadata["medloop"]["precisions"]["int8"]["calibration_images"] == 8


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    first = bench.quantize()
    (Path(bench.store.uri) / "work" / first.key / "result.json").unlink()
    again = bench.quantize()
    assert not again.reused
    assert again.outputs == first.outputs


def test_masters_that_cannot_be_read_now_are_no_lasting_error(bench: Bench) -> None:
    dataset = json.loads(bench.inputs["dataset"].read_bytes())["files"]["dataset.json"]["digest"]
    shard = json.loads(bench.store.get(dataset))["shards"][0]["digest"]
    kept = bench.store.get(shard)
    remove(bench.store, shard)
    bench.store = open_store(bench.store.uri)
    with pytest.raises(FileNotFoundError, match=shard[:12]):
        bench.quantize()
    bench.store.put_bytes(kept)
    assert bench.quantize().values["ratio"] < 1
