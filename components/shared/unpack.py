"""A program that decompresses frames with GDCM, which a damaged frame can bring down: so it has a process to itself.

It answers requests on its standard input until that ends: two lengths, a JSON object that describes the frame, and the
frame. The answer is a length and the pixels; 0 says that they cannot be had.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from typing import Any

LENGTHS = struct.Struct("<II")
LENGTH = struct.Struct("<Q")
MEMORY = 6 * 2**30
"""Bytes of memory beyond which the program must fail."""


def unpacked(stream: bytes, about: dict[str, Any]) -> bytes:
    """The pixels of a compressed frame."""
    import gdcm

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(stream)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((about["columns"], about["rows"], 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(about["photometric"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if about["samples"] > 1:
        image.SetPlanarConfiguration(about["planar"])
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(about["syntax"])))
    bits = about["bits"]
    image.SetPixelFormat(gdcm.PixelFormat(about["samples"], about["allocated"], bits, bits - 1, about["signed"]))
    pixels = image.GetBuffer()  # bytes, that SWIG gives as text
    return pixels.encode("utf-8", "surrogateescape") if pixels else b""


def main() -> None:
    """Answer requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(LENGTHS.size):
        described, size = LENGTHS.unpack(head)
        about = json.loads(source.read(described))
        try:
            pixels = unpacked(source.read(size), about)
        except (MemoryError, TypeError, ValueError, RuntimeError):
            pixels = b""
        target.write(LENGTH.pack(len(pixels)) + pixels)
        target.flush()


if __name__ == "__main__":
    main()
