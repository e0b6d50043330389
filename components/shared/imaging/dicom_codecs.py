"""Plug-in of pydicom that decompresses JPEG, JPEG-LS and JPEG 2000 frames."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydicom import uid
from pydicom.pixels import get_decoder

from components.shared.errors import RefusedError
from components.shared.imaging.png_jpeg import refuse_too_many_parts

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

NAME = "medloop"
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
DECODER_DEPENDENCIES = dict.fromkeys((*_JPEG_2000, *_JPEG, *_JPEG_LS), ("python-gdcm", "pylibjpeg-openjpeg"))
"""Read by pydicom: the supported transfer syntaxes, and the packages they need."""

_lock = threading.Lock()
_registered: set[str] = set()


def is_available(syntax: str) -> bool:
    """Whether this plug-in supports a transfer syntax; called by pydicom."""
    return syntax in DECODER_DEPENDENCIES


def plugin_for(syntax: str) -> str:
    """Register and return the plug-in for a transfer syntax; "" if pydicom needs none."""
    if not is_available(syntax):
        return ""
    with _lock:
        if syntax not in _registered:
            get_decoder(uid.UID(syntax)).add_plugin(NAME, (__name__, "decode_frame"))
            _registered.add(syntax)
    return NAME


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes | bytearray:
    """Return the pixels of one frame; raise a ValueError for a wrong size."""
    size = read_size(source)
    if size is None or size[:2] != (runner.columns, runner.rows):
        raise RefusedError("the size of the compressed frame differs from the header's")
    refuse_too_many_parts(source)
    if runner.transfer_syntax in _JPEG_2000:
        return _decode_jpeg_2000(source, runner)
    if runner.transfer_syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit):
        return _decode_lossy_jpeg(source, size[2], runner)
    bits = runner.bits_stored
    if runner.transfer_syntax in _JPEG_LS:
        bits = size[2]
        if bits in (6, 7):
            raise RefusedError("JPEG-LS of 6 and 7 bits is not supported: GDCM decodes it wrongly")
        runner.set_option("planar_configuration", 0)
        runner.set_option("bits_allocated", 8 if bits <= 8 else 16)
    return _decode_with_gdcm(source, runner, bits)


def _decode_with_gdcm(stream: bytes, runner: DecodeRunner, bits: int) -> bytes:
    """Decode a frame with GDCM, which damaged frames can crash."""
    import gdcm

    gdcm.Trace.WarningOff()  # messages may quote the frame
    gdcm.Trace.ErrorOff()
    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(stream)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    interpretation = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(interpretation))
    samples = runner.samples_per_pixel
    if samples > 1:
        image.SetPlanarConfiguration(runner.planar_configuration)
    syntax = str.__str__(runner.transfer_syntax)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    signed = runner.pixel_representation
    image.SetPixelFormat(gdcm.PixelFormat(samples, runner.bits_allocated, bits, bits - 1, signed))
    pixels = image.GetBuffer()  # SWIG returns the bytes as text
    if not pixels:
        raise RefusedError("GDCM cannot decompress the frame")
    return bytes(pixels.encode("utf-8", "surrogateescape"))


def _decode_lossy_jpeg(source: bytes, bits: int, runner: DecodeRunner) -> bytes:
    if bits != 8:
        raise RefusedError("lossy JPEG of 12 bits is not supported")  # GDCM turns its whitest pixels black
    with Image.open(io.BytesIO(source), formats=("JPEG",)) as image:
        if runner.samples_per_pixel == 1:
            return image.convert("L").tobytes()
        # The JPEG decoder converts every colour space to RGB.
        runner.set_option("photometric_interpretation", "RGB")
        runner.set_option("planar_configuration", 0)
        return image.convert("RGB").tobytes()


def _decode_jpeg_2000(source: bytes, runner: DecodeRunner) -> bytearray:
    from openjpeg.utils import decode_pixel_data

    pixels: Any = decode_pixel_data(source, version=2)
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")
    precision = runner.get_option("j2k_precision", runner.bits_stored)
    runner.set_option("bits_allocated", 8 if precision <= 8 else 16 if precision <= 16 else 32)
    return bytearray(pixels)


def read_size(stream: bytes) -> tuple[int, int, int] | None:
    """Return (width, height, bits) of a JPEG, JPEG-LS or JPEG 2000 stream."""
    start = stream.find(b"\xff\x4f\xff\x51")
    if not stream.startswith(b"\xff\xd8") and start >= 0:
        right, bottom, left, top = (_number(stream, start + at, 4) for at in (8, 12, 16, 20))
        return right - left, bottom - top, (_number(stream, start + 42, 1) & 127) + 1
    offset = 2
    while offset + 9 < len(stream) and stream[offset] == 0xFF:
        marker = stream[offset + 1]
        if marker == 0xFF:
            offset += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return _number(stream, offset + 7, 2), _number(stream, offset + 5, 2), stream[offset + 4]
        else:
            offset += 2 + _number(stream, offset + 2, 2)
    return None


def _number(stream: bytes, offset: int, size: int) -> int:
    return int.from_bytes(stream[offset : offset + size], "big")
