"""One picture is the same master whatever file it came in, and a file that is none is a sentence."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from components.shared.imaging.image_files import Decoding, Master, decode_image
from components.shared.imaging.views import equalise_locally, normalise, view
from tests.components.shared.images import dicom, encoded, gray


def stored(top: int = 4095) -> NDArray[np.uint16]:
    """A ramp over all stored values of 12 bits."""
    return np.linspace(0, top, 32 * 36).reshape(32, 36).astype(np.uint16)


def test_an_8_bit_png_is_its_pixels() -> None:
    master = decode_image(encoded(gray()), Decoding())
    assert master.bits == 8
    np.testing.assert_array_equal(master.pixels, gray())
    assert master.header == {}


def test_a_16_bit_png_keeps_its_16_bits() -> None:
    pixels = gray().astype(np.uint16) * 257 + 3
    master = decode_image(encoded(pixels), Decoding())
    assert master.bits == 16
    np.testing.assert_array_equal(master.pixels, pixels)


def test_a_colour_jpeg_becomes_gray() -> None:
    pixels = np.stack([gray(side=64)] * 3, axis=2)
    master = decode_image(encoded(pixels, "JPEG", quality=95), Decoding())
    assert master.pixels.shape == pixels.shape[:2]
    assert master.bits == 8
    assert np.abs(master.pixels.astype(int) - pixels[..., 0]).mean() < 3


def test_a_png_with_palette_or_one_bit_is_read_too() -> None:
    for mode in ("P", "1", "LA", "RGBA"):
        buffer = io.BytesIO()
        Image.fromarray(gray()).convert(mode).save(buffer, "PNG")
        assert decode_image(buffer.getvalue(), Decoding()).pixels.shape == gray().shape


def test_dicom_values_fill_16_bits() -> None:
    master = decode_image(dicom(stored()), Decoding())
    assert master.bits == 16
    np.testing.assert_array_equal(master.pixels, np.rint(stored() / 4095 * 65535))


def test_monochrome1_is_turned_round() -> None:
    plain, turned = (
        decode_image(dicom(stored(), PhotometricInterpretation=f"MONOCHROME{n}"), Decoding()) for n in (2, 1)
    )
    np.testing.assert_array_equal(turned.pixels, 65535 - plain.pixels)


def test_rescaling_alone_changes_nothing_that_a_model_sees() -> None:
    plain = decode_image(dicom(stored(2000)), Decoding())
    rescaled = decode_image(dicom(stored(2000), RescaleSlope=2, RescaleIntercept=-1024), Decoding())
    np.testing.assert_array_equal(rescaled.pixels, plain.pixels)


def test_a_window_clips_to_what_the_radiologist_saw() -> None:
    master = decode_image(dicom(stored(), WindowCenter=2048, WindowWidth=1000), Decoding())
    below, above = stored() < 2048 - 501, stored() > 2048 + 501
    assert (master.pixels[below] == 0).all()
    assert (master.pixels[above] == 65535).all()
    inside = master.pixels[~below & ~above]
    assert 32_000 < np.median(inside) < 33_500


def test_signed_stored_values_are_read() -> None:
    signed = (stored().astype(np.int32) - 2048).astype(np.int16)
    np.testing.assert_array_equal(
        decode_image(dicom(signed), Decoding()).pixels, decode_image(dicom(stored()), Decoding()).pixels
    )


def test_only_the_known_fields_of_a_header_are_kept() -> None:
    data = dicom(
        stored(), PatientName="Doe^Jane", PatientID=" 17 ", PatientSex="F", PatientAge="045Y", ViewPosition="PA",
        InstitutionName="North", Modality="DX", PatientBirthDate="19790101",
    )  # fmt: skip
    assert decode_image(data, Decoding()).header == {
        "patient_id": "17", "sex": "F", "age": "045Y", "view": "PA", "site": "North", "modality": "DX",
    }  # fmt: skip
    assert set(decode_image(dicom(stored()), Decoding()).header.values()) == {""}


def test_a_large_image_is_reduced_and_a_small_one_left() -> None:
    assert decode_image(encoded(gray(side=100)), Decoding(52)).pixels.shape == (50, 52)
    assert decode_image(encoded(gray(side=100)), Decoding(104)).pixels.shape == (100, 104)


def png_that_claims(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the file is empty"),
        (b"no image at all", "not a PNG, JPEG or DICOM image"),
        (b"GIF89a" + b"\0" * 40, "not a PNG, JPEG or DICOM image"),
        (encoded(gray())[:200], "cannot be decoded"),
        (encoded(gray(side=64), "JPEG")[:400], "cannot be decoded"),
        (encoded(np.full((20, 20), 7, np.uint8)), "blank"),
        (dicom(np.full((20, 20), 7, np.uint16)), "blank"),
        (encoded(gray()[:7, :]), "has 36×7 pixels; it must have at least 8×8"),
        (png_that_claims(10_001, 10_001), "has 100,020,001 pixels; the maximum is 100,000,000"),
        (png_that_claims(60_000, 60_000), "pixels"),
        (dicom(stored(), Rows=20_000, Columns=20_000), "has 400,000,000 pixels; the maximum is 100,000,000"),
        (dicom(stored())[:-100], "DICOM"),
        (dicom(stored())[:140], "DICOM"),
        (dicom(stored(), NumberOfFrames=2), "2 frames"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        decode_image(data, Decoding())


FILES = [encoded(gray()), encoded(gray(), "JPEG"), dicom(stored(), PatientID="1", WindowCenter=9, WindowWidth=7)]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_an_image_or_a_value_error_and_nothing_else(data: Any) -> None:
    whole = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        master: Master | None = decode_image(bytes(whole[:cut]), Decoding(64))
        refused = ""
    except ValueError as error:
        master, refused = None, str(error)
    assert master is None or max(master.pixels.shape) <= 64
    assert "0x" not in refused, "an address of memory makes the quarantine differ from run to run"


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (20, 20), (33, 47)])
@pytest.mark.parametrize("size", [16, 48, 95])
def test_16_bits_look_like_8_bits_of_the_same_picture(fit: str, shape: tuple[int, int], size: int) -> None:
    eight = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    one, other = view(eight, size, fit), view(eight.astype(np.uint16) * 257, size, fit)
    assert one.shape == other.shape == (size, size)
    assert one.dtype == other.dtype == np.uint8
    assert np.abs(one.astype(int) - other).max() <= 1


def test_padding_keeps_the_shape_and_stretching_fills_the_square() -> None:
    white = np.full((20, 40), 255, np.uint8)
    padded = view(white, 48, "pad")
    assert (padded[12:36] == 255).all()
    assert (padded[:12] == 0).all()
    assert (padded[36:] == 0).all()
    assert (view(white, 48, "stretch") == 255).all()
    tall = view(white.T.copy(), 48, "pad")
    np.testing.assert_array_equal(tall, padded.T)


def test_a_view_of_the_right_size_is_the_picture_itself() -> None:
    pixels = gray(side=36)[:, :36]
    np.testing.assert_array_equal(view(pixels, 36, "pad"), pixels)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_crop_cuts_the_same_share_off_each_side(fit: str) -> None:
    pixels = np.zeros((60, 100), np.uint8)
    pixels[6:54, 10:90] = 100
    pixels[30, 50] = 255
    seen = view(pixels, 48, fit, 0.1)
    np.testing.assert_array_equal(seen, view(np.ascontiguousarray(pixels[6:54, 10:90]), 48, fit))
    assert (seen > 0).mean() == (1 if fit == "stretch" else pytest.approx(0.6, abs=0.02))
    for side in (1, 2, 3):
        assert view(np.full((side, 50), 9, np.uint8), 48, "stretch", 0.4).min() == 9


def test_local_shades_do_not_depend_on_exposure() -> None:
    chance = np.random.default_rng(1)
    picture = np.kron(chance.integers(0, 120, (12, 16)), np.ones((8, 8))).astype(np.uint8)
    seen = equalise_locally(picture)
    for other in (picture * 2, picture + 60):
        assert (
            np.abs(equalise_locally(other).astype(int) - seen).max() <= 12
        )  # but for the spread that is added everywhere
    assert np.abs(equalise_locally(255 - picture).astype(int) + seen - 256).max() <= 1
    assert 120 < seen.mean() < 136


def test_local_shades_of_what_is_flat_are_the_middle_and_noise_stays_small() -> None:
    assert (equalise_locally(np.full((40, 30), 7, np.uint8)) == 128).all()
    noise = np.random.default_rng(1).integers(99, 102, (40, 30)).astype(np.uint8)
    assert np.abs(equalise_locally(noise).astype(int) - 128).max() <= 10


def test_local_shades_are_what_the_plain_formula_says() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (20, 26, 3)).astype(np.uint8)
    reach, (row, column) = 3, (11, 7)
    around = picture[row - reach : row + reach + 1, column - reach : column + reach + 1].mean(2)
    wanted = 128 + 40 * (picture[row, column] - around.mean()) / np.sqrt(around.var() + 64)
    np.testing.assert_array_equal(equalise_locally(picture)[row, column], np.rint(wanted.clip(0, 255)))


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_view_takes_local_shades_of_the_picture_without_its_padding(fit: str) -> None:
    picture = np.random.default_rng(3).integers(60, 200, (30, 60)).astype(np.uint8)
    seen = view(picture, 60, fit, 0.0, "local")
    if fit == "pad":
        np.testing.assert_array_equal(seen[15:45], equalise_locally(picture))
        assert not seen[:15].any()
    else:
        np.testing.assert_array_equal(seen, equalise_locally(view(picture, 60, fit)))


def test_a_very_thin_image_still_has_a_view() -> None:
    assert view(np.full((8, 2000), 200, np.uint8), 48, "pad").max() == 200


def test_normalised_images_have_the_models_scale_and_channels() -> None:
    views = np.array([[[0, 255], [51, 102]]], np.uint8)
    batch = normalise(views, {"mean": 0.2, "std": 0.5, "channels": 3})
    assert batch.shape == (1, 3, 2, 2)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch[0, 1], [[-0.4, 1.6], [0.0, 0.4]], atol=1e-6)
