"""From an image file to master pixels, and from those to what a model sees: the same in training and in service."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from pydicom import Dataset

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

MAX_PIXELS = 100_000_000
"""An image with more pixels than this is refused before it is decoded."""
VIEW_ALGORITHM = 1
"""Counts the changes of `view` that give other pixels; part of every view's key."""


@dataclass(frozen=True)
class Master:
    """A decoded image: gray pixels of 8 or 16 bits, and what its header says about the patient and the scan."""

    pixels: Pixels
    header: dict[str, str] = field(default_factory=dict)

    @property
    def bits(self) -> int:
        """8 or 16."""
        return self.pixels.dtype.itemsize * 8


def decode_image(data: bytes, max_side: int) -> Master:
    """The master of an image file's bytes (PNG, JPEG or DICOM), its longest side at most `max_side`."""
    if not data:
        raise ValueError("the file is empty")
    master = _decode_dicom(data) if data[128:132] == b"DICM" else _decode_picture(data)
    height, width = master.pixels.shape
    if min(height, width) < 8:
        raise ValueError(f"the image is {width}×{height} pixels, and must be at least 8×8")
    if master.pixels.min() == master.pixels.max():
        raise ValueError("the image is blank: every pixel has the same value")
    scale = max_side / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return Master(_resize(master.pixels, size), master.header)
    return master


def _decode_picture(data: bytes) -> Master:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours, and lower
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"the image has {picture.width * picture.height:,} pixels; at most {MAX_PIXELS:,}")
                picture.load()
                if picture.mode.startswith("I"):
                    return Master(np.asarray(picture).astype(np.uint16))
                gray = picture if picture.mode == "L" else picture.convert("RGB").convert("L")
                return Master(np.array(gray, dtype=np.uint8))
    except UnidentifiedImageError:
        raise ValueError("the file is not a PNG, JPEG or DICOM image") from None
    except Image.DecompressionBombError:
        raise ValueError(f"the image claims more pixels than the {MAX_PIXELS:,} allowed") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from None


_HEADER = {
    "patient_id": "PatientID",
    "sex": "PatientSex",
    "age": "PatientAge",
    "site": "InstitutionName",
    "view": "ViewPosition",
    "modality": "Modality",
}
"""The only DICOM fields that are read; everything else in a header never leaves it."""


def _decode_dicom(data: bytes) -> Master:
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns about values that are not used here
        # A damaged header breaks pydicom in many ways that all mean the same; its words may quote the header.
        try:
            dataset = dcmread(io.BytesIO(data))
            claimed = int(dataset.Rows) * int(dataset.Columns)
            frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel", 1))
            header = {name: str(dataset.get(tag) or "").strip() for name, tag in _HEADER.items()}
        except Exception as error:
            raise ValueError(f"the DICOM header cannot be read ({type(error).__name__})") from None
        if claimed > MAX_PIXELS:
            raise ValueError(f"the image has {claimed:,} pixels; at most {MAX_PIXELS:,}")
        if (frames, samples) != (1, 1):
            raise ValueError(f"the DICOM file has {frames} frames of {samples} samples; only one gray frame is read")
        try:
            return Master(_dicom_values(dataset), header)
        except Exception as error:
            raise ValueError(f"the DICOM pixels cannot be decoded ({type(error).__name__})") from None


def _dicom_values(dataset: Dataset) -> Pixels:
    """Stored values through rescale and window to 16 bits, bright where there is more attenuation."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values: Any = apply_modality_lut(dataset.pixel_array, dataset)
    if "WindowWidth" in dataset or "VOILUTSequence" in dataset:
        values = np.asarray(apply_voi_lut(values, dataset), dtype=np.float64)
        low, high = float(values.min()), float(values.max())
    else:
        values = np.asarray(values, dtype=np.float64)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        top = 2 ** int(dataset.BitsStored)
        stored = (-top // 2, top // 2 - 1) if int(dataset.get("PixelRepresentation", 0)) else (0, top - 1)
        low, high = sorted(slope * end + intercept for end in stored)
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        scaled = 1 - scaled
    return np.asarray(np.rint(scaled * 65535), dtype=np.uint16)


def view(pixels: Pixels, size: int, fit: str) -> NDArray[np.uint8]:
    """What a model of this size sees: `size`×`size` gray bytes, the picture padded to a square or stretched to it."""
    height, width = pixels.shape
    if fit == "stretch":
        return _to_bytes(_resize(pixels, (size, size)))
    scale = size / max(height, width)
    inner = _to_bytes(_resize(pixels, (max(1, round(width * scale)), max(1, round(height * scale)))))
    square = np.zeros((size, size), np.uint8)
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return square


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    # Pillow resizes 16-bit integers without smoothing; as floats they are treated like 8-bit ones.
    floats = Image.fromarray(pixels.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(np.rint(np.asarray(floats)).clip(0, 65535), dtype=np.uint16)


def _to_bytes(pixels: Pixels) -> NDArray[np.uint8]:
    return np.asarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257), dtype=np.uint8)


def normalise(views: NDArray[np.uint8], preprocess: dict[str, Any]) -> NDArray[np.float32]:
    """The float batch [N, channels, H, W] that a model's graph takes, from uint8 views [N, H, W]."""
    scaled = (views.astype(np.float32) / np.float32(255) - np.float32(preprocess["mean"])) / np.float32(
        preprocess["std"]
    )
    return np.repeat(scaled[:, None], preprocess["channels"], axis=1)
