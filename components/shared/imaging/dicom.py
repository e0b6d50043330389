"""Frames of DICOM files: stored values through rescale and window, bright where there is more attenuation."""

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
from components.shared.imaging.header import FIELDS, passing
from components.shared.imaging.pictures import MAX_PIXELS, quiet
from components.shared.imaging.views import Pixels

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_UNPACKED = 2**28
"""A deflated file may unpack to so many bytes."""
MAX_ELEMENTS = 20_000
"""A header with more elements, not counting those within sequences, is refused."""
UNPACKED_AT_ONCE = 2**24
"""Bytes that are unpacked at a time."""
ROWS_AT_ONCE = 256
"""Rows that are looked up at a time: an index takes 8 bytes a pixel."""
REMEDY = "export the scan uncompressed, or as JPEG 2000 or JPEG-LS"
UNREAD = f"the DICOM file is compressed in a way that is not read, such as video: {REMEDY}"
CUT_SHORT = "the DICOM file is cut short"
STREAK = 16
"""After so many frames in a row that cannot be decoded, the rest of a file is not tried."""

_TRANSFORMS = (
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
)
"""What stands between stored values and what is seen; of files with several frames it may stand with each frame."""
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_PALETTE = ("{}{}Descriptor", "{}{}Data", "Segmented{}{}Data")
NEEDED = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PixelPresentation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", *_TRANSFORMS, "LUTDescriptor", "LUTData", *_GROUPS),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(name.format(colour, "PaletteColorLookupTable") for name in _PALETTE for colour in ("Red", "Green", "Blue")),
)
"""The attributes with which pixels are decoded. Besides those in header.FIELDS no others are read, at any depth."""
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

Window = tuple[float, float]


def is_dicom(data: bytes) -> bool:
    """Whether a file's content begins like DICOM's, with its preamble or, in older files, without."""
    begins = data[:2] in (b"\x02\0", b"\x08\0") and data[3:4] == b"\0"
    return data[128:132] == b"DICM" or (begins and len(data) > 132)


class Unusable(RefusedError):  # noqa: N818 - it is what it says, and callers see a ValueError
    """Why a file cannot be used, in words that quote nothing of it."""


@contextmanager
def careful(what: str) -> Iterator[None]:
    """Turn whatever goes wrong into a ValueError of these words and the error's kind.

    A damaged header breaks pydicom in many ways that all mean the same, and its words may quote the header.
    """
    try:
        yield
    except (MemoryError, Unusable):
        raise
    except Exception as error:
        raise Unusable(f"{what} ({type(error).__name__})") from None


@dataclass(frozen=True)
class Scan:
    """A DICOM file: its header's fields, the attributes that its pixels are decoded with, and the way to its frames."""

    header: dict[str, str]
    dataset: Dataset
    content: bytes
    syntax: str
    frames: int

    def pictures(self, chosen: list[int], window: Window) -> Iterator[tuple[int, Pixels | None]]:
        """These frames, gray of 8 or 16 bits or with three channels of 8; None is one that cannot be decoded.

        `window` is a center and a width on rescaled values; without a width the file's own is taken.
        """
        tables: dict[Any, Any] = {}
        for frame, values in self._values(chosen):
            picture = None
            with suppress(Unusable), careful("the values cannot be rescaled"):
                picture = None if values is None else self._seen(values, frame, window, tables)
            yield frame, picture

    def _values(self, chosen: list[int]) -> Iterator[tuple[int, np.ndarray[Any, Any] | None]]:
        """The stored values of these frames, or colours; what fails is passed over, not what follows."""
        waiting, failed = list(chosen), 0
        while waiting:
            if failed == STREAK:
                yield from ((frame, None) for frame in waiting)
                return
            frames = self._decoded(list(waiting))
            while waiting:
                try:
                    values = next(frames)
                except MemoryError:
                    raise
                except Exception:  # decoders fail in many ways, and their words may quote the header
                    failed += 1
                    yield waiting.pop(0), None
                    break
                failed = 0
                yield waiting.pop(0), values

    def _decoded(self, frames: list[int]) -> Iterator[np.ndarray[Any, Any]]:
        from pydicom.pixels import iter_pixels

        from components.shared.imaging.codecs import plugin_for

        about = self.dataset
        yield from iter_pixels(
            io.BytesIO(self.content),
            indices=frames,
            decoding_plugin=plugin_for(self.syntax),
            transfer_syntax_uid=self.syntax,
            bits_stored=int(about.BitsStored),
            samples_per_pixel=int(about.SamplesPerPixel),
            pixel_representation=int(about.PixelRepresentation),
            photometric_interpretation=about.PhotometricInterpretation,
            number_of_frames=self.frames,
        )

    def _seen(self, values: np.ndarray[Any, Any], frame: int, window: Window, tables: dict[Any, Any]) -> Pixels:
        if values.ndim == 3:
            shift = max(0, int(self.dataset.BitsStored) - 8)
            return np.asarray(values >> shift if shift else values, dtype=np.uint8)
        # A codec gives 8 bits where they suffice, whatever the header says.
        size = max(values.dtype.itemsize, -(-int(self.dataset.BitsAllocated) // 8))
        values = values.astype(f"{values.dtype.kind}{size}", copy=False)
        transform = _transform(self.dataset, frame)
        lookups = any(name in transform for name in _TRANSFORMS if name.endswith("Sequence"))
        settings = [frame] if lookups else [str(transform.get(name)) for name in _TRANSFORMS]
        key = (values.dtype, lookups, *settings)
        if key not in tables:
            tables.clear()
            tables[key] = self._table(transform, values.dtype, window)
        return _looked_up(tables[key], values.view(np.dtype(f"u{values.dtype.itemsize}")))

    def _table(self, transform: Dataset, kind: np.dtype[Any], window: Window) -> Any:
        """What each stored value looks like: at most 65,536 of them, so every image is but looked up in it."""
        stored = np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind)
        if self.dataset.PhotometricInterpretation == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            colours = apply_color_lut(stored, self.dataset)
            return np.asarray(colours >> 8 * (colours.dtype.itemsize - 1), dtype=np.uint8)
        bits = min(int(self.dataset.BitsStored), 8 * kind.itemsize)
        low = -(2 ** (bits - 1)) if kind.kind == "i" else 0
        within = (stored >= low) & (stored < low + 2**bits)
        shares = windowed(stored, within, transform, window)
        if self.dataset.PhotometricInterpretation == "MONOCHROME1":
            shares = 1 - shares
        deep, flat = np.rint(shares * 65535).astype(np.uint16), np.rint(shares * 255).astype(np.uint8)
        # 8 stored bits stay 8, unless a wide window would merge some.
        return flat if bits <= 8 and len(np.unique(flat[within])) == len(np.unique(deep[within])) else deep


def _looked_up(table: Any, values: np.ndarray[Any, Any]) -> Pixels:
    seen: Pixels = np.empty((*values.shape, *table.shape[1:]), table.dtype)
    for top in range(0, len(values), ROWS_AT_ONCE):
        seen[top : top + ROWS_AT_ONCE] = table[values[top : top + ROWS_AT_ONCE]]
    return seen


def windowed(
    stored: np.ndarray[Any, Any], within: np.ndarray[Any, Any], transform: Dataset, window: Window
) -> np.ndarray[Any, Any]:
    """How bright stored values are, from 0 to 1, where only those `within` occur."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    values = np.asarray(apply_modality_lut(stored, transform), dtype=np.float64)
    center, width, shape = *window, "LINEAR_EXACT"
    if not width and transform.get("VOILUTSequence"):
        seen = np.asarray(apply_voi(np.rint(values).astype(np.int64), transform), dtype=np.float64)
        return _stretched(seen, seen[within])
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
    """What is said of a frame's values: with the frame itself, for all frames, or in the header."""
    from pydicom import Dataset

    found = Dataset()
    found.set_original_encoding(*dataset.original_encoding)
    found.PixelRepresentation, found.BitsStored = dataset.PixelRepresentation, dataset.BitsStored
    places = [dataset]
    shared, single = (dataset.get(f"{name}FunctionalGroupsSequence") for name in ("Shared", "PerFrame"))
    for group in (shared[0] if shared else None, single[frame] if single and frame < len(single) else None):
        places += [group[name].value[0] for name in _GROUPS if group is not None and group.get(name)]
    for place in places:
        for name in _TRANSFORMS:
            if place.get(name) not in (None, ""):
                found[name] = place[name]
    return found


def open_scan(data: bytes) -> Scan:
    """The DICOM file with these bytes, its header read and its pixels still packed."""
    from pydicom import config
    from pydicom.filereader import read_partial
    from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGExtended12Bit, RLELossless

    from components.shared.imaging.codecs import plugin_for

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes values
    config.settings.reading_validation_mode = config.IGNORE
    quiet()
    with careful("the DICOM header cannot be read"):
        content, syntax = _unpacked(data)
        read = io.BytesIO(content)
        dataset = read_partial(read, _counting(lambda tag: tag in _PIXELS), force=True, specific_tags=[*_tags(True)])
        place = read.tell()
        if not syntax:
            syntax = str(ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian)
        held = content[place : place + 4]
        _complete(dataset)
        rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
        bits, frames = int(dataset.BitsAllocated), int(dataset.get("NumberOfFrames") or 1)
        photometric = dataset.PhotometricInterpretation
        compressed = UID(syntax).is_encapsulated
        readable = not compressed or syntax == RLELossless or bool(plugin_for(syntax))
        header = passing(dataset)
        del dataset.file_meta, dataset.preamble
        _keep_needed(dataset)
    if not readable:
        raise Unusable(UNREAD)
    if syntax == JPEGExtended12Bit and dataset.BitsStored != 8:
        raise Unusable(f"lossy JPEG of 12 bits is not read: {REMEDY}")
    _refuse(rows, columns, frames, samples, bits, photometric, held)
    room = len(content) - place - (8 if dataset.original_encoding[0] else 12)
    needs = frames * 8 if compressed else frames * -(-rows * columns * samples * bits // 8)
    if photometric == "YBR_FULL_422" and not compressed:
        needs = needs * 2 // 3
    if room < needs:
        raise Unusable(
            f"{CUT_SHORT}: {frames:,} frame{'s' * (frames > 1)} of {columns}×{rows} pixels need at "
            f"least {needs:,} bytes, and it has {max(0, room):,}"
        )
    return Scan(header, dataset, content, syntax, frames)


@cache
def _tags(with_header: bool) -> frozenset[int]:
    from pydicom.datadict import tag_for_keyword

    fields = [field.attribute for field in FIELDS.values()] if with_header else []
    return frozenset(tag for keyword in (*NEEDED, *fields) if (tag := tag_for_keyword(keyword)))


def _keep_needed(dataset: Dataset) -> None:
    """Remove every attribute but those in NEEDED, also from the items of sequences, which pydicom reads whole."""
    for tag in list(dataset.keys()):
        if tag not in _tags(False):
            del dataset[tag]
        elif dataset.get_item(tag).VR in ("SQ", "UN", None):
            try:
                items = dataset[tag].value if dataset[tag].VR == "SQ" else ()
            except Exception:  # a damaged element breaks pydicom in many ways, and nothing can be decoded with it
                del dataset[tag]
                continue
            for item in items or ():
                _keep_needed(item)


def _counting(last: Callable[[int], bool]) -> Callable[[int, str | None, int], bool]:
    """Return what pydicom calls before each element: whether to stop there. Too many elements are refused."""
    elements = 0

    def stop(tag: int, _vr: str | None, _length: int) -> bool:
        nonlocal elements
        elements += 1
        if elements > MAX_ELEMENTS:
            raise Unusable(f"the DICOM header has more than {MAX_ELEMENTS:,} elements, and no more are read: {REMEDY}")
        return last(tag)

    return stop


def _complete(dataset: Dataset) -> None:
    """Give the fields that some writers leave out the value that they must mean."""
    for name, value in (
        ("SamplesPerPixel", 1),
        ("BitsAllocated", 16),
        ("BitsStored", dataset.get("BitsAllocated") or 16),
        ("PixelRepresentation", 0),
    ):
        if dataset.get(name) in (None, ""):
            setattr(dataset, name, value)
    kind = str(dataset.get("PhotometricInterpretation") or ("MONOCHROME2", "RGB")[int(dataset.SamplesPerPixel) > 1])
    dataset.PhotometricInterpretation = kind.strip().upper()


def _refuse(rows: int, columns: int, frames: int, samples: int, bits: int, photometric: str, held: bytes) -> None:
    """A ValueError for what is no image that can be read."""
    if held not in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):
        raise Unusable("the DICOM file holds no image of whole numbers, and only those are read")
    if rows * columns > MAX_PIXELS:
        raise Unusable(f"the image has {rows * columns:,} pixels; at most {MAX_PIXELS:,}")
    if rows < 1 or columns < 1 or frames < 1:
        raise Unusable(f"the DICOM file claims {frames:,} frames of {columns}×{rows} pixels, which is no image")
    gray = photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    if bits > 16 or (gray and samples != 1) or (photometric in _COLOURS[:1] + _COLOURS[2:] and samples != 3):
        raise Unusable(
            f"the DICOM file has {samples} samples of {bits} bits a pixel; gray or RGB of at most 16 is read"
        )
    if not gray and photometric not in _COLOURS:
        raise Unusable("the DICOM file has pixels of an unknown kind; gray, palette, RGB and YBR are read")


def _unpacked(data: bytes) -> tuple[bytes, str]:
    """The file with its dataset unpacked where it is deflated, and its transfer syntax where it names one."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    read = io.BytesIO(data)
    read.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(read, False, True, stop_when=_counting(lambda tag: tag >> 16 != 2))
    syntax = str(meta.get("TransferSyntaxUID") or "").strip()
    if syntax != DeflatedExplicitVRLittleEndian:
        return data, syntax
    plain = ExplicitVRLittleEndian.encode().ljust(len(syntax), b"\0")
    whole = io.BytesIO()  # it grows in place, and gives its content without a copy
    whole.write(data[: read.tell()].replace(syntax.encode(), plain))
    inflate, packed = zlib.decompressobj(-zlib.MAX_WBITS), memoryview(data)[read.tell() :]
    while not inflate.eof and (part := inflate.decompress(packed, UNPACKED_AT_ONCE)):
        packed = memoryview(inflate.unconsumed_tail)
        whole.write(part)
        if whole.tell() > MAX_UNPACKED:
            raise Unusable(f"the DICOM file unpacks to more than {MAX_UNPACKED:,} bytes")
    if not inflate.eof:
        raise Unusable(CUT_SHORT)
    return whole.getvalue(), str(ExplicitVRLittleEndian)
