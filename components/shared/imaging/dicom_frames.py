"""Decode frames of DICOM files: apply rescale and window, and show higher attenuation brighter."""

from __future__ import annotations

import io
import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from components.shared.errors import RefusedError
from components.shared.imaging.png_jpeg import MAX_PIXELS, silence_warnings
from components.shared.imaging.views import Pixels
from components.shared.privacy.pseudonyms import FIELDS, read_fields

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_UNPACKED = 2**28
"""Maximum decompressed size of a deflated file in bytes."""
MAX_ELEMENTS = 20_000
"""Maximum number of elements in a header, not counting those within sequences."""
UNPACKED_AT_ONCE = 2**24
"""Number of bytes decompressed at a time."""
ROWS_AT_ONCE = 256
"""Number of rows looked up at a time: an index takes 8 bytes per pixel."""
REMEDY = "export the scan uncompressed, or as JPEG 2000 or JPEG-LS"
UNSUPPORTED = f"the DICOM file uses an unsupported compression, such as video: {REMEDY}"
TRUNCATED = "the DICOM file is truncated"
STREAK = 16
"""Number of consecutive frames that fail to decode after which the rest of a file is skipped."""

_TRANSFORMS = (
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
"""Attributes that transform stored into displayed values; files with several frames may have them per frame."""
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_PALETTE = ("{}{}Descriptor", "{}{}Data", "Segmented{}{}Data")
NEEDED = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PixelPresentation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", *_TRANSFORMS, "LUTDescriptor", "LUTData", *_GROUPS),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(name.format(colour, "PaletteColorLookupTable") for name in _PALETTE for colour in ("Red", "Green", "Blue")),
)
"""Attributes needed to decode pixels. Besides these, only those in pseudonyms.FIELDS are read, at any depth."""
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

Window = tuple[float, float]


def is_dicom(data: bytes) -> bool:
    """Whether a file starts like DICOM, with or without a preamble."""
    has_element = data[:2] in (b"\x02\0", b"\x08\0") and data[3:4] == b"\0"
    return data[128:132] == b"DICM" or (has_element and len(data) > 132)


class UnusableFileError(RefusedError):
    """A file cannot be used; the message quotes nothing of its content."""


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Replace any exception by a ValueError with this text and the exception's class.

    Damaged headers make pydicom raise many kinds of exceptions, and their messages may quote the header.
    """
    try:
        yield
    except (MemoryError, UnusableFileError):
        raise
    except Exception as error:
        raise UnusableFileError(f"{what} ({type(error).__name__})") from None


@dataclass(frozen=True)
class Scan:
    """A DICOM file with the attributes needed to decode its frames."""

    header: dict[str, str]
    dataset: Dataset
    content: bytes
    syntax: str
    frames: int

    def decode_frames(self, numbers: list[int], window: Window) -> Iterator[tuple[int, Pixels | None]]:
        """Yield frames with their pixels; None for a frame that cannot be decoded.

        `window` is a center and a width of rescaled values; with width 0 the file's own window is used.
        """
        tables: dict[Any, Any] = {}
        for frame, values in self._stored_values(numbers):
            pixels = None
            with suppress(UnusableFileError), wrap_errors("the values cannot be rescaled"):
                pixels = None if values is None else self._apply_transform(values, frame, window, tables)
            yield frame, pixels

    def _stored_values(self, numbers: list[int]) -> Iterator[tuple[int, np.ndarray[Any, Any] | None]]:
        """Yield the stored values or colours of frames; None for a frame that fails."""
        pending, failed = list(numbers), 0
        while pending:
            if failed == STREAK:
                yield from ((frame, None) for frame in pending)
                return
            frames = self._decode(list(pending))
            while pending:
                try:
                    values = next(frames)
                except MemoryError:
                    raise
                except Exception:  # decoders fail in many ways, and their messages may quote the header
                    failed += 1
                    yield pending.pop(0), None
                    break
                failed = 0
                yield pending.pop(0), values

    def _decode(self, frames: list[int]) -> Iterator[np.ndarray[Any, Any]]:
        from pydicom.pixels import iter_pixels

        from components.shared.imaging.dicom_codecs import plugin_for

        yield from iter_pixels(
            io.BytesIO(self.content),
            indices=frames,
            decoding_plugin=plugin_for(self.syntax),
            transfer_syntax_uid=self.syntax,
            bits_stored=int(self.dataset.BitsStored),
            samples_per_pixel=int(self.dataset.SamplesPerPixel),
            pixel_representation=int(self.dataset.PixelRepresentation),
            photometric_interpretation=self.dataset.PhotometricInterpretation,
            number_of_frames=self.frames,
        )

    def _apply_transform(
        self, values: np.ndarray[Any, Any], frame: int, window: Window, tables: dict[Any, Any]
    ) -> Pixels:
        if values.ndim == 3:
            shift = max(0, int(self.dataset.BitsStored) - 8)
            return np.asarray(values >> shift if shift else values, dtype=np.uint8)
        # Codecs return 8 bits where these suffice, whatever the header states.
        size = max(values.dtype.itemsize, -(-int(self.dataset.BitsAllocated) // 8))
        values = values.astype(f"{values.dtype.kind}{size}", copy=False)
        transform = _transform(self.dataset, frame)
        lookups = any(name in transform for name in _TRANSFORMS if name.endswith("Sequence"))
        settings = [frame] if lookups else [str(transform.get(name)) for name in _TRANSFORMS]
        key = (values.dtype, lookups, *settings)
        if key not in tables:
            tables.clear()
            tables[key] = self._table(transform, values.dtype, window)
        return _look_up(tables[key], values.view(np.dtype(f"u{values.dtype.itemsize}")))

    def _table(self, transform: Dataset, dtype: np.dtype[Any], window: Window) -> Any:
        """Return the lookup table, of at most 65,536 entries, for stored values."""
        stored = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype)
        if self.dataset.PhotometricInterpretation == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            colours = apply_color_lut(stored, self.dataset)
            return np.asarray(colours >> 8 * (colours.dtype.itemsize - 1), dtype=np.uint8)
        bits = min(int(self.dataset.BitsStored), 8 * dtype.itemsize)
        low = -(2 ** (bits - 1)) if dtype.kind == "i" else 0
        within = (stored >= low) & (stored < low + 2**bits)
        shares = windowed(stored, within, transform, window)
        if self.dataset.PhotometricInterpretation == "MONOCHROME1":
            shares = 1 - shares
        deep, flat = np.rint(shares * 65535).astype(np.uint16), np.rint(shares * 255).astype(np.uint8)
        # Keep 8 stored bits as 8, unless a wide window would merge values.
        return flat if bits <= 8 and len(np.unique(flat[within])) == len(np.unique(deep[within])) else deep


def _look_up(table: Any, values: np.ndarray[Any, Any]) -> Pixels:
    displayed: Pixels = np.empty((*values.shape, *table.shape[1:]), table.dtype)
    for top in range(0, len(values), ROWS_AT_ONCE):
        displayed[top : top + ROWS_AT_ONCE] = table[values[top : top + ROWS_AT_ONCE]]
    return displayed


def windowed(
    stored: np.ndarray[Any, Any], within: np.ndarray[Any, Any], transform: Dataset, window: Window
) -> np.ndarray[Any, Any]:
    """Return the brightness of stored values from 0 to 1; only values `within` occur."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    values = np.asarray(apply_modality_lut(stored, transform), dtype=np.float64)
    center, width, shape = *window, "LINEAR_EXACT"
    if not width and transform.get("VOILUTSequence"):
        displayed = np.asarray(apply_voi(np.rint(values).astype(np.int64), transform), dtype=np.float64)
        return _stretched(displayed, displayed[within])
    if not width:
        center, width = (_first(transform.get(name)) for name in ("WindowCenter", "WindowWidth"))
        shape = str(transform.get("VOILUTFunction") or "LINEAR")
    if width <= 0:
        return _stretched(values, values[within])
    if shape == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if shape == "LINEAR" and width <= 1:
        return np.asarray(values > center - 0.5, dtype=np.float64)
    if shape == "LINEAR":
        center, width = center - 0.5, width - 1
    return np.asarray(np.clip((values - center) / width + 0.5, 0, 1))


def _stretched(values: np.ndarray[Any, Any], possible: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    low, high = float(possible.min()), float(possible.max())
    return np.asarray(np.clip((values - low) / max(high - low, 1e-9), 0, 1))


def _first(value: Any) -> float:
    if value is None or value == "":
        return 0.0
    return float(value if isinstance(value, str | float | int) else value[0])


def _transform(dataset: Dataset, frame: int) -> Dataset:
    """Return a frame's transform; its attributes override shared ones and the header."""
    from pydicom import Dataset

    merged = Dataset()
    merged.set_original_encoding(*dataset.original_encoding)
    merged.PixelRepresentation, merged.BitsStored = dataset.PixelRepresentation, dataset.BitsStored
    sources = [dataset]
    shared, per_frame = (dataset.get(f"{name}FunctionalGroupsSequence") for name in ("Shared", "PerFrame"))
    for group in (shared[0] if shared else None, per_frame[frame] if per_frame and frame < len(per_frame) else None):
        sources += [group[name].value[0] for name in _GROUPS if group is not None and group.get(name)]
    for source in sources:
        for name in _TRANSFORMS:
            if source.get(name) not in (None, ""):
                merged[name] = source[name]
    return merged


def open_scan(data: bytes) -> Scan:
    """Read the header of a DICOM file; its pixels remain compressed."""
    from pydicom import config
    from pydicom.filereader import read_partial
    from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGExtended12Bit, RLELossless

    from components.shared.imaging.dicom_codecs import plugin_for

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes values
    config.settings.reading_validation_mode = config.IGNORE
    silence_warnings()
    with wrap_errors("the DICOM header cannot be read"):
        content, syntax = _unpacked(data)
        stream = io.BytesIO(content)
        dataset = read_partial(
            stream, _counting(lambda tag: tag in _PIXELS), force=True, specific_tags=[*_kept_tags(True)]
        )
        position = stream.tell()
        if not syntax:
            syntax = str(ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian)
        pixel_tag = content[position : position + 4]
        _set_defaults(dataset)
        rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
        bits, frames = int(dataset.BitsAllocated), int(dataset.get("NumberOfFrames") or 1)
        photometric = dataset.PhotometricInterpretation
        compressed = UID(syntax).is_encapsulated
        readable = not compressed or syntax == RLELossless or bool(plugin_for(syntax))
        header = read_fields(dataset)
        del dataset.file_meta, dataset.preamble
        _keep_needed(dataset)
    if not readable:
        raise UnusableFileError(UNSUPPORTED)
    if syntax == JPEGExtended12Bit and dataset.BitsStored != 8:
        raise UnusableFileError(f"lossy JPEG of 12 bits is not supported: {REMEDY}")
    _refuse_unsupported(rows, columns, frames, samples, bits, photometric, pixel_tag)
    available = len(content) - position - (8 if dataset.original_encoding[0] else 12)
    needed = frames * 8 if compressed else frames * -(-rows * columns * samples * bits // 8)
    if photometric == "YBR_FULL_422" and not compressed:
        needed = needed * 2 // 3
    if available < needed:
        raise UnusableFileError(
            f"{TRUNCATED}: {frames:,} frame{'s' * (frames > 1)} of {columns}×{rows} pixels need at least {needed:,} "
            f"bytes, but it has {max(0, available):,}"
        )
    return Scan(header, dataset, content, syntax, frames)


@cache
def _kept_tags(with_header: bool) -> frozenset[int]:
    from pydicom.datadict import tag_for_keyword

    fields = [field.attribute for field in FIELDS.values()] if with_header else []
    return frozenset(tag for keyword in (*NEEDED, *fields) if (tag := tag_for_keyword(keyword)))


def _keep_needed(dataset: Dataset) -> None:
    """Remove all attributes except those in NEEDED, also from sequences."""
    for tag in list(dataset.keys()):
        if tag not in _kept_tags(False):
            del dataset[tag]
        elif dataset.get_item(tag).VR in ("SQ", "UN", None):
            try:
                items = dataset[tag].value if dataset[tag].VR == "SQ" else ()
            except Exception:  # damaged elements raise many kinds of exceptions, and are of no use
                del dataset[tag]
                continue
            for item in items or ():
                _keep_needed(item)


def _counting(last: Callable[[int], bool]) -> Callable[[int, str | None, int], bool]:
    """Return pydicom's callback that stops reading at `last`."""
    elements = 0

    def stop(tag: int, _vr: str | None, _length: int) -> bool:
        nonlocal elements
        elements += 1
        if elements > MAX_ELEMENTS:
            raise UnusableFileError(f"the DICOM header has more than {MAX_ELEMENTS:,} elements: {REMEDY}")
        return last(tag)

    return stop


def _set_defaults(dataset: Dataset) -> None:
    """Set fields that some writers omit to the only value they can have."""
    for name, value in (
        ("SamplesPerPixel", 1),
        ("BitsAllocated", 16),
        ("BitsStored", dataset.get("BitsAllocated") or 16),
        ("PixelRepresentation", 0),
    ):
        if dataset.get(name) in (None, ""):
            setattr(dataset, name, value)
    default = ("MONOCHROME2", "RGB")[int(dataset.SamplesPerPixel) > 1]
    dataset.PhotometricInterpretation = str(dataset.get("PhotometricInterpretation") or default).strip().upper()


def _refuse_unsupported(
    rows: int, columns: int, frames: int, samples: int, bits: int, photometric: str, pixel_tag: bytes
) -> None:
    if pixel_tag not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        raise UnusableFileError("the DICOM file has no image with integer pixels; other types are not supported")
    if rows * columns > MAX_PIXELS:
        raise UnusableFileError(f"the image has {rows * columns:,} pixels; the maximum is {MAX_PIXELS:,}")
    if rows < 1 or columns < 1 or frames < 1:
        raise UnusableFileError(
            f"the DICOM header gives {frames:,} frames of {columns}×{rows} pixels; it needs 1 or more"
        )
    gray = photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    if bits > 16 or (gray and samples != 1) or (photometric in _COLOURS[:1] + _COLOURS[2:] and samples != 3):
        raise UnusableFileError(
            f"the DICOM file has {samples} samples of {bits} bits per pixel; gray or RGB of at most 16 is supported"
        )
    if not gray and photometric not in _COLOURS:
        raise UnusableFileError("the DICOM file's pixel format is unknown; gray, palette, RGB and YBR are supported")


def _unpacked(data: bytes) -> tuple[bytes, str]:
    """Return the inflated file and its transfer syntax, "" if it has none."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    stream = io.BytesIO(data)
    stream.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=_counting(lambda tag: tag >> 16 != 2))
    syntax = str(meta.get("TransferSyntaxUID") or "").strip()
    if syntax != DeflatedExplicitVRLittleEndian:
        return data, syntax
    plain_syntax = ExplicitVRLittleEndian.encode().ljust(len(syntax), b"\0")
    inflated = io.BytesIO()  # grows in place, and returns its content without a copy
    inflated.write(data[: stream.tell()].replace(syntax.encode(), plain_syntax))
    inflate, compressed_part = zlib.decompressobj(-zlib.MAX_WBITS), memoryview(data)[stream.tell() :]
    while not inflate.eof and (part := inflate.decompress(compressed_part, UNPACKED_AT_ONCE)):
        compressed_part = memoryview(inflate.unconsumed_tail)
        inflated.write(part)
        if inflated.tell() > MAX_UNPACKED:
            raise UnusableFileError(f"the DICOM file decompresses to more than the maximum of {MAX_UNPACKED:,} bytes")
    if not inflate.eof:
        raise UnusableFileError(TRUNCATED)
    return inflated.getvalue(), str(ExplicitVRLittleEndian)
