"""Decode image files into master pixels, in the same way for training and for the service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
from PIL import Image

from components.shared.contracts import Between, OneOf
from components.shared.errors import RefusedError
from components.shared.imaging import dicom_frames, png_jpeg
from components.shared.imaging.pixel_checks import BLANK, check_pixels
from components.shared.imaging.png_jpeg import colour_note, coloured_share
from components.shared.imaging.views import Pixels, resize, to_bytes


@dataclass(frozen=True)
class Decoding:
    """How files are decoded; recorded in the data set and in every model."""

    max_side: Annotated[int, Between(64, 8192)] = 1024
    """maximum side of a master in pixels; larger images are reduced"""
    colour: Annotated[str, OneOf(("gray", "rgb"))] = "gray"
    """colour of the masters: gray or rgb"""
    window_center: Annotated[float, Between(-1e6, 1e6)] = 0.0
    """center of the display window in rescaled values; ignored if window_width is 0"""
    window_width: Annotated[float, Between(0, 1e6)] = 0.0
    """width of the display window in rescaled values; 0 uses the file's own window"""
    frames: Annotated[int, Between(0, 100000)] = 0
    """number of evenly spaced frames or slices to use from a file with several; 0 uses all"""


@dataclass(frozen=True)
class Master:
    """A decoded image, with its header's fields about the patient and the scan."""

    pixels: Pixels
    """(H, W) of 8 or 16 bits, or (H, W, 3) of 8."""
    header: dict[str, str] = field(default_factory=dict)
    frame: int = -1
    """Number of the frame in its file; -1 if the file has only one."""
    notes: tuple[tuple[str, str], ...] = ()
    """Warnings about the image: (reason, detail)."""

    @property
    def bits(self) -> int:
        """Bits per value: 8 or 16."""
        return self.pixels.dtype.itemsize * 8


def decode_image(data: bytes, decoding: Decoding) -> Master:
    """Return the master of a PNG, JPEG or DICOM file with one image."""
    if dicom_frames.is_dicom(data):
        scan = dicom_frames.open_scan(data)
        if scan.frames > 1:
            raise RefusedError(
                f"the DICOM file has {scan.frames:,} frames; only files with 1 are accepted: send each frame as a file "
                "of its own"
            )
        return next(_decode_scan(scan, decoding))
    return _decode_picture(data, decoding)


def decode_images(data: bytes, decoding: Decoding) -> Iterator[Master]:
    """Yield the masters of all images in a PNG, JPEG or DICOM file."""
    if dicom_frames.is_dicom(data):
        yield from _decode_scan(dicom_frames.open_scan(data), decoding)
    else:
        yield _decode_picture(data, decoding)


def _decode_picture(data: bytes, decoding: Decoding) -> Master:
    if not data:
        raise RefusedError("the file is empty")
    pixels, size, notes = png_jpeg.decode(data, decoding.max_side, decoding.colour == "rgb")
    if master := _make_master(pixels, decoding, {}, -1, notes, size):
        return master
    raise RefusedError(BLANK)


def _decode_scan(scan: dicom_frames.Scan, decoding: Decoding) -> Iterator[Master]:
    header = dict(scan.header)
    burned_in = header.pop("burned_in").upper() == "YES"
    notes = [("burned-in text", "according to the header, text is burned into the pixels")] if burned_in else []
    window = (decoding.window_center, decoding.window_width)
    numbers = spread_evenly(scan.frames, decoding.frames)
    yield from masters(scan.decode_frames(numbers, window), scan.frames, decoding, header, notes)


def spread_evenly(total: int, wanted: int) -> list[int]:
    """Return the numbers of `wanted` evenly spaced frames; all frames if it is 0."""
    if not wanted or wanted >= total:
        return list(range(total))
    return [(2 * place + 1) * total // (2 * wanted) for place in range(wanted)]


def masters(
    images: Iterable[tuple[int, Pixels | None]],
    total: int,
    decoding: Decoding,
    header: dict[str, str] | None = None,
    notes: Iterable[tuple[str, str]] = (),
) -> Iterator[Master]:
    """Yield the masters of a file's frames; None is one that cannot be decoded.

    Blank and unreadable frames are left out, with a note, unless no other is left. Notes about the whole file go to
    its first image.
    """
    pending: Master | None = None
    noted: set[str] = set()
    blank = unreadable = 0
    for frame, pixels in images:
        if pixels is None:
            unreadable += 1
            continue
        master = _make_master(
            pixels, decoding, header or {}, frame if total > 1 else -1, notes if pending is None else ()
        )
        if master is None:
            blank += 1
            continue
        if pending:
            yield pending
        pending = replace(master, notes=tuple(note for note in master.notes if note[0] not in noted))
        noted.update(reason for reason, _ in master.notes)
    if pending is None and blank + unreadable > 1:
        raise RefusedError(
            f"no frame can be used: of {blank + unreadable:,}, {blank:,} are blank, and the others cannot be decoded"
        )
    if pending is None:
        raise RefusedError(BLANK if blank else "the pixels cannot be decoded")
    left_out = [
        (f"{what} frames", f"{count:,} of the {total:,} frames in its file {'are' if count > 1 else 'is'} {what}")
        for what, count in (("blank", blank), ("unreadable", unreadable))
        if count
    ]
    yield replace(pending, notes=(*pending.notes, *left_out))


def _make_master(
    pixels: Pixels,
    decoding: Decoding,
    header: dict[str, str],
    frame: int,
    notes: Iterable[tuple[str, str]],
    size: tuple[int, int] = (0, 0),
) -> Master | None:
    """Return the master of these pixels as configured, None if they are blank.

    `size` is the image's original (width, height) if it was already reduced.
    """
    width, height = size if size[0] else (pixels.shape[1], pixels.shape[0])
    warnings = check_pixels(pixels, width, height)
    if warnings is None:
        return None
    all_notes = [*notes, *warnings]
    if pixels.ndim == 3 and decoding.colour == "gray":
        all_notes += colour_note(pixels)
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    scale = decoding.max_side / max(pixels.shape[:2])
    if scale < 1:
        pixels = resize(pixels, (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))))
    if decoding.colour == "rgb":
        if pixels.ndim == 2:
            pixels = np.repeat(to_bytes(pixels)[..., None], 3, axis=2)
        if not coloured_share(pixels):
            all_notes.append(("gray", "it has no colours; its three channels are equal"))
    return Master(pixels, header, frame, tuple(all_notes))
