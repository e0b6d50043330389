"""Export of a trained network to a model bundle: weights, ONNX graph with three outputs, head and metadata."""

from __future__ import annotations

import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from components.shared import contracts
from components.shared.contracts import In
from components.shared.errors import UnavailableError
from components.shared.imaging.views import normalise
from components.shared.inference import OUTPUTS, PRECISIONS, Model
from components.shared.parsing.json_documents import read_json

OPSET = 18
"""The opset that torch's exporter writes natively; newer ones are converted from it, without any gain."""

TOLERANCE = 1e-3
"""Maximum difference between graph and network: of a logit, and of a feature relative to the largest one."""

MONAI_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
"""Schema with which MONAI's `verify_metadata` validates metadata.json."""


def export_graph(network: nn.Module, size: int, channels: int, path: Path) -> None:
    """Write the network's ONNX graph, from images to (logits, features, feature_map), for any batch size."""
    network.eval()
    example = torch.zeros(2, channels, size, size)
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=list(OUTPUTS),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    # The exporter records the source location of each node: paths of this machine, which must not be in an artifact.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_bundle(model: Path, network: nn.Module, about: dict[str, Any]) -> None:
    """Fill a bundle directory: weights, graph, head, metadata and configuration."""
    size, channels = about["preprocess"]["size"], about["preprocess"]["channels"]
    for folder in ("configs", "models", "docs"):
        (model / folder).mkdir()
    torch.save(network.state_dict(), model / "models" / "model.pt")
    export_graph(network, size, channels, model / PRECISIONS["float32"])
    write_head(network, model / "models" / "head")
    about = {**about, "precisions": {"float32": {"bytes": (model / PRECISIONS["float32"]).stat().st_size}}}
    write_metadata(model, about)
    (model / "docs" / "README.md").write_text(_card(about), encoding="utf-8")
    inference = {
        "bundle_root": ".",
        "device": "cpu",
        # MONAI expects a network that returns only logits; the weights are the same.
        "network_def": {"_target_": "components.train.models.build", **_recipe(network), "logits_only": True},
        "network": "$@network_def.to(@device)",
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "inferer": {"_target_": "SimpleInferer"},
    }
    (model / "configs" / "inference.json").write_text(json.dumps(inference, indent=1, sort_keys=True) + "\n")


def _recipe(network: nn.Module) -> dict[str, Any]:
    recipe: dict[str, Any] = network.recipe  # type: ignore[assignment]  # every network has one (models.py)
    return recipe


def _card(about: dict[str, Any]) -> str:
    images, scores = about["images"], about["history"][about["best_epoch"] - 1]
    return f"""# {" or ".join(about["classes"])}

A {about["architecture"]} network for images of {about["preprocess"]["size"]}×{about["preprocess"]["size"]} pixels,
trained by medloop. It is not a medical device; a qualified person must review its predictions.

- Trained on {images["train"]} images. Threshold, temperature and the best epoch ({about["best_epoch"]}) were chosen on
  {images["val"]} images of other patients (validation), where the AUC is {scores["val_auc"]:.3f}. The report of the run
  contains its performance on the locked test set.
- Data set {about["fingerprints"]["dataset"][:16]}, split {about["fingerprints"]["split"][:16]}.
- Input, outputs and parameters: `configs/metadata.json`.
"""


def write_head(network: nn.Module, folder: Path) -> None:
    """Write the head's weights as float arrays, for class activation maps without torch."""
    folder.mkdir()
    linear = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)]  # type: ignore[union-attr]  # every network has a head (models.py)
    for number, layer in enumerate(linear):
        # Separate files, because the bytes of an archive differ between Python versions.
        np.save(folder / f"weight_{number}.npy", layer.weight.detach().numpy())
        np.save(folder / f"bias_{number}.npy", layer.bias.detach().numpy())


def write_metadata(model: Path, about: dict[str, Any]) -> None:
    """Write metadata.json in the format of MONAI bundles, with medloop's own record under "medloop"."""
    size, channels, classes = about["preprocess"]["size"], about["preprocess"]["channels"], about["classes"]
    common = {"dtype": "float32", "value_range": [], "is_patch_data": False}
    document = {
        "schema": MONAI_SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "made by medloop"},
        "monai_version": _version("monai"),
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {name: _version(name) for name in ("torchvision", "einops")},
        "task": f"Classification into {', '.join(classes)}",
        "description": "A classifier trained, evaluated and released by medloop. Not a medical device by itself.",
        "authors": "made by a medloop run",
        "copyright": "of those who own the data and the run",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "n/a",
                    "num_channels": channels,
                    "spatial_shape": [size, size],
                    **common,
                    "channel_def": {str(channel): "image" for channel in range(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "logits",
                    "format": "classification",
                    "num_channels": len(classes),
                    "spatial_shape": [1, 1],
                    **common,
                    "channel_def": {str(label): name for label, name in enumerate(classes)},
                }
            },
        },
        "medloop": {"kind": "bundle", "schema": contracts.SCHEMAS["bundle"], **about},
    }
    _write(model, document)


def _write(model: Path, document: dict[str, Any]) -> None:
    (model / "configs" / "metadata.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def _version(package: str) -> str:
    return importlib.metadata.version(package).split("+")[0]


def check_parity(model: In, network: nn.Module, views: NDArray[np.uint8]) -> float:
    """Return the largest difference between logits of graph and network; raise an error if it is not rounding.

    The difference is recorded in the metadata, rounded up to one digit, because further digits differ by machine.
    """
    exported = Model(model)
    network.eval()
    difference = share = 0.0
    for batch in (views[start : start + 8] for start in range(0, len(views), 8)):  # small, since images can be large
        with torch.no_grad():
            inputs = torch.from_numpy(normalise(batch, exported.preprocess))
            logits, *others = (part.numpy() for part in network(inputs))
        answer = exported(batch)
        difference = max(difference, float(np.abs(answer.logits - logits).max()))
        for ours, theirs in zip(others, (answer.features, exported.feature_maps(batch)), strict=True):
            share = max(share, float(np.abs(ours - theirs).max() / np.abs(ours).max().clip(1e-6)))
    if not (difference <= TOLERANCE and share <= TOLERANCE):
        raise UnavailableError(
            f"The exported graph differs from the network by {difference:.2g} in a logit, and by {share:.2g} of the "
            f"largest feature; at most {TOLERANCE:g} is allowed for rounding. The export is wrong: choose another "
            "architecture, and report this as a bug."
        )
    rounded = _round_up(difference)
    document = read_json((model / "configs" / "metadata.json").read_bytes(), "configs/metadata.json")
    document["medloop"]["parity"] = {"images": len(views), "largest_difference_of_a_logit": rounded}
    _write(model, document)
    return rounded


def _round_up(value: float) -> float:
    """Return the smallest number with one significant digit that is at least `value`."""
    if value <= 0:
        return 0.0
    exponent = math.floor(math.log10(value))
    up = float(f"{math.ceil(value / 10**exponent)}e{exponent}")
    return up if up >= value else float(f"{math.ceil(value / 10**exponent) + 1}e{exponent}")
