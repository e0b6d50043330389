"""Content of the files: films as PNG, JPEG or DICOM, and defective files."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

from medloop.synth.people import Cohort, Scan, generator, original
from medloop.synth.phantom import render

if TYPE_CHECKING:
    from medloop.synth.anatomy import Pixels


def content_of(scan: Scan, cohort: Cohort) -> bytes:
    """Return the bytes of a file, defective for some kinds of scans."""
    if scan.kind == "empty":
        return b""
    if scan.kind == "text":
        return b"This file has the name of an image and is none.\n"
    source = original(scan, cohort)
    film = render(source, cohort)
    if scan.kind == "blank":
        film = film * 0 + 0.5
    content = encode(film, source, cohort)
    return content[: len(content) * 2 // 5] if scan.kind == "truncated" else content


def encode(film: Pixels, scan: Scan, cohort: Cohort) -> bytes:
    """Return the bytes of an image file in the scan's format; the film's values are from 0 to 1."""
    import numpy as np
    from PIL import Image

    if scan.form == "dicom":
        return _dicom(film, scan, cohort)
    out = io.BytesIO()
    if scan.form == "png16":
        Image.fromarray(np.round(film * 65535).astype(np.uint16)).save(out, "PNG", compress_level=1)
        return out.getvalue()
    picture = Image.fromarray(np.round(film * 255).astype(np.uint8))
    if scan.form == "jpeg":
        picture.save(out, "JPEG", quality=90)
    else:
        picture.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _uid(cohort: Cohort, *what: object) -> str:
    text = ":".join(map(str, (cohort.seed, cohort.classes, cohort.shift, cohort.reports, *what)))
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:15])}"


def _dicom(film: Pixels, scan: Scan, cohort: Cohort) -> bytes:
    import numpy as np
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

    draw = generator(cohort, "dicom", scan.patient.number, scan.image)
    inverted = draw.random() < 0.3
    slope, intercept = draw.choice(((1, 0), (2, -1024), (0.5, 100)))
    stored = np.round((1 - film if inverted else film) * 4095).astype("<u2")
    who = scan.patient
    image = Dataset()
    image.SOPClassUID = ComputedRadiographyImageStorage
    image.SOPInstanceUID = _uid(cohort, who.name, scan.image)
    image.StudyInstanceUID = _uid(cohort, who.name, scan.image, "study")
    image.SeriesInstanceUID = _uid(cohort, who.name, scan.image, "series")
    image.Modality = "CR"
    image.PatientName = f"SYNTH^{who.name.upper()}"
    image.PatientID, image.PatientSex, image.PatientAge = who.name, who.sex, f"{who.age:03d}Y"
    image.InstitutionName, image.ViewPosition, image.BodyPartExamined = who.site, scan.view, "CHEST"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    image.Rows, image.Columns = film.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.RescaleSlope, image.RescaleIntercept = str(slope), str(intercept)
    image.PixelData = stored.tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    dcmwrite(out, image, enforce_file_format=True)
    return out.getvalue()
