"""Every kind of file gives its images, and volumes their slices, the right way up."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.ingest.file_formats import read_images
from components.shared.imaging.image_files import Decoding, Master
from tests.components.shared.fresh import outcome
from tests.components.shared.images import dicom, encoded, gray


def nifti(
    values: NDArray[Any],
    axes: str = "RAS",
    compress: bool = False,
    second: bool = False,
    slope: float = 1,
    **fields: Any,
) -> bytes:
    """A NIfTI file of these voxels, given as [to the right, to the front, to the head], stored along other axes."""
    plain = nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0]))
    turned = plain.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt(("R", "A", "S")), nibabel.orientations.axcodes2ornt(tuple(axes))
        )
    )
    image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(np.asarray(turned.dataobj), turned.affine)
    image.header.set_slope_inter(slope, 0)
    for name, value in fields.items():
        image.header[name] = value
    data = image.to_bytes()
    return gzip.compress(data) if compress else data


def head() -> NDArray[np.int16]:
    """A volume in which every direction can be told: brighter to the right, to the front, and to the head."""
    x, y, z = np.mgrid[0:70, 0:80, 0:5]
    return np.asarray(x * 3 + y * 5 + z * 40, dtype=np.int16)


def slices(data: bytes, **how: Any) -> list[Master]:
    return list(read_images(data, Decoding(**how)))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "SRA", "PIL"])
@pytest.mark.parametrize("compress", [False, True])
def test_slices_stand_as_radiologists_look_at_them(axes: str, compress: bool) -> None:
    found = slices(nifti(head(), axes, compress), window_center=400.0, window_width=900.0)
    assert [one.frame for one in found] == [0, 1, 2, 3, 4]
    for one in found:
        assert one.pixels.shape == (80, 70)
        expected = head()[::-1, ::-1, one.frame].T  # right on the left, front on top
        np.testing.assert_array_equal(one.pixels, np.rint((expected + 50.0) / 900 * 65535))
        assert one.header == {}
    assert found[4].pixels[0, 0] == max(one.pixels.max() for one in found)


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("second", [False, True])
def test_without_a_window_the_volumes_own_range_counts(kind: str, second: bool) -> None:
    values = np.random.default_rng(0).permutation(np.linspace(0, 255, 64 * 64 * 4)).reshape(64, 64, 4).astype(kind)
    found = slices(nifti(values, second=second, slope=2.5))
    low, high = np.percentile(values.astype(float), [0.5, 99.5])
    for one in found:
        expected = np.clip((values[::-1, ::-1, one.frame].T.astype(float) - low) / (high - low), 0, 1)
        assert np.abs(one.pixels / 65535 - expected).max() < 1e-3
    assert found[0].bits == 16


def test_a_window_is_on_rescaled_values() -> None:
    (one,) = slices(nifti(head()[:, :, :1], slope=2), window_center=300.0, window_width=600.0)
    np.testing.assert_array_equal(one.pixels, np.rint(np.clip(head()[::-1, ::-1, 0].T * 2 / 600, 0, 1) * 65535))
    assert one.frame == -1


def test_blank_slices_are_left_out_and_of_many_some_are_taken() -> None:
    volume = np.concatenate([head(), np.zeros((70, 80, 3), np.int16)], axis=2)
    found = slices(nifti(volume))
    assert [one.frame for one in found] == [0, 1, 2, 3, 4]
    assert found[-1].notes == (("blank frames", "3 of the 8 frames in its file are blank"),)
    assert [one.frame for one in slices(nifti(head()), frames=2)] == [1, 3]
    with pytest.raises(ValueError, match="of 8, 8 are blank"):
        slices(nifti(np.zeros((70, 80, 8), np.int16)))


def test_of_several_volumes_the_first_is_taken_and_a_single_slice_is_an_image() -> None:
    both = np.stack([head(), head()[::-1]], axis=3)
    for compress in (False, True):
        found = slices(nifti(both, compress=compress))
        np.testing.assert_array_equal(found[2].pixels, slices(nifti(head()))[2].pixels)
        assert found[0].notes == (("several volumes", "it is the first of 2 in its file"),)
    (flat,) = slices(nibabel.Nifti1Image(head()[:, :, 0], np.eye(4)).to_bytes())
    assert flat.pixels.shape == (80, 70)


def test_numbers_that_are_none_are_black() -> None:
    values = head().astype(np.float32)
    values[:10], values[60:] = np.nan, np.inf
    found = slices(nifti(values))
    assert (found[0].pixels[:, 60:] == 0).all()
    assert found[0].pixels[:, 10:60].max() > 20_000


def header(**fields: Any) -> bytes:
    made = nibabel.Nifti1Header()
    made.set_data_shape((70, 80, 5))
    made["vox_offset"] = 352
    for name, value in fields.items():
        made[name] = value
    return bytes(made.binaryblock) + b"\0" * 4


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (nifti(head())[:-9], "the NIfTI file is truncated: its first volume needs 56,000 bytes"),
        (
            header(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
            "32767×32767×32767 voxels of 4 bytes; the maximum is",
        ),
        (header(dim=[3, -5, 8, 8, 1, 1, 1, 1]), "has no volume of real numbers"),
        (header(dim=[99, 8, 8, 8, 1, 1, 1, 1]), "NIfTI"),
        (header(dim=[4, 8, 8, 8, 0, 1, 1, 1]), "has no volume"),
        (header(datatype=32), "has no volume of real numbers"),
        (header(datatype=77), "the NIfTI header cannot be read"),
        (header(vox_offset=np.float32(-1e30)), "NIfTI"),
        (header(magic=b"ni1"), "header is in a separate file: save header and voxels as one .nii"),
        (nifti(np.full((70, 80, 2), np.nan, np.float32)), "has no finite values"),
        (nifti(head()[:5]), "the image has 5×80 pixels; it must have at least 8×8"),
    ],
)
def test_bad_volumes_are_refused_with_the_reason(data: bytes, sentence: str, pack: Any) -> None:
    with pytest.raises(ValueError, match=sentence):
        slices(pack(data))


@pytest.mark.slow
@pytest.mark.parametrize("claims", [(70, 80, 5), (512, 512, 1000)])
def test_a_gzip_bomb_is_unpacked_only_as_far_as_the_volume_goes(claims: tuple[int, int, int], tmp_path: Path) -> None:
    head_of_it = header(dim=[3, *claims, 1, 1, 1, 1], datatype=4, bitpix=16)
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=1) as file:
        file.write(head_of_it)
        for _ in range(600):
            file.write(b"\0" * 2**20)
    warm = nifti(head(), compress=True)
    said, mebibytes, _ = outcome(bomb.getvalue(), tmp_path, "components.ingest.file_formats", "read_images", warm)
    assert said.endswith("are blank, and the others cannot be decoded")
    assert mebibytes < (50 if claims[0] == 70 else 800)


def test_gzip_of_something_else_is_no_image() -> None:
    for data in (gzip.compress(b"Doe" * 9000), gzip.compress(encoded(gray())), b"\x1f\x8b" + b"\0" * 400, b"\x1f\x8b"):
        with pytest.raises(ValueError, match="not a PNG, JPEG or DICOM"):
            slices(data)


def test_other_kinds_of_files_give_their_one_image() -> None:
    for data in (encoded(gray()), encoded(gray(), "JPEG"), dicom(gray().astype(np.uint16))):
        (one,) = slices(data)
        assert (one.pixels.shape, one.frame) == (gray().shape, -1)


FILES = [nifti(head()), nifti(head(), compress=True), nifti(head(), "LPS", second=True)]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_volume_is_images_or_a_value_error_and_nothing_else(data: Any) -> None:
    whole = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 560))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    refused = ""
    try:
        found = slices(bytes(whole[:cut]), max_side=64)
    except ValueError as error:
        found, refused = [], str(error)
    assert all(max(one.pixels.shape) <= 64 for one in found)
    assert "0x" not in refused


def test_the_text_in_a_header_goes_nowhere() -> None:
    data = nifti(head(), descrip=b"Doe^Jane", aux_file=b"Doe.txt", db_name=b"Doe", intent_name=b"Doe")
    assert "Doe" not in "".join(f"{one.header}{one.notes}" for one in slices(data))
    broken = bytearray(data)
    struct.pack_into("<h", broken, 70, 77)
    with pytest.raises(ValueError, match="header") as caught:
        slices(bytes(broken))
    assert "Doe" not in str(caught.value)
