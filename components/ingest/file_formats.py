"""Read every image of a file of any supported format."""

from __future__ import annotations

from collections.abc import Iterator

from components.ingest.volumes import is_volume, read_volume
from components.shared.imaging.image_files import Decoding, Master, decode_images


def read_images(data: bytes, decoding: Decoding) -> Iterator[Master]:
    """Yield the masters of a PNG, JPEG, DICOM or NIfTI file.

    Raise a ValueError before the first master if the file cannot be used.
    """
    return read_volume(data, decoding) if is_volume(data) else decode_images(data, decoding)
