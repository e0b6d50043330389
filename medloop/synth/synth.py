"""Write a directory of synthetic scans."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from components.shared.errors import RefusedError, UsageError
from components.shared.parsing.json_documents import parse_json
from medloop.synth.files import content_of
from medloop.synth.people import CLASSES, CORRUPT, Cohort, Scan, plan

MARKER = "synth.json"
TABLE = "patients.csv"


def synth(
    directory: Path, *, patients: int = 240, classes: int = 2, seed: int = 7, shift: float = 0.0, reports: bool = False
) -> dict[str, int]:
    """Write a directory of synthetic scans, and return the numbers of files, patients and defects.

    Files of an earlier call with the same arguments do not change, so patients can be added later.
    """
    directory = Path(directory)
    cohort = Cohort(classes, seed, shift, reports)
    _check_arguments(patients, cohort)
    _check_directory(directory, patients, cohort)
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / MARKER, _marker(patients, cohort))
    scans = [scan for number in range(1, patients + 1) for scan in plan(number, cohort)]
    for label in CLASSES[classes]:
        (directory / label).mkdir(exist_ok=True)
    for scan in scans:
        target = directory / scan.path
        if not target.exists():
            _write(target, content_of(scan, cohort))
    _write(directory / TABLE, _table(scans, reports))
    return _counts(scans, patients, classes)


def _check_arguments(patients: int, cohort: Cohort) -> None:
    if patients < 1:
        raise UsageError(f"patients is {patients}; it must be 1 or more (240 by default)")
    if cohort.classes not in CLASSES:
        raise UsageError(
            f"classes is {cohort.classes}; it must be 2 (normal, pneumonia) or 3 (normal, bacteria, virus)"
        )
    if not 0 <= cohort.shift <= 2:
        raise UsageError(f"shift is {cohort.shift}; it must be from 0 (the first hospital) to 2")
    if cohort.seed < 0:
        raise UsageError(f"seed is {cohort.seed}; it must be 0 or more")


def _check_directory(directory: Path, patients: int, cohort: Cohort) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise RefusedError(f"{directory} is a file; name a directory")
    marker = directory / MARKER
    if not marker.exists():
        if any(directory.iterdir()):
            raise RefusedError(
                f"{directory} contains other files and no {MARKER}; synthetic and other scans must not be mixed. Name "
                "an empty or new directory"
            )
        return
    existing = _read_marker(marker)
    for name, value in cohort._asdict().items():
        if existing.get(name) != value:
            raise RefusedError(
                f"{directory} was created with {name} {existing.get(name)}, but {name} is now {value}: use {name} "
                f"{existing.get(name)}, or name another directory"
            )
    if patients < existing["patients"]:
        raise RefusedError(
            f"patients is {patients}, but {directory} already contains {existing['patients']} patients, and none can "
            f"be removed: use {existing['patients']} or more, or name another directory"
        )


def _read_marker(marker: Path) -> dict[str, Any]:
    try:
        content = parse_json(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusedError(f"{marker} is not valid JSON: name another directory") from error
    if not isinstance(content, dict) or content.get("schema") != 1 or not isinstance(content.get("patients"), int):
        raise RefusedError(f"{marker} does not have schema 1: name another directory")
    return content


def _marker(patients: int, cohort: Cohort) -> bytes:
    content = {"schema": 1, "seed": cohort.seed, "patients": patients, "classes": cohort.classes, "shift": cohort.shift}
    return (json.dumps(content | {"reports": cohort.reports}, indent=2) + "\n").encode()


def _write(target: Path, content: bytes) -> None:
    # Files are replaced atomically, so that an interrupted call can be repeated. Unchanged files keep their times.
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
