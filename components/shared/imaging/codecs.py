"""Decompresses the frames of DICOM files, as a plug-in of pydicom: JPEG, JPEG-LS and JPEG 2000."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from components.shared.errors import RefusedError
from components.shared.imaging.pictures import refuse_parts

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

NAME = "medloop"
_WAVELETS = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
_OTHERS = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
DECODER_DEPENDENCIES = dict.fromkeys((*_WAVELETS, *_OTHERS), ("python-gdcm", "pylibjpeg-openjpeg"))
"""What pydicom asks a plug-in for: the transfer syntaxes it reads, and with what."""

_door = threading.Lock()
_known: set[str] = set()


def is_available(syntax: str) -> bool:
    """Whether this plug-in reads a transfer syntax, as pydicom asks it."""
    return syntax in DECODER_DEPENDENCIES


def plugin_for(syntax: str) -> str:
    """The plug-in by which pydicom shall decode this transfer syntax; empty where it needs none."""
    if not is_available(syntax):
        return ""
    with _door:
        if syntax not in _known:
            get_decoder(UID(syntax)).add_plugin(NAME, (__name__, "decode_frame"))
            _known.add(syntax)
    return NAME


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes | bytearray:
    """The pixels of one frame; refused where it unpacks to another size than the header says."""
    found = measured(source)
    if found is None or found[:2] != (runner.columns, runner.rows):
        raise RefusedError("the compressed frame has another size than the header says")
    refuse_parts(source)
    if runner.transfer_syntax in _WAVELETS:
        return _wavelets(source, runner)
    if runner.transfer_syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return _lossy(source, found[2], runner)
    bits = runner.bits_stored
    if runner.transfer_syntax in (JPEGLSLossless, JPEGLSNearLossless):
        bits = found[2]
        if bits in (6, 7):
            raise RefusedError("GDCM gives wrong pixels for JPEG-LS of 6 and 7 bits")
        runner.set_option("planar_configuration", 0)
        runner.set_option("bits_allocated", 8 if bits <= 8 else 16)
    return _gdcm(source, runner, bits)


def _gdcm(stream: bytes, runner: DecodeRunner, bits: int) -> bytes:
    """The pixels of a compressed frame. A damaged one can end the process: that is why decoders have their own."""
    import gdcm

    gdcm.Trace.WarningOff()  # what it prints may quote the frame
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
    kind = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    samples = runner.samples_per_pixel
    if samples > 1:
        image.SetPlanarConfiguration(runner.planar_configuration)
    syntax = str.__str__(runner.transfer_syntax)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    signed = runner.pixel_representation
    image.SetPixelFormat(gdcm.PixelFormat(samples, runner.bits_allocated, bits, bits - 1, signed))
    pixels = image.GetBuffer()  # bytes, that SWIG gives as text
    if not pixels:
        raise RefusedError("GDCM cannot decompress the frame")
    return bytes(pixels.encode("utf-8", "surrogateescape"))


def _lossy(source: bytes, bits: int, runner: DecodeRunner) -> bytes:
    if bits != 8:
        raise RefusedError("lossy JPEG of 12 bits is not read")  # GDCM turns its whitest pixels black
    with Image.open(io.BytesIO(source), formats=("JPEG",)) as picture:
        if runner.samples_per_pixel == 1:
            return picture.convert("L").tobytes()
        # JPEG's own decoder makes RGB of whatever the stream holds.
        runner.set_option("photometric_interpretation", "RGB")
        runner.set_option("planar_configuration", 0)
        return picture.convert("RGB").tobytes()


def _wavelets(source: bytes, runner: DecodeRunner) -> bytearray:
    from openjpeg.utils import decode_pixel_data

    pixels: Any = decode_pixel_data(source, version=2)
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")
    precision = runner.get_option("j2k_precision", runner.bits_stored)
    runner.set_option("bits_allocated", 8 if precision <= 8 else 16 if precision <= 16 else 32)
    return bytearray(pixels)


def measured(stream: bytes) -> tuple[int, int, int] | None:
    """The (width, height, bits) that a JPEG, JPEG-LS or JPEG 2000 stream says of itself."""
    start = stream.find(b"\xff\x4f\xff\x51")
    if not stream.startswith(b"\xff\xd8") and start >= 0:
        right, bottom, left, top = (_number(stream, start + at, 4) for at in (8, 12, 16, 20))
        return right - left, bottom - top, (_number(stream, start + 42, 1) & 127) + 1
    place = 2
    while place + 9 < len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return _number(stream, place + 7, 2), _number(stream, place + 5, 2), stream[place + 4]
        else:
            place += 2 + _number(stream, place + 2, 2)
    return None


def _number(stream: bytes, place: int, size: int) -> int:
    return int.from_bytes(stream[place : place + size], "big")
