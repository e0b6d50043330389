"""Image files of every kind, made in memory."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

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
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in fields.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def packed(data: bytes, syntax: str) -> bytes:
    """The same DICOM file in another transfer syntax, by GDCM's name for it, such as JPEG2000Lossless."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        before, after = f"{folder}/before", f"{folder}/after"
        Path(before).write_bytes(data)
        reader, writer, change = gdcm.ImageReader(), gdcm.ImageWriter(), gdcm.ImageChangeTransferSyntax()
        reader.SetFileName(before)
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change(), syntax
        writer.SetFileName(after)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(after).read_bytes()


def encapsulated(data: bytes, syntax: str, frames: list[bytes], **fields: Any) -> bytes:
    """The same DICOM file with these compressed frames."""
    dataset = dcmread(io.BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    for name, value in fields.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
