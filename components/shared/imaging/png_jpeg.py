"""Decode PNG and JPEG files of 8 and 16 bits, gray and colour."""

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
"""Maximum number of pixels of an image, checked before decoding."""
COLOUR_SAMPLES = 128
"""Approximate number of rows and of columns sampled when checking for colour."""
MIN_COLOUR_DIFFERENCE = 24
"""Minimum difference, of 255, between the channels of a coloured pixel; JPEG and bluish film cause less."""
MIN_REDUCED_SHARE = 0.9
"""Minimum share of the maximum side that must remain when a JPEG is decoded at reduced size."""
MAX_GRAY_SHARE = 0.01
"""Share of coloured pixels up to which an image counts as gray: it may have a coloured marker or ruler."""
MAX_CHUNKS = 100_000
"""Maximum number of chunks in a PNG file, checked before decoding."""
MAX_SCANS = 64
"""Maximum number of scans in a JPEG file, checked before decoding; progressive files have about ten."""
ROWS_AT_ONCE = 256
"""Number of rows of a 16-bit image converted at a time; intermediate values need several times their memory."""

_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image upright, by EXIF orientation."""
_PIXEL_ROTATIONS: dict[Image.Transpose, Callable[[Pixels], Any]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: np.fliplr,
    Image.Transpose.ROTATE_180: lambda pixels: np.rot90(pixels, 2),
    Image.Transpose.FLIP_TOP_BOTTOM: np.flipud,
    Image.Transpose.TRANSPOSE: np.transpose,
    Image.Transpose.ROTATE_270: lambda pixels: np.rot90(pixels, 3),
    Image.Transpose.TRANSVERSE: lambda pixels: np.rot90(pixels, 2).T,
    Image.Transpose.ROTATE_90: np.rot90,
}
"""The same transpositions for arrays of 16 bits."""

Notes = list[tuple[str, str]]


def decode(data: bytes, max_side: int, rgb: bool) -> tuple[Pixels, tuple[int, int], Notes]:
    """Return the upright pixels of a PNG or JPEG file, its (width, height), and notes.

    Pixels are gray, or have three channels if `rgb` is set and the file has colour. A JPEG about twice as large as
    `max_side` or larger is decoded at a half, a quarter or an eighth of its size, which is faster.
    """
    silence_warnings()
    refuse_too_many_parts(data)
    if decoded := _decode_fast(data, max_side, rgb):
        return decoded
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            size = (image.width, image.height)
            if size[0] * size[1] > MAX_PIXELS:
                raise _TooLargeError(f"the image has {size[0] * size[1]:,} pixels; the maximum is {MAX_PIXELS:,}")
            rotation = _rotation(image)
            if image.mode.startswith("I"):
                pixels = _full_range(np.asarray(image))
                return (
                    (pixels if rotation is None else np.ascontiguousarray(_PIXEL_ROTATIONS[rotation](pixels))),
                    size,
                    [],
                )
            if isinstance(image, JpegImageFile):
                factor = _reduction(size, max_side)
                image.draft(image.mode, (max(1, size[0] // factor), max(1, size[1] // factor)))
            converted, notes = _to_gray_or_rgb(image, rgb)
            return np.asarray(converted if rotation is None else converted.transpose(rotation)), size, notes
    except _TooLargeError as error:
        raise RefusedError(str(error)) from None
    except UnidentifiedImageError:
        raise RefusedError("the file is not a PNG, JPEG or DICOM image") from None
    except Image.DecompressionBombError:
        raise RefusedError(f"the image has more than the maximum of {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError) as error:
        raise RefusedError(f"the image cannot be decoded ({_reason(error)})") from None


def refuse_too_many_parts(data: bytes) -> None:
    """Raise a ValueError if a file has too many chunks or scans."""
    if data.startswith(b"\xff\xd8"):
        scans = data.count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise RefusedError(
                f"the JPEG has {scans:,} scans; the maximum is {MAX_SCANS}: save it again as an ordinary JPEG or PNG"
            )
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        chunks, offset = 0, 8
        while offset < len(data):
            chunks += 1
            if chunks > MAX_CHUNKS:
                raise RefusedError(
                    f"the PNG has more than the maximum of {MAX_CHUNKS:,} chunks: save it again as a PNG"
                )
            offset += 12 + int.from_bytes(data[offset : offset + 4], "big")


class _TooLargeError(Exception):
    """The image has too many pixels."""


def _reason(error: Exception) -> str:
    """Return Pillow's message if it is about the file's structure and not its content."""
    if isinstance(error, OSError) and "0x" not in str(error):
        return str(error)
    return "a chunk is too large when decompressed" if "too large" in str(error) else type(error).__name__


def _decode_fast(data: bytes, max_side: int, rgb: bool) -> tuple[Pixels, tuple[int, int], Notes] | None:
    """Decode an ordinary JPEG without Pillow; return None for other files."""
    size = jpeg.read_size(data)
    if size is None or size[0] * size[1] > MAX_PIXELS:
        return None
    pixels = jpeg.decode_jpeg(data, _reduction(size, max_side))
    if pixels is None or pixels.ndim == 2:
        return None if pixels is None else (pixels, size, [])
    if rgb:
        return np.ascontiguousarray(pixels[..., :3]), size, []
    image = Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
    return np.asarray(image.convert("L"), np.uint8), size, colour_note(pixels)


def _reduction(size: tuple[int, int], max_side: int) -> int:
    """Return the factor by which to reduce a JPEG to about `max_side` or more."""
    scale = MIN_REDUCED_SHARE * max_side / max(size)
    return next((factor for factor in (8, 4, 2) if scale <= 1 / factor), 1)


def _to_gray_or_rgb(image: Image.Image, rgb: bool) -> tuple[Image.Image, Notes]:
    """Convert an image to mode L, or to RGB if `rgb` is set and it has colour."""
    notes: Notes = []
    if image.mode == "L" and "transparency" not in image.info:
        image.load()
        return image, notes
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        transparent = np.asarray(rgba.getchannel("A")) < 255
        if transparent.any():
            notes.append(("transparent", f"{transparent.mean():.0%} of its pixels are transparent and shown on black"))
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), rgba).convert("RGB")
    elif image.mode not in ("1", "L", "LA", "RGB"):
        image = image.convert("RGB")
    else:
        image.load()
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    if image.mode == "L" or rgb:
        return image, notes
    notes += colour_note(np.asarray(image))
    return image.convert("L"), notes


def colour_note(pixels: Pixels) -> Notes:
    """Return a note if an image that is converted to gray has coloured pixels."""
    share = coloured_share(pixels)
    return [("colour", f"{share:.0%} of its pixels are coloured; only their brightness is kept")] if share else []


def coloured_share(pixels: Pixels) -> float:
    """Return the share of coloured pixels; 0 for gray stored as colour."""
    step = max(1, max(pixels.shape[:2]) // COLOUR_SAMPLES)
    red, green, blue = np.moveaxis(pixels[step // 2 :: step, step // 2 :: step, :3].astype(np.int16), 2, 0)
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    share = float((spread > MIN_COLOUR_DIFFERENCE).mean())
    return share if share > MAX_GRAY_SHARE else 0.0


def _rotation(image: Image.Image) -> Image.Transpose | None:
    if "exif" not in image.info:
        return None
    try:
        return _ROTATIONS.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF raises many kinds of exceptions, and the pixels may still be valid
        return None


def _full_range(values: np.ndarray[Any, Any]) -> Pixels:
    """Stretch 10, 12 or 14 bits to 16: files do not declare how many they use."""
    bits = next((bits for bits in (10, 12, 14) if values.max() < 2**bits), 16)
    full = np.empty(values.shape, np.uint16)
    for top in range(0, len(values), ROWS_AT_ONCE):
        rows = values[top : top + ROWS_AT_ONCE].clip(0, 65535)
        full[top : top + ROWS_AT_ONCE] = rows if bits == 16 else np.rint(rows * (65535 / (2**bits - 1)))
    return full


_SILENCED_MODULES = r"(PIL|pydicom|nibabel|openjpeg)\."
_FILTER = ("ignore", None, Warning, re.compile(_SILENCED_MODULES), 0)


def silence_warnings() -> None:
    """Silence the libraries' warnings in this process: they may quote a header."""
    if _FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=_SILENCED_MODULES)
