"""Decompresses the frames of DICOM files, as a plug-in of pydicom: JPEG, JPEG-LS and JPEG 2000."""

from __future__ import annotations

import atexit
import io
import json
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
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

from components.shared.unpack import LENGTH, LENGTHS

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

NAME = "medloop"
SECONDS = 60.0
"""What takes longer to decompress is given up."""
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
        raise ValueError("the compressed frame has another size than the header says")
    if runner.transfer_syntax in _WAVELETS:
        return _wavelets(source, runner)
    if runner.transfer_syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
        return _lossy(source, found[2], runner)
    bits = runner.bits_stored
    if runner.transfer_syntax in (JPEGLSLossless, JPEGLSNearLossless):
        bits = found[2]
        if bits in (6, 7):
            raise ValueError("GDCM gives wrong pixels for JPEG-LS of 6 and 7 bits")
        runner.set_option("planar_configuration", 0)
        runner.set_option("bits_allocated", 8 if bits <= 8 else 16)
    about = {
        "columns": runner.columns,
        "rows": runner.rows,
        "samples": runner.samples_per_pixel,
        "planar": runner.planar_configuration if runner.samples_per_pixel > 1 else 0,
        "allocated": runner.bits_allocated,
        "bits": bits,
        "signed": runner.pixel_representation,
        "photometric": str(runner.photometric_interpretation),
        "syntax": str.__str__(runner.transfer_syntax),
    }
    return _gdcm.unpacked(source, about)


class Process:
    """GDCM in a process of its own, begun when it is first needed, and again after a frame that it did not survive."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None
        self._one = threading.Lock()
        atexit.register(self.close)

    def unpacked(self, stream: bytes, about: dict[str, Any]) -> bytes:
        """The pixels of a compressed frame; a ValueError where there are none."""
        described = json.dumps(about).encode()
        with self._one:
            if self._running and self._running.poll() is not None:
                self._end()
            running = self._running = self._running or self._begun()
            assert running.stdin
            assert running.stdout
            watch = threading.Timer(SECONDS, running.kill)
            watch.start()
            try:
                running.stdin.write(LENGTHS.pack(len(described), len(stream)) + described + stream)
                running.stdin.flush()
                head = running.stdout.read(LENGTH.size)
                size = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else 0
                pixels = running.stdout.read(size)
            except BrokenPipeError:
                head = pixels = b""
            finally:
                watch.cancel()
            if not head or len(pixels) < size:
                self._end()
        if not pixels:
            raise ValueError("GDCM cannot decompress the frame")
        return pixels

    def _begun(self) -> subprocess.Popen[bytes]:
        # Not in this file's folder (-P), whose modules may have the names of others.
        command = [sys.executable, "-P", str(Path(__file__).with_name("unpack.py"))]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def _end(self) -> None:
        running, self._running = self._running, None
        if running:
            running.kill()
            with suppress(BrokenPipeError):
                running.communicate()

    def close(self) -> None:
        """End the process."""
        with self._one:
            self._end()


_gdcm = Process()


def _lossy(source: bytes, bits: int, runner: DecodeRunner) -> bytes:
    if bits != 8:
        raise ValueError("lossy JPEG of 12 bits is not read")  # GDCM turns its whitest pixels black
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
