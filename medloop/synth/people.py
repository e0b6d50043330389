"""Patients, their findings, scans and reports, and the defective files.

This needs no pixels, so the files of a directory are planned before any image is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

CLASSES = {2: ("NORMAL", "PNEUMONIA"), 3: ("NORMAL", "BACTERIA", "VIRUS")}
IMAGES_PER_PATIENT = ((1, 2, 3, 4, 5), (15, 25, 30, 20, 10))
ENDINGS = {"png": ".png", "png16": ".png", "jpeg": ".jpeg", "dicom": ".dcm"}

# The defective files repeat every 120 patients; the first are among the first patients, so small sets have them too.
DEFECT_PERIOD = 120
DEFECTS = {3: "truncated", 4: "repeat", 5: "text", 6: "contrary", 7: "empty", 8: "borrowed", 9: "blank"}
CORRUPT = ("truncated", "text", "empty", "blank")

# Share of patients whose images do not depend on their class if reports are written. It limits the accuracy of
# images alone to about 0.85, so that the texts add information.
UNCLEAR_SHARE = 0.20

# Positive and negative statements, and the frequency of the positive one in healthy, bacterial and viral patients.
FACTS = (
    ("Fever of {high:.1f} C.", "Temperature {low:.1f} C.", (0.10, 0.85, 0.78)),
    ("Crackles on auscultation.", "Chest clear on auscultation.", (0.10, 0.85, 0.72)),
    ("White count {raised:.1f}.", "White count {usual:.1f}.", (0.12, 0.88, 0.15)),
    ("C-reactive protein {strong:.0f}.", "C-reactive protein {weak:.0f}.", (0.12, 0.90, 0.35)),
    ("Cough for {days} days.", "No cough.", (0.25, 0.88, 0.88)),
    ("Short of breath at rest.", "Breathing comfortably.", (0.12, 0.65, 0.65)),
    ("Others in the household are ill.", "No ill contacts.", (0.15, 0.20, 0.85)),
)
FACTS_PER_REPORT = 3


@dataclass(frozen=True)
class Patient:
    """An invented patient: demographic data, class, and the finding on the images."""

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
    """A file to write: path, content and format."""

    path: str
    patient: Patient
    image: int
    finding: str
    view: str
    form: str
    text: str
    kind: str = "scan"


class Cohort(NamedTuple):
    """Settings that all patients of a directory share."""

    classes: int
    seed: int
    shift: float
    reports: bool

    @property
    def hospital(self) -> int:
        """0 for the first hospital, 1 for the second."""
        return int(self.shift > 0)


def generator(cohort: Cohort, *what: object) -> Random:
    """Return an independent random generator for one purpose."""
    return Random(":".join(map(str, (cohort.seed, cohort.hospital, cohort.classes, *what))))  # noqa: S311 - repeatable, not secret


def _label(number: int, cohort: Cohort) -> str:
    # Labels are assigned in shuffled blocks, so that small sets contain every class.
    names = CLASSES[cohort.classes]
    block = list(names) * (5 if cohort.classes == 2 else 3)
    generator(cohort, "block", (number - 1) // len(block)).shuffle(block)
    return block[(number - 1) % len(block)]


def person(number: int, cohort: Cohort) -> Patient:
    """Return the patient with this number, independent of all others."""
    draw = generator(cohort, "patient", number)
    label = _label(number, cohort)
    images = draw.choices(*IMAGES_PER_PATIENT)[0]
    recovers = draw.randint(1, 3) if draw.random() < 0.02 and label != "NORMAL" else images
    shown = label
    if draw.random() < UNCLEAR_SHARE and cohort.reports:
        shown = draw.choice(CLASSES[cohort.classes])
    sites = (("NORTH", "SOUTH"), ("HARBOUR", "HILL"))[cohort.hospital]
    return Patient(
        number=number,
        name=f"{('person', 'east')[cohort.hospital]}{number:04d}",
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


def plan(number: int, cohort: Cohort) -> list[Scan]:
    """Return the files of one patient; a defective one comes last."""
    who = person(number, cohort)
    scans = [_scan(who, image, cohort) for image in range(1, who.images + 1)]
    kind = DEFECTS.get(number % DEFECT_PERIOD)
    if kind is not None:
        scans.append(_defective(kind, who, scans[0], cohort))
    return scans


def _scan(who: Patient, image: int, cohort: Cohort) -> Scan:
    draw = generator(cohort, "image", who.number, image)
    ill = image <= who.recovers_after
    # The first image is never DICOM: it may be copied to another patient, and its header would contain the wrong name.
    form = draw.choices(("png", "png16", "jpeg", "dicom"), (30, 15, 25, 0 if image == 1 else 45))[0]
    label = who.label if ill else "NORMAL"
    return Scan(
        path=f"{label}/{who.name}_{image}{ENDINGS[form]}",
        patient=who,
        image=image,
        finding=who.finding if ill else "none",
        view=draw.choices(("PA", "AP"), (65, 35))[0],
        form=form,
        text=_text(who, label, image, cohort) if cohort.reports else "",
    )


def _defective(kind: str, who: Patient, first: Scan, cohort: Cohort) -> Scan:
    image, source, label = who.images + 1, first, who.label
    form = {"truncated": "jpeg", "text": "png", "empty": "jpeg", "blank": "png"}.get(kind, first.form)
    if kind == "borrowed":
        source = _alike(who, cohort)
        form = source.form
    if kind == "contrary":
        label = next(name for name in CLASSES[cohort.classes] if name != first.path.split("/")[0])
    path = f"{label}/{who.name}_{image}{ENDINGS[form]}"
    # In a copy, finding, view and image number determine what is drawn; path and patient where it is written.
    return Scan(path, who, image, source.finding, source.view, form, source.text, kind)


def _alike(who: Patient, cohort: Cohort) -> Scan:
    """Return the first image of the nearest earlier patient of the same class."""
    number = next(number for number in range(who.number - 1, 0, -1) if _label(number, cohort) == who.label)
    return _scan(person(number, cohort), 1, cohort)


def original(scan: Scan, cohort: Cohort) -> Scan:
    """Return the scan whose image the file contains: for a copy, the copied one."""
    if scan.kind in ("repeat", "contrary"):
        return _scan(scan.patient, 1, cohort)
    return _alike(scan.patient, cohort) if scan.kind == "borrowed" else scan


def _text(who: Patient, label: str, image: int, cohort: Cohort) -> str:
    facts = generator(cohort, "facts", who.number)
    kind = {"NORMAL": 0, "BACTERIA": 1, "VIRUS": 2, "PNEUMONIA": facts.choice((1, 2))}[label]
    statements = [yes if facts.random() < share[kind] else no for yes, no, share in FACTS]
    draw = generator(cohort, "text", who.number, image)
    values = {
        "high": draw.uniform(38.0, 40.1), "low": draw.uniform(36.2, 37.4), "raised": draw.uniform(12.5, 22),
        "usual": draw.uniform(4.5, 9.5), "strong": draw.uniform(60, 240), "weak": draw.uniform(1, 25),
        "days": draw.randint(2, 9),
    }  # fmt: skip
    return " ".join(fact.format(**values) for fact in draw.sample(statements, FACTS_PER_REPORT))
