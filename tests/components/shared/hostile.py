"""Image files that would cost their reader much more than they cost their sender, and honest ones that are large."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import jpeg_ls
import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.components.shared.images import dicom, encapsulated, encoded, packed

DEFLATED = "1.2.840.10008.1.2.1.99"
SMALL = (np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).astype(np.uint16)


def zeros(times: int, bits: int) -> bytes:
    """So many times 16 MiB of zeros, deflated, without the checksum at the end; bits as zlib counts them."""
    pack = zlib.compressobj(6, zlib.DEFLATED, bits)
    first = pack.compress(bytes(2**24)) + pack.flush(zlib.Z_FULL_FLUSH)
    return first + (pack.compress(bytes(2**24)) + pack.flush(zlib.Z_FULL_FLUSH)) * (times - 1)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, depth: int, colours: int, row: bytes, interlaced: bool = False, extra: bytes = b""
) -> bytes:
    """A PNG whose rows are all alike; interlaced, it has as many bytes as its seven passes need."""
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, int(interlaced))
    pack = zlib.compressobj(6)
    body = b"".join(pack.compress(b"\0" + row) for _ in range(height * (2 if interlaced else 1))) + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def ordinary_png(extra: bytes) -> bytes:
    whole = encoded((SMALL >> 8).astype(np.uint8))
    return whole[:33] + extra + whole[33:]


def many_chunks() -> bytes:
    return ordinary_png(chunk(b"teXt", b"") * 5_000_000)


def scans(count: int, side: int) -> bytes:
    """A progressive JPEG with scans that hold nothing: 10 bytes each, and as much work as a full one."""
    whole = encoded(np.tile((SMALL >> 4).astype(np.uint8), (side // 64, side // 64)), "JPEG", progressive=True)
    return whole[:-2] + b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" * count + b"\xff\xd9"


def jpeg_with(segments: bytes) -> bytes:
    whole = encoded((SMALL >> 4).astype(np.uint8), "JPEG")
    return whole[:2] + segments + whole[2:]


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def exif(entries: int) -> bytes:
    """EXIF whose directory refers to itself and has as many entries as fit."""
    one = struct.pack("<HHII", 0x8769, 4, 1, 8)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", entries) + one * entries + struct.pack("<I", 8)


def lying_jpeg(marker: int, precision: int, side: int) -> bytes:
    """A JPEG of another process or depth, or of another size than its content has."""
    whole = bytearray(encoded((SMALL >> 4).astype(np.uint8), "JPEG"))
    place = whole.index(b"\xff\xc0")
    whole[place + 1], whole[place + 4] = marker, precision
    whole[place + 5 : place + 9] = struct.pack(">HH", side, side)
    return bytes(whole)


def deflated(body: bytes) -> bytes:
    """A DICOM file with this dataset, deflated."""
    whole = dcmread(io.BytesIO(dicom(SMALL)))
    whole.file_meta.TransferSyntaxUID = UID(DEFLATED)
    out = io.BytesIO()
    whole.save_as(out, enforce_file_format=True)
    pack = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return out.getvalue()[: end_of_meta(out.getvalue())] + pack.compress(body) + pack.flush()


def end_of_meta(data: bytes) -> int:
    return 144 + int.from_bytes(data[140:144], "little")


def element(group: int, number: int, kind: bytes, content: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, kind, len(content)) + content


def long_element(group: int, number: int, kind: bytes, length: int) -> bytes:
    return struct.pack("<HH2sHI", group, number, kind, 0, length)


def elements(count: int) -> bytes:
    each = np.zeros(count, [("group", "<u2"), ("number", "<u2"), ("kind", "S2"), ("length", "<u2")])
    each["group"], each["number"], each["kind"] = 9 + 2 * (np.arange(count) >> 16), np.arange(count) & 0xFFFF, b"LO"
    return deflated(each.tobytes())


def items(count: int) -> bytes:
    """A sequence of many items that hold an element each."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + element(8, 0x60, b"CS", b"CT")
    item += struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    return deflated(long_element(8, 0x1115, b"SQ", 0xFFFFFFFF) + item * count)


def nested(depth: int) -> bytes:
    one = long_element(8, 0x1115, b"SQ", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return deflated(one * depth)


def meta_elements(count: int) -> bytes:
    data = dicom(SMALL)
    place = end_of_meta(data)
    return data[:place] + element(2, 0x16, b"AE", b"") * count + data[place:]


def big_deflated(side: int) -> bytes:
    """A deflated DICOM file of many black pixels."""
    data = dicom(np.zeros((side, side), np.uint16))
    return deflated(data[end_of_meta(data) :])


def rle(frames: int, side: int) -> bytes:
    """Many frames that each claim many pixels and hold none."""
    stream = struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x80\0\x80\0"
    return encapsulated(dicom(SMALL), RLELossless, [stream] * frames, NumberOfFrames=frames, Rows=side, Columns=side)


def lying_wavelets(side: int) -> bytes:
    """A JPEG 2000 stream of 64² that claims more."""
    whole = dcmread(io.BytesIO(packed(dicom(SMALL), "JPEG2000Lossless")))
    stream = bytearray(whole.PixelData)
    place = stream.index(b"\xff\x4f\xff\x51")
    stream[place + 8 : place + 16] = struct.pack(">II", side, side)
    start = place
    return encapsulated(dicom(SMALL), JPEG2000Lossless, [bytes(stream[start:])], Rows=side, Columns=side)


def tiled_wavelets(side: int) -> bytes:
    """A JPEG 2000 stream that claims as many tiles of 1² as fit."""
    whole = dcmread(io.BytesIO(lying_wavelets(side)))
    stream = bytearray(whole.PixelData)
    place = stream.index(b"\xff\x4f\xff\x51")
    stream[place + 24 : place + 32] = struct.pack(">II", 1, 1)
    return encapsulated(dicom(SMALL), JPEG2000Lossless, [bytes(stream[place:])], Rows=side, Columns=side)


def lying_ls(side: int) -> bytes:
    stream = bytearray(jpeg_ls.encode_array(SMALL))
    place = stream.index(b"\xff\xf7")
    stream[place + 5 : place + 9] = struct.pack(">HH", side, side)
    return encapsulated(dicom(SMALL), JPEGLSLossless, [bytes(stream)], Rows=side, Columns=side)


def crashing() -> bytes:
    """A lossless JPEG that brings GDCM down."""
    from pydicom.encaps import get_frame

    stream = bytearray(get_frame(dcmread(io.BytesIO(packed(dicom(SMALL), "JPEGLosslessProcess14_1"))).PixelData, 0))
    stream[15] = 0
    return encapsulated(dicom(SMALL), JPEGLosslessSV1, [bytes(stream)])


def volume(shape: tuple[int, int, int], times: int) -> bytes:
    """A gzipped NIfTI volume of 16-bit zeros, of which so many times 16 MiB are there."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", head, 70, 4, 16)
    struct.pack_into("<f", head, 108, 352.0)
    head[344:348] = b"n+1\0"
    pack = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return (
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
        + pack.compress(head)
        + pack.flush(zlib.Z_FULL_FLUSH)
        + zeros(times, -zlib.MAX_WBITS)
    )


def lookup_tables(frames: int) -> bytes:
    """Many small frames, each with a lookup table of its own to be applied to all 65,536 values."""
    groups = []
    for _ in range(frames):
        table, inner, outer = Dataset(), Dataset(), Dataset()
        table.add_new("LUTDescriptor", "US", [4, 0, 16])
        table.add_new("LUTData", "OW", bytes(8))
        inner.VOILUTSequence = [table]
        outer.FrameVOILUTSequence = [inner]
        groups.append(outer)
    pixels = np.tile(SMALL[:8, :8], (frames, 1))
    fields = {"NumberOfFrames": frames, "Rows": 8, "PerFrameFunctionalGroupsSequence": groups}
    return dicom(pixels, bits=16, **fields)


KINDS: dict[str, Callable[[], bytes]] = {
    "progressive JPEG, 90,000 empty scans": lambda: scans(90_000, 1024),
    "progressive JPEG, 50 empty scans of 64 million pixels": lambda: scans(50, 8000 // 64 * 64),
    "deflated DICOM, 3 million elements": lambda: elements(3_000_000),
    "DICOM, one million meta elements": lambda: meta_elements(1_000_000),
    "deflated DICOM, a sequence of 5 million items": lambda: items(5_000_000),
    "deflated DICOM, sequences nested a million deep": lambda: nested(1_000_000),
    "deflated DICOM, 100 million black pixels": lambda: big_deflated(10_000),
    "PNG of 16 bits, 100 million pixels": lambda: png(10_000, 10_000, 16, 0, b"\1\2" * 10_000),
    "PNG of 16 bits, interlaced, 100 million pixels": lambda: png(10_000, 10_000, 16, 0, b"\1\2" * 10_000, True),
    "PNG of 16-bit colours, 100 million pixels": lambda: png(10_000, 10_000, 16, 2, b"\1\2\3\4\5\6" * 10_000),
    "PNG with transparency, 100 million pixels": lambda: png(10_000, 10_000, 8, 6, b"\1\2\3\4" * 10_000),
    "PNG, five million chunks": many_chunks,
    "PNG, a billion pixels claimed": lambda: png(31_623, 31_623, 8, 0, b"\0")[:900],
    "PNG of 1×65,535": lambda: png(1, 65_535, 8, 0, b"\1"),
    "PNG with a text that unpacks to 1 GB": lambda: ordinary_png(chunk(b"zTXt", b"a\0\0" + zeros(64, zlib.MAX_WBITS))),
    "PNG with a colour profile that unpacks to 1 GB": lambda: ordinary_png(
        chunk(b"iCCP", b"a\0\0" + zeros(64, zlib.MAX_WBITS))
    ),
    "APNG, two billion frames claimed": lambda: ordinary_png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "JPEG, 60 MB of comments": lambda: jpeg_with(segment(0xFE, bytes(65_000)) * 900),
    "JPEG, 300,000 tables": lambda: jpeg_with(segment(0xDB, b"\0" + bytes(range(1, 65))) * 300_000),
    "JPEG, EXIF that refers to itself": lambda: jpeg_with(segment(0xE1, exif(5_000)) * 100),
    "JPEG with arithmetic coding": lambda: lying_jpeg(0xC9, 8, 64),
    "JPEG of 12 bits": lambda: lying_jpeg(0xC1, 12, 64),
    "JPEG of 64² that claims 9,999²": lambda: lying_jpeg(0xC0, 8, 9_999),
    "DICOM, 2 billion frames claimed": lambda: dicom(SMALL, NumberOfFrames=2**31 - 1),
    "RLE, 20,000 frames of 10,000² in 2 MB": lambda: rle(20_000, 10_000),
    "JPEG 2000 of 64² that claims 10,000²": lambda: lying_wavelets(10_000),
    "JPEG 2000, 100 million tiles claimed": lambda: tiled_wavelets(10_000),
    "JPEG-LS of 64² that claims 10,000²": lambda: lying_ls(10_000),
    "lossless JPEG that brings its decoder down": crashing,
    "JPEG in DICOM, 90,000 empty scans": lambda: encapsulated(
        dicom((SMALL >> 8).astype(np.uint8), bits=8), JPEGBaseline8Bit, [scans(90_000, 1024)], Rows=1024, Columns=1024
    ),
    "DICOM, 3,000 frames with a lookup table each": lambda: lookup_tables(3_000),
    "gzip, 1 GB of voxels in 1 MB": lambda: volume((512, 512, 2000), 64),
    "gzip, a volume of 32,767³": lambda: volume((32_767, 32_767, 32_767), 1),
    "gzip, a name of 30 MB": lambda: b"\x1f\x8b\x08\x08\0\0\0\0\0\x03" + b"n" * 30_000_000,
    "PNG, cut short": lambda: encoded((SMALL >> 4).astype(np.uint8))[:90],
}
"""What each file is, and how it is made."""


def texture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Pixels of 12 bits that compress about as badly as those of a radiograph do."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(300, 3500, (height // 32 + 1, width // 32 + 1)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + rng.normal(0, 12, (height, width))).clip(0, 4095).astype(np.uint16)


def ultrasound(frames: int) -> bytes:
    """A clip of JPEG frames in colour."""
    streams = [
        encoded(np.stack([(texture(768, 1024, n) >> 4).astype(np.uint8)] * 3, axis=2), "JPEG", quality=85)
        for n in range(4)
    ]
    about = dicom((SMALL >> 8).astype(np.uint8), bits=8)
    fields = {"Rows": 768, "Columns": 1024, "NumberOfFrames": frames, "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    return encapsulated(
        about, JPEGBaseline8Bit, streams * (frames // 4), PhotometricInterpretation="YBR_FULL_422", **fields
    )


HONEST: dict[str, Callable[[], bytes]] = {
    "mammogram of 4,096×5,600, 16 bits, DICOM": lambda: dicom(texture(5600, 4096)),
    "the same as JPEG 2000": lambda: packed(dicom(texture(5600, 4096)), "JPEG2000Lossless"),
    "the same as lossless JPEG": lambda: packed(dicom(texture(5600, 4096)), "JPEGLosslessProcess14_1"),
    "the same as PNG of 16 bits": lambda: encoded(texture(5600, 4096), compress_level=1),
    "radiograph of 2,000², JPEG": lambda: encoded((texture(2000, 2000) >> 4).astype(np.uint8), "JPEG"),
    "radiograph of 2,000², DICOM": lambda: dicom(texture(2000, 2000)),
    "ultrasound, 100 frames of 1,024×768 in colour": lambda: ultrasound(100),
}
"""Large files as hospitals have them, which must be read."""
