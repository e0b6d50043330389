"""Image files of every kind, made in memory."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests import made

CHEST_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"


def gray(seed: int = 0, label: int = 0, side: int = 32) -> NDArray[np.uint8]:
    """A small noisy image, wider than high."""
    return made.make_image(np.random.default_rng(seed), label, side)


def encoded(pixels: NDArray[Any], format: str = "PNG", **options: Any) -> bytes:
    """An image file of these pixels: gray of 8 or 16 bits, or colour."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def dicom(pixels: NDArray[Any], bits: int = 12, **fields: Any) -> bytes:
    """A DICOM file of these stored values; `fields` are further ones of its header."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CHEST_XRAY
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["medloop"])
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CHEST_XRAY, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
