"""The directory of synthetic scans: what may be asked for, what is already there, and what is written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from components.shared.errors import RefusedError, UsageError
from components.shared.parsing.json_documents import parse_json
from medloop.synth.files import content_of
from medloop.synth.people import CLASSES, CORRUPT, Scan, World, plan

MARKER = "synth.json"
TABLE = "patients.csv"


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
            _write(target, content_of(scan, world))
    _write(directory / TABLE, _table(scans, reports))
    return _counts(scans, patients, classes)


def _check_arguments(patients: int, world: World) -> None:
    if patients < 1:
        raise UsageError(f"patients is {patients}, but at least 1 is needed: ask for 1 or more (240 by default)")
    if world.classes not in CLASSES:
        raise UsageError(
            f"classes is {world.classes}, but only 2 (normal, pneumonia) or 3 (normal, bacteria, virus) can be drawn: "
            "choose 2 or 3"
        )
    if not 0 <= world.shift <= 2:
        raise UsageError(f"shift is {world.shift}, but must lie from 0 (the first hospital) to 2: choose a value there")
    if world.seed < 0:
        raise UsageError(f"seed is {world.seed}, but must be 0 or more: choose a whole number from 0")


def _check_directory(directory: Path, patients: int, world: World) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise RefusedError(f"{directory} is a file, but scans need a directory: name another path")
    marker = directory / MARKER
    if not marker.exists():
        if any(directory.iterdir()):
            raise RefusedError(
                f"{directory} holds other files and no {MARKER}, and synthetic scans are never mixed with others: "
                "name an empty or a new directory"
            )
        return
    held = _read_marker(marker)
    for name, asked in world._asdict().items():
        if held.get(name) != asked:
            raise RefusedError(
                f"{directory} was made with {name} {held.get(name)}, but {name} {asked} was asked for: "
                f"use {name} {held.get(name)} there, or name another directory"
            )
    if patients < held["patients"]:
        raise RefusedError(
            f"{directory} already holds {held['patients']} patients, but {patients} were asked for, and none is ever "
            f"removed: ask for {held['patients']} or more, or name another directory"
        )


def _read_marker(marker: Path) -> dict[str, Any]:
    try:
        held = parse_json(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusedError(f"{marker} is not readable as JSON: name another directory") from error
    if not isinstance(held, dict) or held.get("schema") != 1 or not isinstance(held.get("patients"), int):
        raise RefusedError(f"{marker} is not of schema 1, the only one known here: name another directory")
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
