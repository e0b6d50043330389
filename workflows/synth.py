"""Synthetic chest-like scans: data with which the whole loop can be tried where no real scan may be used.

Nothing here is a patient. Every value is drawn from the seed, so equal arguments give equal bytes, and a larger number
of patients gives the same first patients and then new ones: that is how "new scans arrive" is tried out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.floating[Any]]
    Generator = np.random.Generator

MARKER = "synth.json"
TABLE = "patients.csv"
CLASSES = {2: ("NORMAL", "PNEUMONIA"), 3: ("NORMAL", "BACTERIA", "VIRUS")}
IMAGES_PER_PATIENT = ((1, 2, 3, 4, 5), (15, 25, 30, 20, 10))
ENDINGS = {"png": ".png", "png16": ".png", "jpeg": ".jpeg", "dicom": ".dcm"}

# Each spoilt file belongs to one patient in so many; the first ones come early, so small sets have them too.
SPOILT_EVERY = 120
SPOILT = {3: "truncated", 4: "repeat", 5: "text", 6: "contrary", 7: "empty", 8: "borrowed", 9: "blank"}
CORRUPT = ("truncated", "text", "empty", "blank")

# The share of patients whose images say nothing of their class when reports are written. It holds images alone near
# 0.85 accuracy, so that reading the text is worth something.
UNCLEAR_SHARE = 0.20
# What the other patients' images show is then plainer: where much misleads and the rest is faint, a small network
# learns nothing.
PLAINER = 1.5

# What is found, what is found otherwise, and how often the former in healthy, bacterial and viral patients.
FACTS = (
    ("Fever of {high:.1f} C.", "Temperature {low:.1f} C.", (0.10, 0.85, 0.78)),
    ("Crackles on auscultation.", "Chest clear on auscultation.", (0.10, 0.85, 0.72)),
    ("White count {raised:.1f}.", "White count {usual:.1f}.", (0.12, 0.88, 0.15)),
    ("C-reactive protein {strong:.0f}.", "C-reactive protein {weak:.0f}.", (0.12, 0.90, 0.35)),
    ("Cough for {days} days.", "No cough.", (0.25, 0.88, 0.88)),
    ("Short of breath at rest.", "Breathing comfortably.", (0.12, 0.65, 0.65)),
    ("Others in the household are ill.", "No ill contacts.", (0.15, 0.20, 0.85)),
)
FACTS_TOLD = 3


@dataclass(frozen=True)
class Patient:
    """One invented person: who they are, what they have, and what their images show."""

    number: int
    name: str
    label: str
    finding: str
    sex: str
    age: int
    site: str
    images: int
    recovers_after: int


@dataclass(frozen=True)
class Scan:
    """One file to be written: where it goes, what it shows, and how it is stored."""

    path: str
    patient: Patient
    image: int
    finding: str
    view: str
    form: str
    text: str
    kind: str = "scan"


class World(NamedTuple):
    """What all patients of one directory share."""

    classes: int
    seed: int
    shift: float
    reports: bool

    @property
    def hospital(self) -> int:
        """Gives 0 for the first hospital and 1 for the second, whatever the size of the shift."""
        return int(self.shift > 0)


def synth(
    directory: Path, *, patients: int = 240, classes: int = 2, seed: int = 7, shift: float = 0.0, reports: bool = False
) -> dict[str, int]:
    """Gives a directory of synthetic scans and the number of what is in it.

    Files that an earlier call with the same arguments left stay as they are, so more patients can be added later.
    """
    directory = Path(directory)
    world = World(classes, seed, shift, reports)
    _check_arguments(patients, world)
    _check_directory(directory, patients, world)
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / MARKER, _marker(patients, world))
    scans = [scan for number in range(1, patients + 1) for scan in plan(number, world)]
    for label in CLASSES[classes]:
        (directory / label).mkdir(exist_ok=True)
    for scan in scans:
        target = directory / scan.path
        if not target.exists():
            _write(target, _content(scan, world))
    _write(directory / TABLE, _table(scans, reports))
    return _counts(scans, patients, classes)


def _check_arguments(patients: int, world: World) -> None:
    if patients < 1:
        raise ValueError(f"patients is {patients}, but at least 1 is needed: ask for 1 or more (240 by default)")
    if world.classes not in CLASSES:
        raise ValueError(
            f"classes is {world.classes}, but only 2 (normal, pneumonia) or 3 (normal, bacteria, virus) can be drawn: "
            "choose 2 or 3"
        )
    if not 0 <= world.shift <= 2:
        raise ValueError(f"shift is {world.shift}, but must lie from 0 (the first hospital) to 2: choose a value there")
    if world.seed < 0:
        raise ValueError(f"seed is {world.seed}, but must be 0 or more: choose a whole number from 0")


def _check_directory(directory: Path, patients: int, world: World) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"{directory} is a file, but scans need a directory: name another path")
    marker = directory / MARKER
    if not marker.exists():
        if any(directory.iterdir()):
            raise ValueError(
                f"{directory} holds other files and no {MARKER}, and synthetic scans are never mixed with others: "
                "name an empty or a new directory"
            )
        return
    held = _read_marker(marker)
    for name, asked in world._asdict().items():
        if held.get(name) != asked:
            raise ValueError(
                f"{directory} was made with {name} {held.get(name)}, but {name} {asked} was asked for: "
                f"use {name} {held.get(name)} there, or name another directory"
            )
    if patients < held["patients"]:
        raise ValueError(
            f"{directory} already holds {held['patients']} patients, but {patients} were asked for, and none is ever "
            f"removed: ask for {held['patients']} or more, or name another directory"
        )


def _read_marker(marker: Path) -> dict[str, Any]:
    try:
        held = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{marker} is not readable as JSON: name another directory") from error
    if not isinstance(held, dict) or held.get("schema") != 1 or not isinstance(held.get("patients"), int):
        raise ValueError(f"{marker} is not of schema 1, the only one known here: name another directory")
    return held


def _marker(patients: int, world: World) -> bytes:
    content = {"schema": 1, "seed": world.seed, "patients": patients, "classes": world.classes, "shift": world.shift}
    return (json.dumps(content | {"reports": world.reports}, indent=2) + "\n").encode()


def _write(target: Path, content: bytes) -> None:
    # A file is there whole or not at all, so that an interrupted call can be repeated; what is the same keeps its time.
    if target.exists() and target.read_bytes() == content:
        return
    partial = target.with_name(f".{target.name}.partial")
    partial.write_bytes(content)
    partial.replace(target)


def _table(scans: list[Scan], reports: bool) -> bytes:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["file", "patient_id", "sex", "age", "site", "view", *(["text"] if reports else [])])
    for scan in scans:
        if scan.kind in CORRUPT and scan.kind != "blank":
            continue
        who = scan.patient
        row = [scan.path, who.name, who.sex, who.age, who.site, scan.view, *([scan.text] if reports else [])]
        writer.writerow(row)
    return lines.getvalue().encode()


def _counts(scans: list[Scan], patients: int, classes: int) -> dict[str, int]:
    kinds = [scan.kind for scan in scans]
    by_class = {label: sum(scan.path.startswith(f"{label}/") for scan in scans) for label in CLASSES[classes]}
    return {
        "files": len(scans),
        "patients": patients,
        "corrupt": sum(kind in CORRUPT for kind in kinds),
        "duplicates": kinds.count("repeat") + kinds.count("borrowed"),
        "contrary": kinds.count("contrary"),
        **by_class,
    }


# --- Who comes: drawn without NumPy, so that the plan of a directory is known before a pixel is drawn ---


def _draw(world: World, *what: object) -> Random:
    return Random(":".join(map(str, (world.seed, world.hospital, world.classes, *what))))  # noqa: S311


def _label(number: int, world: World) -> str:
    # Labels are dealt in shuffled blocks, so that every class is there in small sets too.
    names = CLASSES[world.classes]
    block = list(names) * (5 if world.classes == 2 else 3)
    _draw(world, "block", (number - 1) // len(block)).shuffle(block)
    return block[(number - 1) % len(block)]


def person(number: int, world: World) -> Patient:
    """Gives the patient of a number; other numbers have no say in it."""
    draw = _draw(world, "patient", number)
    label = _label(number, world)
    images = draw.choices(*IMAGES_PER_PATIENT)[0]
    recovers = draw.randint(1, 3) if draw.random() < 0.02 and label != "NORMAL" else images
    shown = label
    if draw.random() < UNCLEAR_SHARE and world.reports:
        shown = draw.choice(CLASSES[world.classes])
    sites = (("NORTH", "SOUTH"), ("HARBOUR", "HILL"))[world.hospital]
    return Patient(
        number=number,
        name=f"{('person', 'east')[world.hospital]}{number:04d}",
        label=label,
        finding=_finding(shown, draw),
        sex=draw.choice("FM"),
        age=min(92, max(1, round(draw.gauss(48, 20)))),
        site=draw.choices(sites, (65, 35))[0],
        images=images,
        recovers_after=recovers,
    )


def _finding(label: str, draw: Random) -> str:
    diffuse = draw.random() < 0.3
    if label == "PNEUMONIA":
        return "diffuse" if diffuse else "focal"
    return {"NORMAL": "none", "BACTERIA": "focal", "VIRUS": "diffuse"}[label]


def plan(number: int, world: World) -> list[Scan]:
    """Gives the files of one patient, the spoilt one last where there is one."""
    who = person(number, world)
    scans = [_scan(who, image, world) for image in range(1, who.images + 1)]
    kind = SPOILT.get(number % SPOILT_EVERY)
    if kind is not None:
        scans.append(_spoilt(kind, who, scans[0], world))
    return scans


def _scan(who: Patient, image: int, world: World) -> Scan:
    draw = _draw(world, "image", who.number, image)
    ill = image <= who.recovers_after
    # The first image is never a DICOM: it may be copied to another patient, whose name a DICOM would contradict.
    form = draw.choices(("png", "png16", "jpeg", "dicom"), (30, 15, 25, 0 if image == 1 else 45))[0]
    label = who.label if ill else "NORMAL"
    return Scan(
        path=f"{label}/{who.name}_{image}{ENDINGS[form]}",
        patient=who,
        image=image,
        finding=who.finding if ill else "none",
        view=draw.choices(("PA", "AP"), (65, 35))[0],
        form=form,
        text=_text(who, label, image, world) if world.reports else "",
    )


def _spoilt(kind: str, who: Patient, first: Scan, world: World) -> Scan:
    image, source, label = who.images + 1, first, who.label
    form = {"truncated": "jpeg", "text": "png", "empty": "jpeg", "blank": "png"}.get(kind, first.form)
    if kind == "borrowed":
        source = _alike(who, world)
        form = source.form
    if kind == "contrary":
        label = next(name for name in CLASSES[world.classes] if name != first.path.split("/")[0])
    path = f"{label}/{who.name}_{image}{ENDINGS[form]}"
    # Of a copy the finding, the view and the number tell what is drawn; path and patient tell where it goes.
    return Scan(path, who, image, source.finding, source.view, form, source.text, kind)


def _alike(who: Patient, world: World) -> Scan:
    """Gives the first image of the nearest earlier patient of the same class."""
    number = next(number for number in range(who.number - 1, 0, -1) if _label(number, world) == who.label)
    return _scan(person(number, world), 1, world)


def _text(who: Patient, label: str, image: int, world: World) -> str:
    facts = _draw(world, "facts", who.number)
    kind = {"NORMAL": 0, "BACTERIA": 1, "VIRUS": 2, "PNEUMONIA": facts.choice((1, 2))}[label]
    told = [yes if facts.random() < share[kind] else no for yes, no, share in FACTS]
    draw = _draw(world, "text", who.number, image)
    values = {
        "high": draw.uniform(38.0, 40.1), "low": draw.uniform(36.2, 37.4), "raised": draw.uniform(12.5, 22),
        "usual": draw.uniform(4.5, 9.5), "strong": draw.uniform(60, 240), "weak": draw.uniform(1, 25),
        "days": draw.randint(2, 9),
    }  # fmt: skip
    return " ".join(fact.format(**values) for fact in draw.sample(told, FACTS_TOLD))


# --- What a file holds ---


def _content(scan: Scan, world: World) -> bytes:
    if scan.kind == "empty":
        return b""
    if scan.kind == "text":
        return b"This file has the name of an image and is none.\n"
    source = scan
    if scan.kind in ("repeat", "contrary"):
        source = _scan(scan.patient, 1, world)
    if scan.kind == "borrowed":
        source = _alike(scan.patient, world)
    film = render(source, world)
    if scan.kind == "blank":
        film = film * 0 + 0.5
    content = encode(film, source, world)
    return content[: len(content) * 2 // 5] if scan.kind == "truncated" else content


def encode(film: Pixels, scan: Scan, world: World) -> bytes:
    """Gives the bytes of an image file in the form that the scan asks for; the film's values lie from 0 to 1."""
    import numpy as np
    from PIL import Image

    if scan.form == "dicom":
        return _dicom(film, scan, world)
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


def _uid(world: World, *what: object) -> str:
    text = ":".join(map(str, (world.seed, world.classes, world.shift, world.reports, *what)))
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:15])}"


def _dicom(film: Pixels, scan: Scan, world: World) -> bytes:
    import numpy as np
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

    draw = _draw(world, "dicom", scan.patient.number, scan.image)
    inverted = draw.random() < 0.3
    slope, intercept = draw.choice(((1, 0), (2, -1024), (0.5, 100)))
    stored = np.round((1 - film if inverted else film) * 4095).astype("<u2")
    who = scan.patient
    image = Dataset()
    image.SOPClassUID = ComputedRadiographyImageStorage
    image.SOPInstanceUID = _uid(world, who.name, scan.image)
    image.StudyInstanceUID = _uid(world, who.name, scan.image, "study")
    image.SeriesInstanceUID = _uid(world, who.name, scan.image, "series")
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


# --- What an image shows ---


class Frame(NamedTuple):
    """Where each pixel lies in the chest: across (left to right) and along (top to bottom), the chest from -1 to 1."""

    across: Pixels
    along: Pixels


def render(scan: Scan, world: World) -> Pixels:
    """Gives the film of a scan, values from 0 (black) to 1 (white), as the hospital's machine would show it."""
    import numpy as np

    seeds = [world.seed, world.hospital, world.classes, scan.patient.number]
    body = np.random.default_rng(seeds)
    shot = np.random.default_rng([*seeds, scan.image])
    frame = _frame(shot)
    film, lungs = _anatomy(frame, body, shot, scan.view)
    film += (PLAINER if world.reports else 1.0) * _opacity(frame, lungs, scan.finding, body, shot)
    film += _haze(frame, lungs, shot)
    film = _balance(film, lungs, shot)
    film = _objects(film, frame, shot)
    film = _expose(film, shot, scan.patient.site)
    if world.shift > 0:
        film = _second_hospital(film, world.shift, shot)
    elif shot.random() < 0.35:
        film = _framed(film, 0.04, bool(shot.random() < 0.5), shot)
    return np.clip(film, 0, 1)


def _frame(shot: Generator) -> Frame:
    import numpy as np

    height = int(shot.integers(180, 321))
    width = int(np.clip(height * shot.uniform(0.82, 1.22), 180, 320))
    angle, zoom = shot.normal(0, 0.05), shot.uniform(0.92, 1.12)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] - np.float32(shot.normal(0, 0.06))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - np.float32(shot.normal(0, 0.06))
    cosine, sine = np.float32(np.cos(angle) * zoom), np.float32(np.sin(angle) * zoom)
    return Frame(x * cosine + y * sine, y * cosine - x * sine)


def _bump(frame: Frame, across: float, along: float, wide: float, tall: float) -> Pixels:
    """Gives a soft spot: 1 in its middle, 0.37 at the given half-widths."""
    import numpy as np

    one = (frame.across - np.float32(across)) / np.float32(wide)
    two = (frame.along - np.float32(along)) / np.float32(tall)
    spot: Pixels = np.exp(-(one * one + two * two))
    return spot


def _edge(depth: Pixels, sharpness: float) -> Pixels:
    """Gives 1 well inside (depth above 0), 0 well outside, and a soft edge between."""
    import numpy as np

    inside: Pixels = 1 / (1 + np.exp(np.clip(-depth * np.float32(sharpness), -30, 30)))
    return inside


def _field(shot: Generator, shape: tuple[int, ...], cells: int) -> Pixels:
    """Gives a smooth random texture of mean 0 and deviation near 1, with so many grains across."""
    import numpy as np
    from PIL import Image

    coarse = Image.fromarray(shot.standard_normal((cells, cells), dtype=np.float32) * np.float32(1.5))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float32)


def _anatomy(frame: Frame, body: Generator, shot: Generator, view: str) -> tuple[Pixels, Pixels]:
    """Gives the healthy film and how much each pixel belongs to a lung."""
    import numpy as np

    across, along = frame
    shoulder = 0.22 * _edge(-0.66 - 0.25 * np.abs(across) - along, 12)
    trunk = _edge(np.float32(body.uniform(0.92, 1.0)) - np.abs(across) * (1 + shoulder), 25)
    film = (0.70 + np.float32(0.03) * _field(shot, across.shape, 5)) * trunk
    lungs = _lung(frame, -1, body, shot) + _lung(frame, 1, body, shot)
    film -= np.float32(body.uniform(0.36, 0.44)) * lungs
    film += _ribs(frame, body) * (0.35 + lungs) * trunk
    film += _vessels(frame, shot) * lungs
    spine = body.uniform(0.08, 0.12)
    column = np.square(np.square(across / np.float32(spine)))
    film += np.float32(0.10) * np.exp(-column) * (1 + np.float32(0.15) * np.sin(along * 28))
    heart = body.uniform(0.24, 0.30) * (1.2 if view == "AP" else 1.0)
    film += np.float32(0.34) * lungs * _edge(1 - ((across - 0.12) / heart) ** 2 - ((along - 0.28) / 0.34) ** 2, 7)
    for side in (-1, 1):
        film += np.float32(0.09) * lungs * _bump(frame, side * 0.17, -0.05, 0.09, 0.2)
    return film, np.clip(lungs, 0, 1)


def _lung(frame: Frame, side: int, body: Generator, shot: Generator) -> Pixels:
    across, along = frame
    middle, wide, tall = side * body.uniform(0.43, 0.47), body.uniform(0.29, 0.34), body.uniform(0.62, 0.70)
    breath = body.uniform(0.46, 0.56) + shot.normal(0, 0.04) - 0.03 * side
    inside = 1 - ((across - middle) / (wide * (1 + 0.28 * along))) ** 2 - ((along + 0.06) / tall) ** 2
    dome = breath + 0.9 * (across - middle * 0.95) ** 2 - along
    return _edge(inside, 9) * _edge(dome, 28)


def _ribs(frame: Frame, body: Generator) -> Pixels:
    import numpy as np

    across, along = frame
    number, start, strength = body.uniform(4.6, 5.6), body.uniform(0, 1), body.uniform(0.05, 0.10)
    slope = np.abs(across)
    back = np.sin(2 * np.pi * np.float32(number) * (along - 0.45 * slope * slope + np.float32(start)))
    front = np.sin(2 * np.pi * np.float32(number * 0.9) * (along + 0.55 * slope + np.float32(start * 0.7)))
    collar = np.exp(-(((along + 0.66 - 0.14 * slope) / 0.035) ** 2)) * (slope > 0.08)
    bones: Pixels = np.square(np.clip(back, 0, 1)) + 0.5 * np.square(np.clip(front, 0, 1)) + collar
    return np.float32(strength) * bones


def _vessels(frame: Frame, shot: Generator) -> Pixels:
    """Gives branching bright lines that thin out away from the hila."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    height, width = frame.across.shape
    sheet = Image.new("L", (width, height))
    pen = ImageDraw.Draw(sheet)
    for _ in range(26):
        side = 1 if shot.random() < 0.5 else -1
        angle, reach = shot.uniform(-1.4, 1.4), shot.uniform(0.15, 0.42)
        x, y = side * 0.15, shot.normal(-0.03, 0.07)
        for step in range(3):
            angle += shot.normal(0, 0.3)
            to = (x + side * np.cos(angle) * reach / 2, y + np.sin(angle) * reach / 2)
            line = [(x + 1) / 2 * width, (y + 1) / 2 * height, (to[0] + 1) / 2 * width, (to[1] + 1) / 2 * height]
            pen.line(line, fill=200 - 55 * step, width=max(1, 3 - step) * (2 if width > 260 else 1))
            x, y = to
    soft = sheet.filter(ImageFilter.GaussianBlur(width / 200))
    return np.asarray(soft, dtype=np.float32) * np.float32(0.15 / 255)


def _opacity(frame: Frame, lungs: Pixels, finding: str, body: Generator, shot: Generator) -> Pixels:
    """Gives what the illness adds to the film; the place is the patient's own, the strength changes between images."""
    import numpy as np

    shape = frame.across.shape
    if finding == "none":
        return np.zeros(shape, dtype=np.float32)
    if finding == "diffuse":
        return _interstitial(frame, lungs, body, shot)
    strength = np.float32(np.clip(body.lognormal(np.log(0.26), 0.32), 0.15, 0.44) * shot.uniform(0.85, 1.15))
    side, along = (-1 if body.random() < 0.5 else 1), body.uniform(-0.42, 0.38)
    across, size = side * body.uniform(0.30, 0.58), body.uniform(0.08, 0.16)
    spot = np.zeros(shape, dtype=np.float32)
    for _ in range(5):
        place = (across + body.normal(0, size * 0.6), along + body.normal(0, size * 0.6))
        spot = np.maximum(spot, _bump(frame, *place, size * body.uniform(0.5, 1.0), size * body.uniform(0.5, 1.0)))
    patchy: Pixels = np.clip(1 + 0.45 * _field(shot, shape, 34), 0.1, 2)
    shadow: Pixels = patchy * np.minimum(1, spot * 1.4) * lungs * strength
    return shadow


def _interstitial(frame: Frame, lungs: Pixels, body: Generator, shot: Generator) -> Pixels:
    import numpy as np

    shape = frame.across.shape
    strength = np.float32(np.clip(body.lognormal(np.log(0.125), 0.28), 0.08, 0.21) * shot.uniform(0.85, 1.15))
    threads = np.exp(-((_field(shot, shape, 30) / np.float32(0.45)) ** 2))
    reach: Pixels = np.clip(0.8 + 0.4 * _field(shot, shape, 4), 0.2, 1.4)
    shadow: Pixels = reach * lungs * strength * (threads + 0.25 * _field(shot, shape, 40))
    return shadow


def _haze(frame: Frame, lungs: Pixels, shot: Generator) -> Pixels:
    """Gives smooth veils such as breast and muscle cast over the lungs in the healthy and the ill alike."""
    import numpy as np

    veil = np.zeros(frame.across.shape, dtype=np.float32)
    for _ in range(4):
        place = (shot.choice((-1, 1)) * shot.uniform(0.2, 0.7), shot.uniform(-0.5, 0.5))
        strength, wide, tall = shot.normal(0, 0.10), shot.uniform(0.18, 0.45), shot.uniform(0.18, 0.45)
        veil += np.float32(strength) * _bump(frame, *place, wide, tall)
    return veil * (0.3 + 0.7 * lungs)


def _balance(film: Pixels, lungs: Pixels, shot: Generator) -> Pixels:
    # The lungs' mean is drawn anew, whatever lies in them: without this the mean alone would give the label away.
    import numpy as np

    weight = lungs * lungs
    mean = float((film * weight).sum() / weight.sum())
    return film + np.float32(shot.normal(0.37, 0.045) - mean) * lungs


def _objects(film: Pixels, frame: Frame, shot: Generator) -> Pixels:
    """Gives the film with what lies on or in a chest without being illness: nipples, leads, tubes, cloth, old scars."""
    import numpy as np

    if shot.random() < 0.4:
        for side in (-1, 1):
            size = shot.uniform(0.03, 0.05)
            strength, along = np.float32(shot.uniform(0.04, 0.12)), shot.normal(0.3, 0.05)
            film = film + strength * _bump(frame, side * 0.5, along, size, size)
    if shot.random() < 0.3:
        size = shot.uniform(0.015, 0.03)
        place = (shot.choice((-1, 1)) * shot.uniform(0.25, 0.6), shot.uniform(-0.4, 0.4))
        film = film + np.float32(shot.uniform(0.15, 0.3)) * _bump(frame, *place, size, size)
    if shot.random() < 0.4:
        slant, start = shot.uniform(-0.6, 0.6), shot.uniform(-0.7, 0.7)
        fold = np.exp(-(((frame.across - start - slant * frame.along) / 0.012) ** 2))
        film = film + np.float32(shot.uniform(0.03, 0.08)) * fold
    if shot.random() < 0.4:
        film = film + _leads(film.shape, shot)
    return film


def _leads(shape: tuple[int, ...], shot: Generator) -> Pixels:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    height, width = shape
    sheet = Image.new("L", (width, height))
    pen = ImageDraw.Draw(sheet)
    for _ in range(int(shot.integers(1, 4))):
        points = [(float(shot.uniform(0.1, 0.9)) * width, float(shot.uniform(0, 0.9)) * height) for _ in range(3)]
        pen.line(points, fill=int(shot.integers(70, 160)), width=2, joint="curve")
        x, y = points[-1]
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=int(shot.integers(150, 255)))
    return np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32) * np.float32(0.35 / 255)


def _expose(film: Pixels, shot: Generator, site: str) -> Pixels:
    """Gives the film as developed: exposure, uneven beam, grain; each hospital's second site is a little darker."""
    import numpy as np

    gamma = shot.uniform(0.85, 1.2) + (0.08 if site in ("SOUTH", "HILL") else 0.0)
    beam = np.linspace(-1, 1, film.shape[1], dtype=np.float32)[None, :] * np.float32(shot.normal(0, 0.03))
    film = np.clip(film + beam, 0.01, 1) ** np.float32(gamma)
    film = np.float32(shot.uniform(0.85, 1.1)) * film + np.float32(shot.normal(0.02, 0.02))
    mottle = np.float32(shot.uniform(0, 0.015)) * _field(shot, film.shape, 45)
    grain = shot.standard_normal(film.shape, dtype=np.float32) * np.float32(shot.uniform(0.012, 0.03))
    developed: Pixels = film + mottle + grain
    return developed


def _second_hospital(film: Pixels, shift: float, shot: Generator) -> Pixels:
    """Gives the film as another hospital's machine shows it: softer, flatter, noisier, framed and with letters."""
    import numpy as np

    film = np.clip(_soften(film, 0.9 * shift * shot.uniform(0.7, 1.3)), 0, 1)
    curve = film * film * (3 - 2 * film)
    film = film + np.float32(0.35 * shift) * (curve - film)
    film = np.float32(0.05 * shift) + (1 - np.float32(0.12 * shift)) * film
    film += np.float32(0.0235 * shift) * _field(shot, film.shape, 45)
    film += np.float32(0.03 * shift) * shot.standard_normal(film.shape, dtype=np.float32)
    return _framed(film, 0.05 * shift, True, shot)


def _soften(film: Pixels, sigma: float) -> Pixels:
    import numpy as np

    taps = range(-4, 5)
    weights = np.exp(-np.square(np.array(taps) / sigma) / 2).astype(np.float32)
    weights /= weights.sum()
    padded = np.pad(film, 4, mode="edge")
    height, width = film.shape
    rows = np.zeros((height, width + 8), dtype=np.float32)
    for tap, weight in zip(taps, weights, strict=True):
        rows += weight * padded[4 + tap : 4 + tap + height]
    soft = np.zeros_like(film)
    for tap, weight in zip(taps, weights, strict=True):
        soft += weight * rows[:, 4 + tap : 4 + tap + width]
    return soft


def _framed(film: Pixels, widest: float, lettered: bool, shot: Generator) -> Pixels:
    """Gives the film with dark edges where the beam was narrowed, and a side's letter where asked for."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = film.shape
    top, bottom, left, right = (int(side) for side in shot.uniform(0, widest, 4) * (height, height, width, width))
    inside = np.full_like(film, shot.uniform(0, 0.15))
    inside[top : height - bottom, left : width - right] = 1
    film = film * inside
    if not lettered:
        return film
    sheet = Image.new("L", (width, height))
    letter = "L" if shot.random() < 0.5 else "R"
    place = ((0.86 if letter == "L" else 0.06) * width, 0.05 * height)
    ImageDraw.Draw(sheet).text(place, letter, fill=255, font_size=height / 10)
    return np.maximum(film, np.asarray(sheet, dtype=np.float32) / 255)
