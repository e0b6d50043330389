"""Inference with an exported model, for evaluation and for the service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from components.shared.contracts import check
from components.shared.errors import RefusedError
from components.shared.imaging.views import normalise
from components.shared.parsing.json_documents import read_json
from components.shared.runtime.threads import count_threads

PRECISIONS = {"float32": "models/model.onnx", "int8": "models/model.int8.onnx"}
"""The graph of each precision in a bundle."""

_WEIGHTS_BESIDE = "session.model_external_initializers_file_folder_path"
"""Folder for weights in separate files; disabled, since they would not be verified."""

OUTPUTS = ("logits", "features", "feature_map")
"""The export contract: class scores before softmax, pooled features, and the last feature map."""


def read_bundle(bundle: Path) -> dict[str, Any]:
    """Return medloop's record of a bundle: classes, preprocess, temperature, threshold, precisions, fingerprints."""
    document = read_json((bundle / "configs" / "metadata.json").read_bytes(), "configs/metadata.json")
    return check("bundle", document.get("medloop") if isinstance(document, dict) else document, "configs/metadata.json")


@dataclass(frozen=True)
class Output:
    """The output of a model for a batch."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


class Model:
    """A bundle's graph in one precision, or another graph with the same inputs and outputs (`graph`, as bytes)."""

    def __init__(self, bundle: Path, precision: str = "float32", threads: int = 0, graph: bytes | None = None) -> None:
        self.about: dict[str, Any] = read_bundle(bundle)
        self.classes: list[str] = self.about["classes"]
        self.preprocess: dict[str, Any] = self.about["preprocess"]
        self.precision = precision
        if precision not in self.about["precisions"]:
            raise RefusedError(
                f"This model has no {precision} graph; it has {', '.join(self.about['precisions'])}. Choose one."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or count_threads()
        options.log_severity_level = 3
        options.add_session_config_entry(_WEIGHTS_BESIDE, "/dev/null")
        content = graph or (bundle / PRECISIONS[precision]).read_bytes()
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base class
            external = "External data" in str(error)
            why = "its weights are in another file; export it without external data" if external else str(error)
            raise RefusedError(f"The model's graph {PRECISIONS[precision]} cannot be loaded: {why}") from error

    def __call__(self, views: NDArray[np.uint8]) -> Output:
        """Return logits and pooled features of uint8 views [N, H, W]."""
        logits, features = self._session.run(["logits", "features"], {"image": normalise(views, self.preprocess)})
        return Output(np.asarray(logits), np.asarray(features))

    def feature_maps(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the last feature map [N, C, h, w], for Grad-CAM."""
        return np.asarray(self._session.run(["feature_map"], {"image": normalise(views, self.preprocess)})[0])

    def in_batches(self, views: Any, rows: NDArray[np.int64], size: int = 64) -> Iterator[Output]:
        """Yield the outputs for many rows of a data set's views, batch by batch."""
        for start in range(0, len(rows), size):
            yield self(views[rows[start : start + size]])

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return calibrated probabilities of the logits, divided by the temperature from validation.

        For classes they sum to one (softmax); for findings they are independent (sigmoid).
        """
        scaled = logits.astype(np.float64) / self.about["temperature"]
        if self.about["task"] == "multilabel":
            return np.asarray(1 / (1 + np.exp(-scaled)))
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def decide(self, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the class of each image: with two classes by the threshold from validation, else the most likely.

        For findings, return whether each is present, by its threshold.
        """
        threshold = self.about["threshold"]
        if self.about["task"] == "multilabel":
            return np.asarray(probabilities >= np.asarray(threshold), dtype=np.int64)
        if threshold is not None:
            return np.asarray(probabilities[:, 1] >= threshold, dtype=np.int64)
        return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
