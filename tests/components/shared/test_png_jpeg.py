"""PNG and JPEG files of all kinds, and those that are made to harm."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from components.shared.imaging.image_files import Decoding, Master, decode_image, decode_images
from components.shared.imaging.views import blank_views, normalise, view
from tests import made
from tests.components.shared.fresh import outcome
from tests.components.shared.images import encoded, gray


def master(data: bytes, **how: Any) -> Master:
    return decode_image(data, Decoding(**how))


def saved(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def reasons(found: Master) -> list[str]:
    return [reason for reason, _ in found.notes]


def smooth(side: int = 96) -> NDArray[np.uint8]:
    """Brightness that rises to the right and downwards: which way up it stands can be seen."""
    y, x = np.mgrid[0:side, 0 : side + 32]
    return np.asarray(x + 0.5 * y, dtype=np.uint8)


def colours(side: int = 96) -> NDArray[np.uint8]:
    return np.stack([smooth(side), smooth(side)[::-1], 255 - smooth(side)], axis=2)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_colours_are_noted_when_they_are_lost_and_kept_when_they_are_asked_for(format: str) -> None:
    data = saved(Image.fromarray(colours()), format)
    found = master(data)
    assert found.pixels.ndim == 2
    assert found.notes[0][0] == "colour"
    assert found.notes[0][1].endswith("% of its pixels are coloured; only their brightness is kept")
    kept = master(data, colour="rgb")
    assert kept.notes == ()
    assert np.abs(kept.pixels.astype(int) - colours()).mean() < 4


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_gray_stored_as_colour_is_gray(format: str) -> None:
    data = saved(Image.fromarray(np.stack([smooth()] * 3, axis=2)), format)
    found = master(data)
    assert found.notes == ()
    assert np.abs(found.pixels.astype(int) - smooth()).max() <= (0 if format == "PNG" else 3)
    assert reasons(master(data, colour="rgb")) == ["gray"]


def test_a_small_coloured_marker_is_no_colour() -> None:
    pixels = np.stack([smooth()] * 3, axis=2)
    pixels[2:8, 2:8] = [255, 0, 0]
    assert master(encoded(pixels)).notes == ()


def test_gray_files_have_three_like_channels_where_colours_are_asked_for() -> None:
    for data in (encoded(smooth()), encoded(smooth().astype(np.uint16) * 257), encoded(smooth(), "JPEG", quality=100)):
        found = master(data, colour="rgb")
        assert found.pixels.shape == (96, 128, 3)
        assert np.abs(found.pixels.astype(int) - smooth()[..., None]).max() <= 1
        assert reasons(found) == ["gray"]


def test_every_mode_of_png_and_jpeg_is_read() -> None:
    base = Image.fromarray(colours())
    for mode in ("RGB", "RGBA", "P"):
        found = master(saved(base.convert(mode)), colour="rgb")
        assert np.abs(found.pixels.astype(int) - colours()).mean() < 20, mode
    for mode in ("L", "LA", "1"):
        assert reasons(master(saved(base.convert(mode)), colour="rgb")) == ["gray"], mode
    cmyk = master(saved(base.convert("CMYK"), "JPEG", quality=95), colour="rgb")
    assert np.abs(cmyk.pixels.astype(int) - colours()).mean() < 16
    as_rgb = master(saved(base, "JPEG", quality=95, keep_rgb=True), colour="rgb")
    assert np.abs(as_rgb.pixels.astype(int) - colours()).mean() < 4


def test_what_is_transparent_is_put_on_black_and_noted() -> None:
    picture = Image.fromarray(np.dstack([smooth(), np.full(smooth().shape, 255, np.uint8)]), "LA")
    assert master(saved(picture)).notes == ()
    alpha = np.full(smooth().shape, 255, np.uint8)
    alpha[:48] = 0
    picture.putalpha(Image.fromarray(alpha))
    found = master(saved(picture))
    assert found.notes == (("transparent", "50% of its pixels are transparent and shown on black"),)
    assert (found.pixels[:48] == 0).all()
    np.testing.assert_array_equal(found.pixels[48:], smooth()[48:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_picture_stands_upright(orientation: int, format: str) -> None:
    lying = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    upright = Image.fromarray(smooth())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(lying[orientation]) if orientation > 1 else upright
    found = master(saved(stored, format, exif=exif))
    assert np.abs(found.pixels.astype(int) - smooth()).max() <= (0 if format == "PNG" else 8)
    if format == "PNG":
        deep = Image.fromarray(np.asarray(stored).astype(np.uint16) * 257)
        np.testing.assert_array_equal(master(saved(deep, exif=exif)).pixels, smooth().astype(np.uint16) * 257)


def test_damaged_exif_says_nothing() -> None:
    exif = b"Exif\0\0MM\0*" + b"\xff" * 20
    assert master(saved(Image.fromarray(smooth()), "JPEG", exif=exif)).pixels.shape == smooth().shape


@pytest.mark.parametrize(
    ("side", "limit", "longest"), [(448, 128, 120), (400, 128, 128), (208, 128, 120), (150, 128, 128), (64, 128, 96)]
)
def test_a_large_jpeg_is_reduced_and_looks_the_same(side: int, limit: int, longest: int) -> None:
    small = np.asarray(Image.fromarray(smooth(64)).resize((side + 32, side), Image.Resampling.BICUBIC))
    found = master(encoded(small, "JPEG", quality=95), max_side=limit).pixels
    assert max(found.shape) == longest
    same = Image.fromarray(small).resize((found.shape[1], found.shape[0]), Image.Resampling.BOX)
    assert np.abs(found.astype(int) - np.asarray(same)).mean() < 2


def test_what_shows_little_is_noted() -> None:
    assert reasons(master(encoded(gray(side=63)))) == ["small"]
    assert reasons(master(encoded(gray(side=64)))) == []
    faint = (smooth() // 32 + 100).astype(np.uint8)
    assert master(encoded(faint)).notes == (("low contrast", "its values span 2.0% of their range; a window may help"),)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, pixels: bytes, *extra: bytes, kind: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def squeezed(mebibytes: int) -> bytes:
    """So many MiB of zeros, compressed: one MiB is, then its block is repeated."""
    pack = zlib.compressobj(9, wbits=-15)
    block = pack.compress(b"\0" * 2**20) + pack.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">HH", (mebibytes * 2**20) % 65521, 1)  # Adler-32 of zeros
    return b"\x78\xda" + block * mebibytes + b"\x03\x00" + checksum


WHOLE = zlib.compress(b"".join(b"\0" + bytes(row) for row in smooth()))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(50_000, 40_000, squeezed(1900)), "the image has more than the maximum of 100,000,000 pixels"),
        (png(10_001, 10_000, squeezed(96)), "the image has 100,010,000 pixels; the maximum is 100,000,000"),
        (png(128, 96, squeezed(2000)), "the image is blank: every pixel has the same value"),
        (png(128, 96, WHOLE, chunk(b"zTXt", b"Comment\0\0" + squeezed(1000))), "cannot be decoded"),
        (png(128, 96, WHOLE, chunk(b"iTXt", b"Comment\0\1\0\0\0" + squeezed(1000))), "cannot be decoded"),
        (png(128, 96, WHOLE, *[chunk(b"zTXt", b"C%d\0\0" % n + squeezed(1)) for n in range(500)]), "cannot be decoded"),
        (png(128, 96, WHOLE, chunk(b"iCCP", b"icc\0\0" + squeezed(1000))), ""),
    ],
    ids=["2 gigapixels", "just too large", "pixels", "text", "unicode text", "many texts", "profile"],
)
def test_a_bomb_takes_no_memory(data: bytes, said: str, tmp_path: Path) -> None:
    found, mebibytes, seconds = outcome(data, tmp_path)
    assert said in found
    assert mebibytes < 150
    assert seconds < 5


def test_a_png_with_a_long_text_is_only_its_pixels() -> None:
    found = master(png(128, 96, WHOLE, chunk(b"tEXt", b"Name\0" + b"Doe" * 1000)))
    np.testing.assert_array_equal(found.pixels, smooth())
    assert found.header == {}


@pytest.mark.parametrize("place", [2, 5, 21, 90, 163, 164, 165])
def test_a_jpeg_with_wrong_lengths_is_an_image_or_a_sentence(place: int) -> None:
    data = bytearray(encoded(smooth(), "JPEG"))
    data[place : place + 2] = b"\xff\xf0"
    try:
        assert master(bytes(data)).pixels.size
    except ValueError as error:
        assert str(error).startswith(("the image", "the file is not"))  # noqa: PT017 - either is right


def test_an_empty_or_cut_file_is_said_to_be_so() -> None:
    with pytest.raises(ValueError, match="the file is empty"):
        list(decode_images(b"", Decoding()))
    with pytest.raises(ValueError, match=r"cannot be decoded \(image file is truncated"):
        master(encoded(smooth(), "JPEG")[:-400])


def test_views_of_colour_images_have_three_channels() -> None:
    for fit in ("pad", "stretch"):
        seen = view(colours(), 48, fit)
        assert seen.shape == (48, 48, 3)
        for channel in range(3):
            np.testing.assert_array_equal(
                seen[..., channel], view(np.ascontiguousarray(colours()[..., channel]), 48, fit)
            )
    preprocess = {"mean": 0.5, "std": 0.25, "channels": 3}
    batch = normalise(seen[None], preprocess)
    assert batch.shape == (1, 3, 48, 48)
    assert batch.flags.c_contiguous
    np.testing.assert_allclose(batch[0, 1], (seen[..., 1] / 255 - 0.5) / 0.25, atol=1e-5)
    with pytest.raises(ValueError, match="3 channels, but the model takes 1"):
        normalise(seen[None], {**preprocess, "channels": 1})


@pytest.mark.parametrize(("colour", "shape"), [("gray", (2, 16, 16)), ("rgb", (2, 16, 16, 3))])
def test_blank_views_have_the_shape_that_a_model_takes(colour: str, shape: tuple[int, ...]) -> None:
    assert blank_views(2, {"size": 16, "decoding": made.decoding(colour)}).shape == shape
