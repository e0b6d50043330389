"""Who comes: the patients, what they have, which scans are taken, which files are spoilt, and what reports say.

Drawn without NumPy, so that the plan of a directory is known before a pixel is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

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


def chance(world: World, *what: object) -> Random:
    """Gives the random numbers of one matter, whatever is drawn for others."""
    return Random(":".join(map(str, (world.seed, world.hospital, world.classes, *what))))  # noqa: S311 - repeatable, not secret


def _label(number: int, world: World) -> str:
    # Labels are dealt in shuffled blocks, so that every class is there in small sets too.
    names = CLASSES[world.classes]
    block = list(names) * (5 if world.classes == 2 else 3)
    chance(world, "block", (number - 1) // len(block)).shuffle(block)
    return block[(number - 1) % len(block)]


def person(number: int, world: World) -> Patient:
    """Gives the patient of a number; other numbers have no say in it."""
    draw = chance(world, "patient", number)
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
    draw = chance(world, "image", who.number, image)
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


def original(scan: Scan, world: World) -> Scan:
    """Gives the scan whose image a file holds: its own, or of a copy the one copied."""
    if scan.kind in ("repeat", "contrary"):
        return _scan(scan.patient, 1, world)
    return _alike(scan.patient, world) if scan.kind == "borrowed" else scan


def _text(who: Patient, label: str, image: int, world: World) -> str:
    facts = chance(world, "facts", who.number)
    kind = {"NORMAL": 0, "BACTERIA": 1, "VIRUS": 2, "PNEUMONIA": facts.choice((1, 2))}[label]
    told = [yes if facts.random() < share[kind] else no for yes, no, share in FACTS]
    draw = chance(world, "text", who.number, image)
    values = {
        "high": draw.uniform(38.0, 40.1), "low": draw.uniform(36.2, 37.4), "raised": draw.uniform(12.5, 22),
        "usual": draw.uniform(4.5, 9.5), "strong": draw.uniform(60, 240), "weak": draw.uniform(1, 25),
        "days": draw.randint(2, 9),
    }  # fmt: skip
    return " ".join(fact.format(**values) for fact in draw.sample(told, FACTS_TOLD))
