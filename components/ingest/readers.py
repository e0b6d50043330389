"""Every image of a file, whatever kind of file it is."""

from __future__ import annotations

from collections.abc import Iterator

from components.ingest.volumes import is_volume, read_volume
from components.shared.imaging.pixels import Decoding, Master, decode_images


def read(data: bytes, how: Decoding) -> Iterator[Master]:
    """The masters of a PNG, JPEG, DICOM or NIfTI file, told by its content, one after another.

    A ValueError says why a file cannot be used; it comes before the first master or not at all.
    """
    return read_volume(data, how) if is_volume(data) else decode_images(data, how)
