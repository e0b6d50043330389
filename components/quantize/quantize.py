"""The quantize stage: adds an INT8 graph to a model bundle, calibrated on training images."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from components.shared.contracts import Between, In, Out
from components.shared.datasets.dataset import Data
from components.shared.imaging.views import normalise, view_parameters
from components.shared.inference import PRECISIONS, Model, read_bundle
from components.shared.parsing.json_documents import read_json
from components.shared.runtime.events import progress

if TYPE_CHECKING:
    from components.shared.runtime.work import Work


def quantize(
    model: In,
    dataset: In,
    splits: In,
    quantized: Out,
    work: Work,
    *,
    calibration_images: Annotated[int, Between(8, 4096)] = 128,
    seed: Annotated[int, Between(0, 2147483647)] = 7,
) -> dict[str, Any]:
    """Add an INT8 graph to a model's bundle: weights per channel, activations calibrated on training images.

    calibration_images: training images for the calibration of activation ranges
    seed: random seed of the choice of calibration images
    """
    shutil.copytree(model, quantized, dirs_exist_ok=True)
    data = Data.open(dataset, work.store)
    float_model = Model(model)
    rows = data.rows(splits, "train")
    chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:calibration_images])
    images = normalise(data.views(*view_parameters(float_model.preprocess))[chosen], float_model.preprocess)
    progress("quantize", 0, 1, f"calibrating on {len(images)} images")
    _to_int8(quantized / PRECISIONS["float32"], quantized / PRECISIONS["int8"], images)
    float_bytes, bytes_ = ((quantized / PRECISIONS[name]).stat().st_size for name in ("float32", "int8"))
    _record(quantized / "configs" / "metadata.json", bytes_, len(images))
    progress("quantize", 1, 1, f"{float_bytes / 1e6:.2f} MB reduced to {bytes_ / 1e6:.2f} MB")
    return {"ratio": round(bytes_ / float_bytes, 4)}


def _to_int8(source: Path, target: Path, images: NDArray[np.float32]) -> None:
    with _quiet(), TemporaryDirectory(prefix="medloop-quantize-") as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(source.resolve()), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Batches(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with signed weights: fast in ONNX Runtime and in OpenVINO
            weight_type=QuantType.QInt8,
            # 7-bit weights: with 8 bits, sums overflow on CPUs without VNNI, and results differ between machines.
            reduce_range=True,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer's recommendations on the root logger, which are already followed."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Passes calibration images to the quantizer in small batches."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._parts: Iterator[NDArray[np.float32]] = iter(np.array_split(images, max(1, len(images) // 16)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, or None after the last."""
        part = next(self._parts, None)
        return None if part is None else {"image": part}


def _record(path: Path, size: int, images: int) -> None:
    about = read_bundle(path.parent.parent)
    document = read_json(path.read_bytes(), path.name)
    document["medloop"]["precisions"] = {**about["precisions"], "int8": {"bytes": size, "calibration_images": images}}
    path.unlink()  # a link to the read-only original
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
