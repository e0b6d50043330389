"""DICOM files of all kinds become the masters that their stored values, rescale and window say."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import jpeg_ls
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    MPEG2MPML,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from components.shared.imaging.dicom_codecs import read_size
from components.shared.imaging.image_files import Decoding, Master, decode_image, decode_images
from tests.components.shared.decoders import Decoders
from tests.components.shared.fresh import outcome
from tests.components.shared.images import dicom, encapsulated, encoded, packed


def ramp(bits: int, signed: bool = False, shape: tuple[int, int] = (64, 72)) -> NDArray[Any]:
    """All brightnesses that so many bits hold."""
    values = np.linspace(0, 2**bits - 1, shape[0] * shape[1]).round().reshape(shape)
    kind = "i" if signed else "u"
    return np.asarray(values - 2 ** (bits - 1) * signed, dtype=f"{kind}{1 if bits <= 8 else 2}")


def master(data: bytes, **how: Any) -> Master:
    return decode_image(data, Decoding(**how))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_stored_values_of_any_depth_fill_the_range(bits: int, signed: bool) -> None:
    found = master(dicom(ramp(bits, signed), bits=bits))
    top = 255 if bits == 8 else 65535
    assert found.bits == (8 if bits == 8 else 16)
    np.testing.assert_array_equal(found.pixels, np.rint(ramp(bits) / (2.0**bits - 1) * top))


def test_8_bits_stay_8_bits_only_where_nothing_is_lost() -> None:
    narrow = master(dicom(ramp(8), bits=8, WindowCenter=100, WindowWidth=60))
    wide = master(dicom(ramp(8), bits=8, WindowCenter=128, WindowWidth=1000))
    assert (narrow.bits, wide.bits) == (8, 16)
    assert len(np.unique(wide.pixels)) == 256
    in_sixteen = master(dicom(ramp(8).astype(np.uint16), bits=8))
    assert in_sixteen.bits == 8
    np.testing.assert_array_equal(in_sixteen.pixels, ramp(8))


def test_more_attenuation_is_brighter() -> None:
    plain = master(dicom(ramp(12), RescaleSlope=1, RescaleIntercept=-1024))
    turned = master(dicom(ramp(12), PhotometricInterpretation="MONOCHROME1"))
    falling = master(dicom(ramp(12), RescaleSlope=-1, RescaleIntercept=4095))
    np.testing.assert_array_equal(turned.pixels, 65535 - plain.pixels)
    np.testing.assert_array_equal(falling.pixels, 65535 - plain.pixels)


def windowed(function: str, center: float, width: float, values: NDArray[Any]) -> NDArray[Any]:
    """The window functions as PS3.3 C.11.2.1 gives them, pixel by pixel."""

    def one(x: float) -> float:
        if function == "SIGMOID":
            return float(1 / (1 + np.exp(-4 * (x - center) / width)))
        c, w = (center - 0.5, width - 1) if function == "LINEAR" else (center, width)
        if x <= c - w / 2:
            return 0
        return 1 if x > c + w / 2 else (x - c) / w + 0.5

    return np.asarray(np.rint(np.vectorize(one, otypes=[float])(values.astype(float)) * 65535))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_first_window_is_applied_as_the_standard_says(function: str) -> None:
    fields: dict[str, Any] = {"WindowCenter": [40.0, 300.0], "WindowWidth": [400.0, 1500.0], "VOILUTFunction": function}
    found = master(dicom(ramp(12), RescaleIntercept=-1024, RescaleSlope=1, **fields))
    np.testing.assert_array_equal(found.pixels, windowed(function, 40, 400, ramp(12).astype(int) - 1024))


def test_a_window_one_wide_is_a_step_and_one_of_no_width_is_none() -> None:
    step = master(dicom(ramp(12), WindowCenter=2000.5, WindowWidth=1)).pixels
    np.testing.assert_array_equal(step, np.where(ramp(12) > 2000, 65535, 0))
    nothing = master(dicom(ramp(12), WindowCenter=2000, WindowWidth=0)).pixels
    np.testing.assert_array_equal(nothing, master(dicom(ramp(12))).pixels)


def test_the_data_sets_window_comes_before_the_files_own() -> None:
    ct = dicom(ramp(12), RescaleIntercept=-1024, RescaleSlope=1, WindowCenter=40, WindowWidth=80)
    found = master(ct, window_center=-600.0, window_width=1500.0)
    values = ramp(12).astype(float) - 1024
    np.testing.assert_array_equal(found.pixels, np.rint(np.clip((values + 600) / 1500 + 0.5, 0, 1) * 65535))


def lut(first: int, bits: int, data: NDArray[Any]) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data), first, bits])
    item.add_new("LUTData", "OW", data.astype("<u2").tobytes())
    return item


def test_lookup_tables_are_applied() -> None:
    square = (np.linspace(0, 1, 4096) ** 2 * 65535).astype(np.uint16)
    expected = square[ramp(12)].astype(float)
    for sequence in ("ModalityLUTSequence", "VOILUTSequence"):
        table: dict[str, Any] = {sequence: [lut(0, 16, square)]}
        found = master(dicom(ramp(12), **table))
        assert np.abs(found.pixels - expected).max() <= 1


def test_a_palette_gives_colours_and_their_gray() -> None:
    tables = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, share in (("Red", 1.0), ("Green", 0.5), ("Blue", 0.0))
        for part, value in (
            ("Descriptor", [256, 0, 16]),
            ("Data", (np.arange(256) * 257 * share).astype("<u2").tobytes()),
        )
    }
    data = dicom(ramp(8), bits=8, PhotometricInterpretation="PALETTE COLOR", **tables)
    colour = master(data, colour="rgb")
    assert colour.pixels.shape == (64, 72, 3)
    np.testing.assert_array_equal(colour.pixels[..., 0], ramp(8))
    assert (colour.pixels[..., 2] == 0).all()
    gray = master(data)
    np.testing.assert_array_equal(gray.pixels, np.asarray(Image.fromarray(colour.pixels).convert("L")))
    assert [reason for reason, _ in gray.notes] == ["colour"]


def rgb() -> NDArray[np.uint8]:
    y, x = np.mgrid[0:64, 0:72]
    return np.stack([y * 4, x * 3, 255 - y * 2], axis=2).astype(np.uint8)


def colour_dicom(pixels: NDArray[np.uint8], **fields: Any) -> bytes:
    return dicom(
        pixels, bits=8, **{"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB", **fields}
    )


@pytest.mark.parametrize("syntax", ["", "JPEG2000Lossless", "RLELossless", "JPEGLosslessProcess14_1", "JPEGLSLossless"])
def test_colour_frames_keep_their_colours(syntax: str) -> None:
    data = colour_dicom(rgb())
    found = master(packed(data, syntax) if syntax else data, colour="rgb")
    np.testing.assert_array_equal(found.pixels, rgb())
    assert found.notes == ()


def test_colours_stored_in_planes_or_as_ybr_are_the_same_colours() -> None:
    planes = colour_dicom(np.ascontiguousarray(rgb().transpose(2, 0, 1)), PlanarConfiguration=1, Rows=64, Columns=72)
    np.testing.assert_array_equal(master(planes, colour="rgb").pixels, rgb())
    ybr = np.asarray(Image.fromarray(rgb()).convert("YCbCr"))
    found = master(colour_dicom(ybr, PhotometricInterpretation="YBR_FULL"), colour="rgb")
    assert np.abs(found.pixels.astype(int) - rgb()).max() <= 3
    jpeg = encapsulated(
        colour_dicom(rgb()), JPEGBaseline8Bit, [encoded(rgb(), "JPEG", quality=95)],
        PhotometricInterpretation="YBR_FULL_422",
    )  # fmt: skip
    assert np.abs(master(jpeg, colour="rgb").pixels.astype(int) - rgb()).mean() < 4


LOSSLESS = [
    "ImplicitVRLittleEndian", "ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian", "RLELossless",
    "JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless",
]  # fmt: skip


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_every_lossless_transfer_syntax_gives_the_same_pixels(syntax: str, bits: int) -> None:
    data = dicom(ramp(bits), bits=bits)
    again = packed(data, syntax)
    assert (
        dcmread(io.BytesIO(again)).file_meta.TransferSyntaxUID != dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID
    )
    np.testing.assert_array_equal(master(again).pixels, master(data).pixels)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1"])
def test_signed_values_survive_compression(syntax: str) -> None:
    data = dicom(ramp(16, signed=True), bits=16)
    np.testing.assert_array_equal(master(packed(data, syntax)).pixels, master(data).pixels)


@pytest.mark.parametrize(
    ("syntax", "bits"), [("JPEGBaselineProcess1", 8), ("JPEG2000", 12), ("JPEGLSNearLossless", 12)]
)
def test_lossy_transfer_syntaxes_give_nearly_the_same(syntax: str, bits: int) -> None:
    data = dicom(ramp(bits), bits=bits)
    found, plain = master(packed(data, syntax)).pixels.astype(float), master(data).pixels
    assert np.abs(found - plain).mean() / (255 if bits == 8 else 65535) < 0.01


def test_frames_of_another_encoder_are_read() -> None:
    for syntax, loss in ((JPEGLSLossless, 0), (JPEGLSNearLossless, 2)):
        stream = jpeg_ls.encode_array(ramp(12), lossy_error=loss)
        found = master(encapsulated(dicom(ramp(12)), syntax, [bytes(stream)]))
        assert np.abs(found.pixels.astype(int) - master(dicom(ramp(12))).pixels).max() <= loss * 17
    jpeg = encapsulated(dicom(ramp(8), bits=8), JPEGBaseline8Bit, [encoded(ramp(8), "JPEG", quality=95)])
    np.testing.assert_allclose(
        master(jpeg).pixels, np.asarray(Image.open(io.BytesIO(encoded(ramp(8), "JPEG", quality=95)))), atol=1
    )


def test_what_is_not_read_is_said_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="lossy JPEG of 12 bits is not supported: export the scan"):
        master(packed(dicom(ramp(12)), "JPEGExtendedProcess2_4"))
    assert master(packed(dicom(ramp(8), bits=8), "JPEGExtendedProcess2_4")).pixels.shape == (64, 72)
    hidden = dcmread(io.BytesIO(packed(dicom(ramp(12)), "JPEGExtendedProcess2_4")))
    hidden.BitsStored, hidden.BitsAllocated, hidden.HighBit = 8, 8, 7
    buffer = io.BytesIO()
    hidden.save_as(buffer)
    with pytest.raises(ValueError, match="the pixels cannot be decoded"):
        master(buffer.getvalue())
    with pytest.raises(ValueError, match="an unsupported compression"):
        master(encapsulated(dicom(ramp(8), bits=8), MPEG2MPML, [b"\0" * 64]))


def test_fields_that_writers_leave_out() -> None:
    dataset = dcmread(io.BytesIO(dicom(ramp(16), bits=16)))
    for name in ("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit", "PixelRepresentation"):
        del dataset[name]
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    np.testing.assert_array_equal(master(buffer.getvalue()).pixels, ramp(16))


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("meta", [True, False])
def test_files_without_a_preamble_are_read(implicit: bool, meta: bool) -> None:
    data = packed(dicom(ramp(12)), "ImplicitVRLittleEndian") if implicit else dicom(ramp(12))
    bare = data[132:]
    if not meta:
        bare = bare[12 + int.from_bytes(bare[8:12], "little") :]
    np.testing.assert_array_equal(master(bare).pixels, master(data).pixels)


def frames(count: int = 6) -> NDArray[np.uint16]:
    """Frames that differ in brightness; the third is blank."""
    each = [ramp(12) // 2 + np.uint16(100 * number) for number in range(count)]
    each[2] = np.full((64, 72), 3000, np.uint16)
    return np.stack(each)


def multi(pixels: NDArray[Any], **fields: Any) -> bytes:
    return dicom(pixels, Rows=64, Columns=72, NumberOfFrames=len(pixels), **fields)


@pytest.mark.parametrize("syntax", ["", "RLELossless", "JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1"])
def test_every_frame_that_shows_something_is_an_image(syntax: str) -> None:
    data = multi(frames(), BurnedInAnnotation="YES", PatientID="17")
    found = list(decode_images(packed(data, syntax) if syntax else data, Decoding()))
    assert [one.frame for one in found] == [0, 1, 3, 4, 5]
    for one in found:
        np.testing.assert_array_equal(one.pixels, np.rint(frames()[one.frame] / 4095 * 65535))
        assert one.header["patient_id"] == "17"
    assert [one.notes for one in found[1:-1]] == [()] * 3
    assert [reason for reason, _ in found[0].notes] == ["burned-in text"]
    assert found[-1].notes == (("blank frames", "1 of the 6 frames in its file is blank"),)


def test_so_many_frames_are_taken_evenly_spaced() -> None:
    found = list(decode_images(multi(np.concatenate([frames()[3:]] * 4)), Decoding(frames=3)))
    assert [one.frame for one in found] == [2, 6, 10]
    assert len(list(decode_images(multi(frames()), Decoding(frames=99)))) == 5


def test_one_image_is_one_image() -> None:
    with pytest.raises(ValueError, match="has 6 frames; only files with 1 are accepted: send each frame as a file"):
        master(multi(frames()))
    with pytest.raises(ValueError, match="no frame can be used: of 3, 3 are blank"):
        list(decode_images(multi(np.full((3, 64, 72), 5, np.uint16)), Decoding()))


def test_a_damaged_frame_does_not_spoil_the_others() -> None:
    streams = [bytes(jpeg_ls.encode_array(frame)) for frame in frames()]
    streams[1] = streams[1][:40]
    streams[4] = b"\xff\xd8" + b"\0" * 50
    data = encapsulated(multi(frames()), JPEGLSLossless, streams)
    found = list(decode_images(data, Decoding()))
    assert [one.frame for one in found] == [0, 3, 5]
    assert dict(found[-1].notes)["unreadable frames"] == "2 of the 6 frames in its file are unreadable"


def test_each_frame_has_its_own_window_and_rescale() -> None:
    data = dcmread(io.BytesIO(multi(np.stack([ramp(12)] * 3))))

    def group(name: str, **fields: Any) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for field, value in fields.items():
            setattr(inner, field, value)
        setattr(outer, name, [inner])
        return outer

    data.SharedFunctionalGroupsSequence = [
        group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024)
    ]
    data.PerFrameFunctionalGroupsSequence = [
        group("FrameVOILUTSequence", WindowCenter=center, WindowWidth=400) for center in (40, 300, 900)
    ]
    buffer = io.BytesIO()
    data.save_as(buffer)
    found = list(decode_images(buffer.getvalue(), Decoding()))
    for one, center in zip(found, (40, 300, 900), strict=True):
        np.testing.assert_array_equal(one.pixels, windowed("LINEAR", center, 400, ramp(12).astype(int) - 1024))


def test_each_frame_has_its_own_lookup_table() -> None:
    data = dcmread(io.BytesIO(multi(np.stack([ramp(12)] * 2))))
    tables = [(np.linspace(0, 1, 4096) ** power * 65535).astype(np.uint16) for power in (2, 3)]
    data.PerFrameFunctionalGroupsSequence = []
    for table in tables:
        inner, outer = Dataset(), Dataset()
        inner.VOILUTSequence = [lut(0, 16, table)]
        outer.FrameVOILUTSequence = [inner]
        data.PerFrameFunctionalGroupsSequence.append(outer)
    buffer = io.BytesIO()
    data.save_as(buffer)
    for one, table in zip(decode_images(buffer.getvalue(), Decoding()), tables, strict=True):
        assert np.abs(one.pixels - table[ramp(12)].astype(float)).max() <= 1


def test_a_frame_whose_window_makes_no_sense_does_not_spoil_the_others() -> None:
    data = dcmread(io.BytesIO(multi(np.stack([ramp(12)] * 3))))
    data.PerFrameFunctionalGroupsSequence = []
    for width in ("400", "DOE", "400"):
        inner, outer = Dataset(), Dataset()
        inner.WindowCenter = "2000"
        inner._dict[Tag("WindowWidth")] = RawDataElement(Tag("WindowWidth"), "DS", 4, width.encode(), 0, False, True)
        outer.FrameVOILUTSequence = [inner]
        data.PerFrameFunctionalGroupsSequence.append(outer)
    buffer = io.BytesIO()
    data.save_as(buffer)
    found = list(decode_images(buffer.getvalue(), Decoding()))
    assert [one.frame for one in found] == [0, 2]
    assert found[1].notes == (("unreadable frames", "1 of the 3 frames in its file is unreadable"),)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (multi(frames())[:-9000], "need at least 55,296 bytes, but it has 46,296"),
        (multi(frames())[:-9000], "the DICOM file is truncated: 6 frames of 72×64 pixels need at least 55,296 bytes"),
        (dicom(ramp(12), NumberOfFrames=10**6), "truncated: 1,000,000 frames"),
        (dicom(ramp(12), NumberOfFrames=-3), "gives -3 frames"),
        (dicom(ramp(12), Rows=0), "gives 1 frames of 72×0 pixels"),
        (packed(dicom(ramp(12), NumberOfFrames=1), "JPEGLSLossless")[:-600], "cannot be decoded"),
        (encapsulated(dicom(ramp(12)), JPEGLSLossless, [b"\xff\xd8" * 9], NumberOfFrames=9_999_999), "truncated"),
        (dicom(ramp(12), BitsAllocated=32, BitsStored=32), "1 samples of 32 bits per pixel; gray or RGB of at most 16"),
        (dicom(ramp(12), SamplesPerPixel=2), "2 samples of 16 bits"),
        (dicom(ramp(12), PhotometricInterpretation="DOE JANE"), "pixel format is unknown"),
        (dicom(ramp(12))[:500], "DICOM"),
        (dicom(ramp(12))[:132], "header cannot be read"),
    ],
)
def test_what_a_file_claims_and_does_not_hold(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        list(decode_images(data, Decoding()))
    assert "DOE" not in str(caught.value)


def without_pixels() -> bytes:
    dataset = dcmread(io.BytesIO(dicom(ramp(12))))
    del dataset.PixelData
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_a_report_or_a_dose_is_no_image() -> None:
    with pytest.raises(ValueError, match="has no image with integer pixels"):
        master(without_pixels())


def test_a_compressed_frame_of_another_size_is_refused_before_it_is_unpacked() -> None:
    stream = bytearray(jpeg_ls.encode_array(ramp(12)))
    assert read_size(bytes(stream)) == (72, 64, 12)
    place = stream.index(b"\xff\xf7")
    stream[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    assert read_size(bytes(stream)) == (65535, 65535, 12)
    with pytest.raises(ValueError, match="the pixels cannot be decoded"):
        master(encapsulated(dicom(ramp(12)), JPEGLSLossless, [bytes(stream)]))


@pytest.mark.slow
def test_a_deflated_file_that_unpacks_to_gigabytes_is_stopped(tmp_path: Path) -> None:
    data = packed(dicom(ramp(12)), "DeflatedExplicitVRLittleEndian")
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    chunk = b"\0" * 2**24
    bomb = b"".join(squeeze.compress(chunk) for _ in range(66)) + squeeze.flush()
    meta = 144 + int.from_bytes(data[140:144], "little")
    said, mebibytes, _ = outcome(data[:meta] + bomb, tmp_path, warm=data)
    assert said == "the DICOM file decompresses to more than the maximum of 268,435,456 bytes"
    assert mebibytes < 400
    with pytest.raises(ValueError, match="the DICOM file is truncated"):
        master(data[:-50])


@pytest.mark.slow
def test_frames_are_unpacked_one_at_a_time(tmp_path: Path) -> None:
    stream = bytes(jpeg_ls.encode_array(np.tile(ramp(12), (16, 16))))  # 2.4 MB a frame, unpacked
    data = encapsulated(dicom(ramp(12)), JPEGLSLossless, [stream] * 25, NumberOfFrames=25, Rows=1024, Columns=1152)
    said, mebibytes, _ = outcome(data, tmp_path, warm=dicom(ramp(12)))
    assert said == "25 images"
    assert mebibytes < 40


FILES = [packed(dicom(ramp(12), PatientID="1"), name) for name in (*LOSSLESS, "JPEG2000")]
FILES += [multi(frames()), colour_dicom(rgb()), packed(multi(frames()), "RLELossless")]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_images_or_a_sentence_and_nothing_else(decoders: Decoders, data: Any) -> None:
    whole = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(len(whole) // 2, len(whole)))
    sizes, refused = decoders.outcome(bytes(whole[:cut]), max_side=64)
    assert bool(sizes) != bool(refused)
    assert all(max(each[:2]) <= 64 for each in sizes)
    assert "0x" not in refused, "an address of memory makes the quarantine differ from run to run"


def test_a_codec_that_needs_fewer_bits_than_are_stored_changes_nothing() -> None:
    dark = (ramp(12) // 16).astype(np.uint16)
    stream = bytes(jpeg_ls.encode_array(dark.astype(np.uint8)))
    found = read_size(stream)
    assert found
    assert found[2] == 8
    np.testing.assert_array_equal(
        master(encapsulated(dicom(dark), JPEGLSLossless, [stream])).pixels, master(dicom(dark)).pixels
    )
