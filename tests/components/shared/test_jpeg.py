"""JPEGs decoded straight into arrays are to the bit what Pillow makes of them, and what is wrong is left to Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.shared.imaging import jpeg, png_jpeg

SIDES = st.integers(8, 130)


def picture(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(data: bytes, max_side: int, rgb: bool) -> tuple[Any, ...]:
    """What becomes of the same file with an empty EXIF header, which sends it to Pillow."""
    exif = b"\xff\xe1" + (2 + 6).to_bytes(2, "big") + b"Exif\0\0"
    with_exif = data[:2] + exif + data[2:]
    assert jpeg.read_size(with_exif) is None
    return png_jpeg.decode(with_exif, max_side, rgb)


@settings(max_examples=150, deadline=None)
@given(
    SIDES,
    SIDES,
    st.sampled_from(["L", "RGB"]),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.integers(20, 100),
    st.sampled_from([9, 16, 33, 1024]),
    st.booleans(),
)
def test_it_gives_what_pillow_gives(
    width: int, height: int, mode: str, subsampling: int, progressive: bool, quality: int, max_side: int, rgb: bool
) -> None:
    options: dict[str, Any] = {"quality": quality, "progressive": progressive}
    data = saved(picture(width, height, mode), **options, **({"subsampling": subsampling} if mode == "RGB" else {}))
    assert jpeg.read_size(data) == (width, height)
    pixels, size, notes = png_jpeg.decode(data, max_side, rgb)
    expected, expected_size, expected_notes = by_pillow(data, max_side, rgb)
    assert np.array_equal(pixels, expected)
    assert (size, notes) == (expected_size, expected_notes)


@pytest.mark.parametrize("mode", ["CMYK"])
def test_other_colours_are_left_to_pillow(mode: str) -> None:
    data = saved(picture(60, 40, mode))
    assert jpeg.read_size(data) is None
    assert png_jpeg.decode(data, 1024, False)[0].shape == (40, 60)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_file_that_is_cut_short_is_refused_as_before(share: float) -> None:
    data = saved(picture(200, 100, "L"), quality=95)
    cut = data[: int(len(data) * share)]
    assert jpeg.decode_jpeg(cut, 1) is None
    with pytest.raises(ValueError, match="cannot be decoded"):
        png_jpeg.decode(cut, 1024, False)


def test_a_picture_lying_on_its_side_is_set_upright() -> None:
    image = picture(80, 30, "L")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(image, exif=exif)
    assert jpeg.read_size(data) is None
    assert png_jpeg.decode(data, 1024, False)[0].shape == (80, 30)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff" + bytes(100), b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_jpeg_is_none(data: bytes) -> None:
    assert jpeg.read_size(data) is None
    assert jpeg.decode_jpeg(data, 1) is None
