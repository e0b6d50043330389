"""Read the axial slices of NIfTI volumes.

Slices have the radiological orientation: anterior on top, the patient's right on the left. They are numbered from the
feet to the head. The window sets brightness; without one, the darkest and brightest 0.5 % of the volume are black and
white.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from components.shared.imaging.dicom_frames import UnusableFileError, wrap_errors
from components.shared.imaging.image_files import Decoding, Master, masters, spread_evenly
from components.shared.imaging.png_jpeg import MAX_PIXELS, silence_warnings
from components.shared.imaging.views import Pixels

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

MAX_BYTES = 2**30
"""Maximum size of a volume's voxels in bytes."""
SAMPLE = 2_000_000
"""Approximate number of voxels from which the volume's range is estimated."""
MARGIN = 0.5
"""Percentage of voxels clipped at each end if there is no window."""
GZIP = b"\x1f\x8b"
GZIP_WINDOW = 31
"""zlib's `wbits` for gzip; Python's gzip module is very slow for long headers."""
CHUNK = 2**20
"""Number of bytes decompressed at a time."""
HEADER_BYTES = 540
"""Size in bytes of the larger of the two header formats."""


def is_volume(data: bytes) -> bool:
    """Whether a file's content is NIfTI, gzipped or not."""
    head = _head(data)
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read_volume(data: bytes, decoding: Decoding) -> Iterator[Master]:
    """Return the masters of the axial slices of a file's first volume."""
    silence_warnings()
    with wrap_errors("the NIfTI header cannot be read"):
        header = _header(data)
        shape = [int(length) for length in header.get_data_shape()]
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    volumes = int(np.prod([max(0, length) for length in shape[3:]], dtype=object))
    shape = [*shape, 1, 1, 1][:3]
    voxels = int(np.prod(shape, dtype=object))
    needed = voxels * dtype.itemsize
    if min(shape) < 1 or volumes < 1 or dtype.kind not in "iuf":
        raise UnusableFileError("the NIfTI file has no volume of real numbers; other types are not supported")
    if needed > MAX_BYTES or max(a * b for a, b in zip(shape, [*shape[1:], shape[0]], strict=True)) > MAX_PIXELS:
        raise UnusableFileError(
            f"the NIfTI volume has {'×'.join(str(length) for length in shape)} voxels of {dtype.itemsize} bytes; the "
            f"maximum is {MAX_BYTES:,} bytes, and {MAX_PIXELS:,} pixels per slice"
        )
    if not 0 <= offset < MAX_BYTES:
        raise UnusableFileError("the voxel offset in the NIfTI header is outside the file")
    content = _unpacked(data, offset + needed) if data.startswith(GZIP) else data
    if len(content) < offset + needed:
        raise UnusableFileError(f"the NIfTI file is truncated: its first volume needs {needed:,} bytes")
    with wrap_errors("the NIfTI volume cannot be read"):
        raw = np.frombuffer(content, dtype, voxels, offset).reshape(shape, order="F")
        volume, scale = _upright(raw, header), _scale(header)
        low, high = _range(volume, scale, decoding)
    numbers = spread_evenly(volume.shape[2], decoding.frames)
    notes = [("several volumes", f"it is the first of {volumes:,} in its file")] if volumes > 1 else []
    slices = ((number, _slice(volume[:, :, number], scale, low, high)) for number in numbers)
    return masters(slices, volume.shape[2], decoding, notes=notes)


def _header(data: bytes) -> Nifti1Header:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    head = _head(data)
    if b"ni" in (head[344:346], head[4:6]):
        raise UnusableFileError("the NIfTI header is in a separate file: save header and voxels as one .nii file")
    second = head[4:8] == b"n+2\0"
    return (Nifti2Header if second else Nifti1Header).from_fileobj(io.BytesIO(head), check=False)


def _head(data: bytes) -> bytes:
    return bytes(_unpacked(data, HEADER_BYTES)) if data.startswith(GZIP) else data[:HEADER_BYTES]


def _unpacked(data: bytes, size: int) -> memoryview:
    """Return at most the first `size` bytes of gzipped content."""
    buffer = np.zeros(size, np.uint8).data  # allocates memory only as it is filled
    filled = position = 0
    inflate, pending = zlib.decompressobj(GZIP_WINDOW), b""
    with suppress(zlib.error):
        while filled < size:
            if not pending:
                pending, position = data[position : position + CHUNK], position + CHUNK
            chunk = inflate.decompress(pending, min(16 * CHUNK, size - filled))
            if not (pending or chunk):
                break
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
            pending = inflate.unconsumed_tail
            if inflate.eof:  # another gzip member may follow
                pending, inflate = inflate.unused_data, zlib.decompressobj(GZIP_WINDOW)
    return buffer[:filled]


def _upright(raw: np.ndarray[Any, Any], header: Nifti1Header) -> np.ndarray[Any, Any]:
    """Return the volume as [row, column, slice], rotated without a copy."""
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    orientation = io_orientation(header.get_best_affine())
    if np.isnan(orientation).any():  # no orientation in the header: keep the stored one
        orientation = np.array([[0, 1], [1, 1], [2, 1]])
    # NIfTI's axes are left → right, back → front, feet → head; rows must run to the back, columns to the left.
    rotated = apply_orientation(raw, ornt_transform(orientation, np.array([[0, -1], [1, -1], [2, 1]])))
    return np.asarray(rotated).transpose(1, 0, 2)


def _scale(header: Nifti1Header) -> tuple[float, float]:
    slope, intercept = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0))


def _range(volume: np.ndarray[Any, Any], scale: tuple[float, float], decoding: Decoding) -> tuple[float, float]:
    if decoding.window_width:
        return decoding.window_center - decoding.window_width / 2, decoding.window_center + decoding.window_width / 2
    step = max(1, round((volume.size / SAMPLE) ** (1 / 3)))
    sample = volume[::step, ::step, ::step].astype(np.float64) * scale[0] + scale[1]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        raise UnusableFileError("the NIfTI volume has no finite values")
    low, high = np.percentile(sample, [MARGIN, 100 - MARGIN])
    if low == high:  # little but background
        low, high = sample.min(), sample.max()
    return float(low), float(high)


def _slice(values: np.ndarray[Any, Any], scale: tuple[float, float], low: float, high: float) -> Pixels:
    scaled = (values.astype(np.float64) * scale[0] + scale[1] - low) / max(high - low, 1e-9)
    return np.asarray(np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 1) * 65535), dtype=np.uint16)
