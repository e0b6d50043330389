"""Axial slices of NIfTI volumes.

A slice stands as radiologists look at it: the patient's front on top, their right side on the left. Slices are counted
from the feet to the head. Brightness comes from the window, where there is one, and else from the volume: its darkest
and brightest half per cent are black and white.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from components.shared.imaging.dicom import Unusable, careful
from components.shared.imaging.pictures import quiet
from components.shared.imaging.pixels import MAX_PIXELS, Decoding, Master, evenly, masters
from components.shared.imaging.views import Pixels

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

MAX_BYTES = 2**30
"""The voxels of a volume may take so many bytes."""
SAMPLE = 2_000_000
"""The volume's range is found on about so many voxels."""
MARGIN = 0.5
"""The per cent of voxels, at each end, that are cut off where there is no window."""
GZIP = b"\x1f\x8b"
WITH_GZIP = 31
"""What zlib is told so that it reads gzip's headers. Python's own reader takes very long for long ones."""
PART = 2**20
"""So many bytes are unpacked at a time."""
HEADER = 540
"""Enough bytes for both kinds of header."""


def is_volume(data: bytes) -> bool:
    """Whether a file's content is NIfTI, gzipped or not."""
    head = _head(data)
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def read_volume(data: bytes, how: Decoding) -> Iterator[Master]:
    """The masters of a volume's axial slices; of several volumes in a file, those of the first."""
    quiet()
    with careful("the NIfTI header cannot be read"):
        header = _header(data)
        shape = [int(side) for side in header.get_data_shape()]
        kind, offset = header.get_data_dtype(), int(header.get_data_offset())
    volumes = int(np.prod([max(0, side) for side in shape[3:]], dtype=object))
    shape = [*shape, 1, 1, 1][:3]
    voxels = int(np.prod(shape, dtype=object))
    needs = voxels * kind.itemsize
    if min(shape) < 1 or volumes < 1 or kind.kind not in "iuf":
        raise Unusable("the NIfTI file holds no volume of real numbers, and only those are read")
    if needs > MAX_BYTES or max(a * b for a, b in zip(shape, [*shape[1:], shape[0]], strict=True)) > MAX_PIXELS:
        raise Unusable(
            f"the NIfTI volume is {'×'.join(str(side) for side in shape)} voxels of {kind.itemsize} bytes; at most "
            f"{MAX_BYTES:,} bytes, and {MAX_PIXELS:,} pixels a slice"
        )
    if not 0 <= offset < MAX_BYTES:
        raise Unusable("the NIfTI header says that the voxels lie outside of the file")
    content = _unpacked(data, offset + needs) if data.startswith(GZIP) else data
    if len(content) < offset + needs:
        raise Unusable(f"the NIfTI file is cut short: its first volume needs {needs:,} bytes")
    with careful("the NIfTI volume cannot be read"):
        raw = np.frombuffer(content, kind, voxels, offset).reshape(shape, order="F")
        volume, scale = _upright(raw, header), _scale(header)
        low, high = _range(volume, scale, how)
    chosen = evenly(volume.shape[2], how.frames)
    notes = [("several volumes", f"it is the first of {volumes:,} in its file")] if volumes > 1 else []
    slices = ((number, _slice(volume[:, :, number], scale, low, high)) for number in chosen)
    return masters(slices, volume.shape[2], how, notes=notes)


def _header(data: bytes) -> Nifti1Header:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    head = _head(data)
    if b"ni" in (head[344:346], head[4:6]):
        raise Unusable("the NIfTI header stands apart from its voxels: join them in one .nii file")
    second = head[4:8] == b"n+2\0"
    return (Nifti2Header if second else Nifti1Header).from_fileobj(io.BytesIO(head), check=False)


def _head(data: bytes) -> bytes:
    return bytes(_unpacked(data, HEADER)) if data.startswith(GZIP) else data[:HEADER]


def _unpacked(data: bytes, size: int) -> memoryview:
    """The first bytes of gzipped content, or what there is of them; never more, whatever it would unpack to."""
    buffer = np.zeros(size, np.uint8).data  # takes memory only as it is filled
    filled = place = 0
    inflate, rest = zlib.decompressobj(WITH_GZIP), b""
    with suppress(zlib.error):
        while filled < size:
            if not rest:
                rest, place = data[place : place + PART], place + PART
            part = inflate.decompress(rest, min(16 * PART, size - filled))
            if not (rest or part):
                break
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            rest = inflate.unconsumed_tail
            if inflate.eof:  # another part may follow, with a header of its own
                rest, inflate = inflate.unused_data, zlib.decompressobj(WITH_GZIP)
    return buffer[:filled]


def _upright(raw: np.ndarray[Any, Any], header: Nifti1Header) -> np.ndarray[Any, Any]:
    """The volume as [row, column, slice], turned without being copied."""
    from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

    there = io_orientation(header.get_best_affine())
    if np.isnan(there).any():  # no direction is told: as stored
        there = np.array([[0, 1], [1, 1], [2, 1]])
    # The axes wanted are left → right, back → front, feet → head; a slice's rows run to the back, its columns to the
    # patient's left.
    turned = apply_orientation(raw, ornt_transform(there, np.array([[0, -1], [1, -1], [2, 1]])))
    return np.asarray(turned).transpose(1, 0, 2)


def _scale(header: Nifti1Header) -> tuple[float, float]:
    slope, intercept = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept or 0))


def _range(volume: np.ndarray[Any, Any], scale: tuple[float, float], how: Decoding) -> tuple[float, float]:
    """Which values are black and white."""
    if how.window_width:
        return how.window_center - how.window_width / 2, how.window_center + how.window_width / 2
    step = max(1, round((volume.size / SAMPLE) ** (1 / 3)))
    some = volume[::step, ::step, ::step].astype(np.float64) * scale[0] + scale[1]
    some = some[np.isfinite(some)]
    if not some.size:
        raise Unusable("the NIfTI volume holds no finite number")
    low, high = np.percentile(some, [MARGIN, 100 - MARGIN])
    if low == high:  # little but background
        low, high = some.min(), some.max()
    return float(low), float(high)


def _slice(values: np.ndarray[Any, Any], scale: tuple[float, float], low: float, high: float) -> Pixels:
    scaled = (values.astype(np.float64) * scale[0] + scale[1] - low) / max(high - low, 1e-9)
    return np.asarray(np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 1) * 65535), dtype=np.uint16)
