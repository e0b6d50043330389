"""Small real things that many tests need: images, a dataset in a store, a split, a model bundle, a release."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from components.shared import contracts
from components.shared.contracts import Manifest
from components.shared.datasets import parquet_tables
from components.shared.datasets.dataset import ShardWriter
from components.shared.imaging.views import Pixels
from components.shared.ledger import release_log
from components.shared.storage import artifacts
from components.shared.storage.store import Store

CLASSES = ["NORMAL", "PNEUMONIA"]


def write_shard(images: Iterable[Pixels], path: Path) -> None:
    writer = ShardWriter(path)
    for pixels in images:
        writer.add(pixels)
    writer.close()


def decoding(colour: str) -> dict[str, object]:
    """How files became masters, as a data set and a bundle record it."""
    return {"max_side": 1024, "colour": colour, "window_center": 0.0, "window_width": 0.0, "frames": 0}


def make_image(rng: np.random.Generator, label: int, side: int = 32) -> NDArray[np.uint8]:
    """A noisy gray image; label 1 is brighter in the middle."""
    pixels = rng.normal(90, 25, (side, side + 4))
    pixels[side // 4 : -side // 4, side // 4 : -side // 4] += 45 * label
    return np.asarray(pixels.clip(0, 255).astype(np.uint8))


def make_dataset(
    folder: Path,
    store: Store,
    patients: int = 40,
    seed: int = 1,
    classes: list[str] = CLASSES,
    colour: str = "gray",
    task: str = "classification",
) -> Path:
    """A dataset directory, two images a patient, its one shard in the store; gray, or in colour (rgb)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images: list[NDArray[np.uint8]] = []
    rows: list[dict[str, object]] = []
    for patient in range(patients):
        label = patient % len(classes)
        for number in range(2):
            pixels = make_image(rng, label)
            if colour == "rgb":
                pixels = np.stack([pixels, pixels // 2, 255 - pixels], axis=2)
            name = f"patient{patient}-{number}"
            rows.append(
                {
                    "image_id": contracts.digest(name.encode())[:32],
                    "patient_id": contracts.digest(f"patient{patient}".encode())[:32],
                    "labels": [label],
                    "source_digest": contracts.digest(name.encode()),
                    "pixel_digest": contracts.digest(pixels.tobytes()),
                    "look": "",
                    "duplicate_of": "",
                    "near": "",
                    "official": "",
                    "shard": 0,
                    "row": len(images),
                    "frame": -1,
                    "height": pixels.shape[0],
                    "width": pixels.shape[1],
                    "bits": 8,
                    "sex": "FM"[patient // 2 % 2],
                    "age": 20 + patient,
                    "site": ("north", "south")[patient // 4 % 2],
                    "view": "PA",
                    "modality": "DX",
                    "label_source": "",
                    "text": "",
                }
            )
            images.append(pixels)
    path = folder / "shard"
    write_shard(images, path)
    blob = store.put_file(path)
    path.unlink()
    parquet_tables.write_table(pa.Table.from_pylist(rows, schema=parquet_tables.INDEX), folder / "index.parquet")
    about = {
        "name": "made",
        "task": task,
        "classes": classes,
        "decoding": decoding(colour),
        "shards": [{"digest": blob.digest, "rows": len(images), "bytes": blob.size}],
        "fingerprint": contracts.fingerprint([[r["pixel_digest"], r["labels"]] for r in rows]),
        "key_id": "made",
        "source_revision": "made",
        "counts": {"images": len(images), "patients": patients, "quarantined": 0, "duplicates": 0},
    }
    contracts.write_record("dataset", folder / "dataset.json", about)
    (folder / "quarantine.csv").write_text("image_id,reason,detail\n")
    (folder / "warnings.csv").write_text("image_id,patient_id,reason,detail\n")
    return folder


def make_split(folder: Path, dataset_folder: Path, core: bool = True, untrained: int = -1) -> Path:
    """A split of such a dataset: of every five pairs of patients three train, one val, one test.

    With `core` false, half of the test patients came with split version 2. No image of the class `untrained` is in
    train.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = pq.read_table(dataset_folder / "index.parquet").to_pylist()
    rows = []
    for place, row in enumerate(index):
        patient = place // 2
        side = ("train", "train", "train", "val", "test")[patient // 2 % 5]
        if side == "train" and row["labels"] == [untrained]:
            continue
        since = 2 if not core and side == "test" and patient // 10 % 2 else 1
        rows.append(
            {
                "image_id": row["image_id"],
                "patient_id": row["patient_id"],
                "side": side,
                "since": since,
                "why": "draw",
                "fold": -1,
            }
        )
    parquet_tables.write_table(pa.Table.from_pylist(rows, schema=parquet_tables.SPLIT), folder / "splits.parquet")
    sides = {side: sum(row["side"] == side for row in rows) for side in ("train", "val", "test")}
    about = {
        "version": 1 if core else 2,
        "fingerprint": contracts.fingerprint([[r["image_id"], r["side"]] for r in rows]),
        "dataset": contracts.read_record("dataset", dataset_folder / "dataset.json")["fingerprint"],
        "images": sides,
        "patients": {side: count // 2 for side, count in sides.items()},
        "left_out": 0,
        "key_id": "made",
    }
    contracts.write_record("split", folder / "split.json", about)
    return folder


def make_bundle(
    folder: Path,
    classes: list[str] = CLASSES,
    gain: float = 12.0,
    size: int = 16,
    split_version: int = 1,
    task: str = "classification",
) -> Path:
    """A model bundle that keeps the export contract; with a positive gain it calls bright-centred images positive."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    kernel = np.zeros((4, 1, 3, 3), np.float32)
    kernel[:, 0, 1, 1] = [1, -1, 0.5, -0.5]
    weights = np.zeros((len(classes), 4), np.float32)
    weights[-1] = [gain, -gain, 0, 0]
    weights[0] = -weights[-1]
    bias = np.zeros(len(classes), np.float32)
    bias[0], bias[-1] = -0.42 * gain, 0.42 * gain
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["mapped"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["mapped"], ["feature_map"]),
        helper.make_node("ReduceMean", ["feature_map"], ["features"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, size, size])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(classes)]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("feature_map", TensorProto.FLOAT, ["batch", 4, size, size]),
        ],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(bias, "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "models" / "model.onnx"))
    about = {
        "kind": "bundle",
        "schema": contracts.SCHEMAS["bundle"],
        "task": task,
        "architecture": "made",
        "classes": classes,
        "preprocess": {
            "size": size,
            "fit": "pad",
            "channels": 1,
            "mean": 0.39,
            "std": 0.15,
            "decoding": decoding("gray"),
        },
        "temperature": 1.0,
        "threshold": [0.5] * len(classes) if task == "multilabel" else 0.5 if len(classes) == 2 else None,
        "precisions": {"float32": {"bytes": (folder / "models" / "model.onnx").stat().st_size}},
        "fingerprints": {"dataset": "made", "split": "made", "split_version": split_version},
        "parameters": {"epochs": 1},
    }
    (folder / "configs" / "metadata.json").write_text(
        json.dumps({"version": "0.1.0", "medloop": about}, sort_keys=True)
    )
    return folder


def release_bundle(store: Store, bundle: Path, what: str = "release", precision: str = "float32") -> release_log.Entry:
    """Put a bundle into service in the store's release log."""
    log = release_log.read_log(store)
    model: Manifest = artifacts.gather(store, bundle)
    version = f"v{len(release_log.versions(log)) + 1}"
    return release_log.append(
        store, log, what, version=version, model=model.digest, runtime="onnxruntime", precision=precision, run="made"
    )
