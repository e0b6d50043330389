"""From an image file to master pixels: the same in training and in service."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from components.shared.views import Pixels, resize, view

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["MAX_PIXELS", "Master", "Pixels", "decode_image", "view"]

MAX_PIXELS = 100_000_000
"""An image with more pixels than this is refused before it is decoded."""


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
        return Master(resize(master.pixels, size), master.header)
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
                    return Master(_full_range(np.asarray(picture)))
                gray = picture if picture.mode == "L" else picture.convert("RGB").convert("L")
                return Master(np.array(gray, dtype=np.uint8))
    except UnidentifiedImageError:
        raise ValueError("the file is not a PNG, JPEG or DICOM image") from None
    except Image.DecompressionBombError:
        raise ValueError(f"the image claims more pixels than the {MAX_PIXELS:,} allowed") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the image cannot be decoded: {error}") from None


def _full_range(values: np.ndarray[Any, Any]) -> Pixels:
    """Values of a 16-bit picture over all 16 bits: many hold 10, 12 or 14 bits, and no file says how many."""
    bits = next((bits for bits in (10, 12, 14) if values.max() < 2**bits), 16)
    return np.asarray(np.rint(values.clip(0, 65535) * (65535 / (2**bits - 1))), dtype=np.uint16)


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
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"the DICOM header cannot be read ({type(error).__name__})") from None
        if claimed > MAX_PIXELS:
            raise ValueError(f"the image has {claimed:,} pixels; at most {MAX_PIXELS:,}")
        if (frames, samples) != (1, 1):
            raise ValueError(f"the DICOM file has {frames} frames of {samples} samples; only one gray frame is read")
        try:
            return Master(_dicom_values(dataset), header)
        except MemoryError:
            raise
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
