"""Pixels of PNG and JPEG files, 8 and 16 bits, gray and colour."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from components.shared.errors import RefusedError
from components.shared.imaging import jpeg
from components.shared.imaging.views import Pixels

MAX_PIXELS = 100_000_000
"""An image with more pixels than this is refused before it is decoded."""
PATCHES = 128
"""Colours are looked for in about so many places across and down."""
COLOUR = 24
"""How far, of 255, the channels of a pixel differ when it is coloured; JPEG and a bluish film make less of gray."""
ENOUGH = 0.9
"""A JPEG may be decoded at a half of its size or less where that leaves so much of the longest side allowed."""
FEW = 0.01
"""The share of coloured pixels up to which a picture counts as gray: a marker, a ruler."""
MAX_CHUNKS = 100_000
"""A PNG file with more chunks is refused before it is decoded."""
MAX_SCANS = 64
"""A JPEG file with more scans is refused before it is decoded: progressive ones have about ten, each of all pixels."""
ROWS_AT_ONCE = 256
"""Rows of a 16-bit picture that are converted at a time, since what stands between takes several times their memory."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation."""
_TURNED: dict[Image.Transpose, Callable[[Pixels], Any]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: np.fliplr,
    Image.Transpose.ROTATE_180: lambda pixels: np.rot90(pixels, 2),
    Image.Transpose.FLIP_TOP_BOTTOM: np.flipud,
    Image.Transpose.TRANSPOSE: np.transpose,
    Image.Transpose.ROTATE_270: lambda pixels: np.rot90(pixels, 3),
    Image.Transpose.TRANSVERSE: lambda pixels: np.rot90(pixels, 2).T,
    Image.Transpose.ROTATE_90: np.rot90,
}
"""The same for 16 bits."""

Notes = list[tuple[str, str]]


def decode(data: bytes, max_side: int, rgb: bool) -> tuple[Pixels, tuple[int, int], Notes]:
    """Pixels of a PNG or JPEG file, upright, with its own (width, height) and what there is to note.

    They are gray, or of three channels where `rgb` is set and the file has any colour. A JPEG about twice as
    large as `max_side` or larger is decoded at a half, a quarter or an eighth of its size, which is quicker.
    """
    quiet()
    refuse_parts(data)
    if found := _at_once(data, max_side, rgb):
        return found
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            size = (picture.width, picture.height)
            if size[0] * size[1] > MAX_PIXELS:
                raise _TooLargeError(f"the image has {size[0] * size[1]:,} pixels; at most {MAX_PIXELS:,}")
            turn = _turn(picture)
            if picture.mode.startswith("I"):
                pixels = _full_range(np.asarray(picture))
                return (pixels if turn is None else _turned(pixels, turn)), size, []
            if isinstance(picture, JpegImageFile):
                part = _part(size, max_side)
                picture.draft(picture.mode, (max(1, size[0] // part), max(1, size[1] // part)))
            plain, notes = _plain(picture, rgb)
            return np.asarray(plain if turn is None else plain.transpose(turn)), size, notes
    except _TooLargeError as error:
        raise RefusedError(str(error)) from None
    except UnidentifiedImageError:
        raise RefusedError("the file is not a PNG, JPEG or DICOM image") from None
    except Image.DecompressionBombError:
        raise RefusedError(f"the image claims more pixels than the {MAX_PIXELS:,} allowed") from None
    except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError) as error:
        raise RefusedError(f"the image cannot be decoded ({_why(error)})") from None


def refuse_parts(data: bytes) -> None:
    """Raise a ValueError if a PNG or JPEG file has too many parts, each of which takes its time."""
    if data.startswith(b"\xff\xd8"):
        scans = data.count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise RefusedError(
                f"the JPEG has {scans:,} scans; at most {MAX_SCANS} are read: save it again as an ordinary JPEG or PNG"
            )
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        chunks, place = 0, 8
        while place < len(data):
            chunks += 1
            if chunks > MAX_CHUNKS:
                raise RefusedError(
                    f"the PNG has more than {MAX_CHUNKS:,} chunks, and no more are read: save it again as a PNG"
                )
            place += 12 + int.from_bytes(data[place : place + 4], "big")


class _TooLargeError(Exception):
    """The image has more pixels than are decoded."""


def _why(error: Exception) -> str:
    """What Pillow said, where it said it of the file's structure and not of its content."""
    if isinstance(error, OSError) and "0x" not in str(error):
        return str(error)
    return "a part of it unpacks to too much" if "too large" in str(error) else type(error).__name__


def _at_once(data: bytes, max_side: int, rgb: bool) -> tuple[Pixels, tuple[int, int], Notes] | None:
    """What Pillow would give of a plain JPEG, without it; None where there is more to do or to say."""
    size = jpeg.open_plain(data)
    if size is None or size[0] * size[1] > MAX_PIXELS:
        return None
    pixels = jpeg.decode_plain(data, _part(size, max_side))
    if pixels is None or pixels.ndim == 2:
        return None if pixels is None else (pixels, size, [])
    if rgb:
        return np.ascontiguousarray(pixels[..., :3]), size, []
    picture = Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
    return np.asarray(picture.convert("L"), np.uint8), size, colour_note(pixels)


def _part(size: tuple[int, int], max_side: int) -> int:
    """At which part of its size a JPEG is decoded: a half or less, where that leaves about `max_side` or more."""
    scale = ENOUGH * max_side / max(size)
    return next((part for part in (8, 4, 2) if scale <= 1 / part), 1)


def _plain(picture: Image.Image, rgb: bool) -> tuple[Image.Image, Notes]:
    """The picture as L, or as RGB where that is asked for and it has colours."""
    notes: Notes = []
    if picture.mode == "L" and "transparency" not in picture.info:
        picture.load()
        return picture, notes
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        clear = np.asarray(layered.getchannel("A")) < 255
        if clear.any():
            notes.append(("transparent", f"{clear.mean():.0%} of its pixels are transparent; they are put on black"))
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), layered).convert("RGB")
    elif picture.mode not in ("1", "L", "LA", "RGB"):
        picture = picture.convert("RGB")
    else:
        picture.load()
    if picture.mode in ("1", "LA"):
        picture = picture.convert("L")
    if picture.mode == "L" or rgb:
        return picture, notes
    notes += colour_note(np.asarray(picture))
    return picture.convert("L"), notes


def colour_note(pixels: Pixels) -> Notes:
    """What there is to note of coloured pixels of which only the gray is taken."""
    share = coloured(pixels)
    return [("colour", f"{share:.0%} of its pixels are coloured; only their brightness is kept")] if share else []


def coloured(pixels: Pixels) -> float:
    """The share of coloured pixels in (H, W, 3 or more) of 8 bits; 0 for gray that is stored as colour."""
    step = max(1, max(pixels.shape[:2]) // PATCHES)
    red, green, blue = np.moveaxis(pixels[step // 2 :: step, step // 2 :: step, :3].astype(np.int16), 2, 0)
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    share = float((spread > COLOUR).mean())
    return share if share > FEW else 0.0


def _turn(picture: Image.Image) -> Image.Transpose | None:
    if "exif" not in picture.info:
        return None
    try:
        return _TURNS.get(picture.getexif().get(0x0112, 1))
    except Exception:  # Damaged EXIF breaks its reader in many ways, and says nothing of the pixels.
        return None


def _turned(pixels: Pixels, turn: Image.Transpose) -> Pixels:
    """`Image.transpose` for 16 bits."""
    return np.ascontiguousarray(_TURNED[turn](pixels))


def _full_range(values: np.ndarray[Any, Any]) -> Pixels:
    """Values of a 16-bit picture over all 16 bits: many hold 10, 12 or 14 bits, and no file says how many."""
    bits = next((bits for bits in (10, 12, 14) if values.max() < 2**bits), 16)
    full = np.empty(values.shape, np.uint16)
    for top in range(0, len(values), ROWS_AT_ONCE):
        rows = values[top : top + ROWS_AT_ONCE].clip(0, 65535)
        full[top : top + ROWS_AT_ONCE] = rows if bits == 16 else np.rint(rows * (65535 / (2**bits - 1)))
    return full


_QUIET = r"(PIL|pydicom|nibabel|openjpeg)\."
_RULE = ("ignore", None, Warning, re.compile(_QUIET), 0)


def quiet() -> None:
    """Silence the readers' warnings in this process: they are of no concern here, and may quote a header."""
    if _RULE not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET)
