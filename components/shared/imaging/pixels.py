"""From an image file to master pixels: the same in training and in service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
from PIL import Image

from components.shared.contracts import Between, OneOf
from components.shared.errors import RefusedError
from components.shared.imaging import dicom, pictures
from components.shared.imaging.pictures import MAX_PIXELS, colour_note, coloured
from components.shared.imaging.views import Pixels, resize, to_bytes, view

__all__ = ["MAX_PIXELS", "Decoding", "Master", "Pixels", "decode_image", "decode_images", "masters", "view"]

SMALL = 64
"""An image with a side below this is usable, but worth a warning."""
FLAT = 16
"""An image whose values span less than 1 part of so many of their range shows little, and is worth a warning."""
BLANK = "the image is blank: every pixel has the same value"


@dataclass(frozen=True)
class Decoding:
    """How files become masters: decided once for a data set, recorded there and in every model trained on it."""

    max_side: Annotated[int, Between(64, 8192)] = 1024
    """the longest side of a master, in pixels; larger images are reduced to it"""
    colour: Annotated[str, OneOf(("gray", "rgb"))] = "gray"
    """gray masters, or colour ones"""
    window_center: Annotated[float, Between(-1e6, 1e6)] = 0.0
    """middle of the values that are shown, after rescaling; with width 0 the file's own window counts"""
    window_width: Annotated[float, Between(0, 1e6)] = 0.0
    """width of the values that are shown; 0 takes the file's own window"""
    frames: Annotated[int, Between(0, 100000)] = 0
    """of a file with several frames or slices, so many, evenly spaced; 0 takes all"""


@dataclass(frozen=True)
class Master:
    """A decoded image, and what its header says about the patient and the scan."""

    pixels: Pixels
    """(H, W) of 8 or 16 bits, or (H, W, 3) of 8."""
    header: dict[str, str] = field(default_factory=dict)
    frame: int = -1
    """Which frame of its file it is; -1 where the file has only one."""
    notes: tuple[tuple[str, str], ...] = ()
    """What a person should know of it: (reason, detail)."""

    @property
    def bits(self) -> int:
        """8 or 16."""
        return self.pixels.dtype.itemsize * 8


def decode_image(data: bytes, how: Decoding) -> Master:
    """The master of a file (PNG, JPEG or DICOM) that holds one image."""
    if dicom.is_dicom(data):
        scan = dicom.open_scan(data)
        if scan.frames > 1:
            raise RefusedError(
                f"the DICOM file has {scan.frames:,} frames, and one image is asked for: send each frame as a file of "
                "its own"
            )
        return next(_of_scan(scan, how))
    return _of_picture(data, how)


def decode_images(data: bytes, how: Decoding) -> Iterator[Master]:
    """The masters of all images in a file (PNG, JPEG or DICOM), one after another."""
    if dicom.is_dicom(data):
        yield from _of_scan(dicom.open_scan(data), how)
    else:
        yield _of_picture(data, how)


def _of_picture(data: bytes, how: Decoding) -> Master:
    if not data:
        raise RefusedError("the file is empty")
    pixels, size, notes = pictures.decode(data, how.max_side, how.colour == "rgb")
    if master := _master(pixels, how, {}, -1, notes, size):
        return master
    raise RefusedError(BLANK)


def _of_scan(scan: dicom.Scan, how: Decoding) -> Iterator[Master]:
    header = dict(scan.header)
    burned_in = header.pop("burned_in").upper() == "YES"
    notes = [("burned-in text", "the header says that text is burned into the pixels")] if burned_in else []
    window = (how.window_center, how.window_width)
    chosen = evenly(scan.frames, how.frames)
    yield from masters(scan.pictures(chosen, window), scan.frames, how, header, notes)


def evenly(total: int, wanted: int) -> list[int]:
    """The numbers of `wanted` frames in the middles of as many equal parts of all; every frame where 0 are wanted."""
    if not wanted or wanted >= total:
        return list(range(total))
    return [(2 * place + 1) * total // (2 * wanted) for place in range(wanted)]


def masters(
    images: Iterable[tuple[int, Pixels | None]],
    total: int,
    how: Decoding,
    header: dict[str, str] | None = None,
    notes: Iterable[tuple[str, str]] = (),
) -> Iterator[Master]:
    """The masters of a file's images, given by frame number; None is a frame that cannot be decoded.

    Of a file with several frames the blank and the unreadable ones are left out, with a note, as long as one is left.
    What holds for the file is noted once, with its first image.
    """
    waiting: Master | None = None
    told: set[str] = set()
    blank = unreadable = 0
    for frame, pixels in images:
        if pixels is None:
            unreadable += 1
            continue
        made = _master(pixels, how, header or {}, frame if total > 1 else -1, notes if waiting is None else ())
        if made is None:
            blank += 1
            continue
        if waiting:
            yield waiting
        waiting = replace(made, notes=tuple(note for note in made.notes if note[0] not in told))
        told.update(reason for reason, _ in made.notes)
    if waiting is None:
        raise RefusedError(_nothing(blank, unreadable))
    left_out = [
        (f"{what} frames", f"{count:,} of the {total:,} frames in its file {'are' if count > 1 else 'is'} {what}")
        for what, count in (("blank", blank), ("unreadable", unreadable))
        if count
    ]
    yield replace(waiting, notes=(*waiting.notes, *left_out))


def _nothing(blank: int, unreadable: int) -> str:
    if blank + unreadable > 1:
        return f"no frame can be used: of {blank + unreadable:,}, {blank:,} are blank, and the others cannot be decoded"
    return BLANK if blank else "the pixels cannot be decoded"


def _master(
    pixels: Pixels,
    how: Decoding,
    header: dict[str, str],
    frame: int,
    notes: Iterable[tuple[str, str]],
    size: tuple[int, int] = (0, 0),
) -> Master | None:
    """The master of these pixels in the size and the colours asked for, or None where they are blank.

    `size` is the picture's own (width, height), where it was reduced on the way.
    """
    width, height = size if size[0] else (pixels.shape[1], pixels.shape[0])
    if min(height, width) < 8:
        raise RefusedError(f"the image is {width}×{height} pixels, and must be at least 8×8")
    low, high, top = int(pixels.min()), int(pixels.max()), 256**pixels.dtype.itemsize - 1
    if low == high:
        return None
    found = list(notes)
    if min(height, width) < SMALL:
        found.append(("small", f"it is {width}×{height} pixels; below {SMALL}×{SMALL} little can be seen"))
    if (high - low) * FLAT < top:
        found.append(("low contrast", f"its values span {(high - low) / top:.1%} of their range; a window may help"))
    if pixels.ndim == 3 and how.colour == "gray":
        found += colour_note(pixels)
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    scale = how.max_side / max(pixels.shape[:2])
    if scale < 1:
        pixels = resize(pixels, (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))))
    if how.colour == "rgb":
        if pixels.ndim == 2:
            pixels = np.repeat(to_bytes(pixels)[..., None], 3, axis=2)
        if not coloured(pixels):
            found.append(("gray", "it has no colours; its three channels are alike"))
    return Master(pixels, header, frame, tuple(found))
