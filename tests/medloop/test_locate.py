"""Who has the key and the source can tell whom a hash stands for; nobody else can."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from components.shared.privacy import keyed_hash
from tests.components.shared.images import dicom, encoded, gray
from tests.medloop.by_hand import RUN, ByHand
from tests.medloop.test_cli import medloop

KEY = keyed_hash.parse("5c" * 32)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a key, and a source with every way to name a patient; nothing was run there yet."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "hash.key").write_text(KEY.text)
    files = {
        "NORMAL/zebedee_max-2.png": encoded(gray(1)),
        "NORMAL/Mulberry/0007.png": encoded(gray(2)),
        "NORMAL/scan.dcm": dicom(np.arange(900, dtype=np.uint16).reshape(30, 30), PatientID="PID-77"),
        "NORMAL/broken.dcm": b"no DICOM at all",
        "PNEUMONIA/a1.png": encoded(gray(3)),
        "PNEUMONIA/a2.png": encoded(gray(4)),
    }
    for name, data in files.items():
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "scans" / name).write_bytes(data)
    with (tmp_path / "scans" / "patients.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["file", "patient_id"], *([f"PNEUMONIA/a{number}.png", "Alpine, Ada"] for number in (1, 2))]
        )
    return home


def located(home: Path, hash: str, *arguments: str) -> dict[str, object]:
    source = ("--source", str(home.parent / "scans"))
    found: dict[str, object] = json.loads(medloop(home, "data", "locate", hash, *source, "--json", *arguments).stdout)
    return found


@pytest.mark.slow
def test_an_image_is_found_by_the_beginning_of_its_hash(home: Path) -> None:
    name = "NORMAL/zebedee_max-2.png"
    image = KEY.image(name)
    found = located(home, image[:12])
    assert found == {"kind": "image", "hash": image, "key_id": KEY.id, "name": name, "files": [name]}
    done = medloop(home, "data", "locate", image[:8].upper(), "--source", str(home.parent / "scans"))
    assert done.stdout == f"{name}\n"
    assert "This output identifies a patient" in done.stderr
    assert "zebedee" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patient", "files"),
    [
        ("zebedee_max", ["NORMAL/zebedee_max-2.png"]),
        ("Mulberry", ["NORMAL/Mulberry/0007.png"]),
        ("PID-77", ["NORMAL/scan.dcm"]),
        ("Alpine, Ada", ["PNEUMONIA/a1.png", "PNEUMONIA/a2.png"]),
    ],
)
def test_a_patient_is_found_in_file_names_folders_headers_and_tables(
    patient: str, files: list[str], home: Path
) -> None:
    found = located(home, KEY.hash("patient", patient)[:12])
    assert (found["kind"], found["name"], found["files"]) == ("patient", patient, files)


@pytest.mark.slow
def test_hashes_of_before_a_rotation_are_found_too(home: Path) -> None:
    new = KEY.rotated()
    (home / "hash.key").write_text(new.text)
    name = "PNEUMONIA/a1.png"
    assert located(home, KEY.image(name))["key_id"] == KEY.id
    assert located(home, new.image(name))["key_id"] == new.id
    assert located(home, KEY.hash("patient", "PID-77"))["name"] == "PID-77"


@pytest.mark.slow
def test_what_is_not_there_is_said_without_any_name(home: Path) -> None:
    source = ("--source", str(home.parent / "scans"))
    done = medloop(home, "data", "locate", "0123456789ab", *source, status=1)
    assert done.stdout == ""
    assert "No image or patient at the source has a hash that begins with 0123456789ab" in done.stderr
    assert "zebedee" not in done.stderr
    assert "must be 8 to 32 hexadecimal digits" in medloop(home, "data", "locate", "zebedee", *source, status=2).stderr
    assert "8 to 32" in medloop(home, "data", "locate", KEY.image("x")[:7], *source, status=2).stderr
    other = keyed_hash.parse("a7" * 32)
    done = medloop(home, "data", "locate", KEY.image("NORMAL/scan.dcm"), *source, status=1, MEDLOOP_HASH_KEY=other.text)
    assert f"under the key {other.id}" in done.stderr
    (home / "hash.key").unlink()
    assert "There is no hash key" in medloop(home, "data", "locate", "0123456789ab", *source, status=1).stderr


def test_the_source_of_the_latest_run_is_looked_at(finished: ByHand, tmp_path: Path) -> None:
    """There the index tells all of a patient's images, whatever named the patient."""
    shutil.copytree(finished.home, tmp_path / "home", symlinks=True)
    home = tmp_path / "home"
    key = keyed_hash.parse(keyed_hash.SYNTHETIC)
    with (finished.scans / "patients.csv").open() as file:
        rows = list(csv.DictReader(file))
    patient = rows[-1]["patient_id"]
    files = sorted(row["file"] for row in rows if row["patient_id"] == patient)
    done = medloop(home, "data", "locate", key.hash("patient", patient)[:12])
    assert done.stdout.split() == [patient, *files]
    image = key.image(files[0])
    assert medloop(home, "data", "locate", image[:12]).stdout == f"{files[0]}\n"
    assert RUN not in done.stderr


def test_a_store_made_with_another_key_is_said(finished: ByHand) -> None:
    other = keyed_hash.parse("a7" * 32)
    done = medloop(finished.home, "data", "locate", "0123456789ab", status=1, MEDLOOP_HASH_KEY=other.text)
    assert (
        f"has the id {other.id}, but this store uses the key {keyed_hash.parse(keyed_hash.SYNTHETIC).id}" in done.stderr
    )


def test_a_frame_of_a_file_is_found(tmp_path: Path) -> None:
    """The index says which images are frames; their ids are of the file's name and the frame's number."""
    from components.shared.storage.image_source import Entry
    from medloop.operations.locate import _images, _Index, _patients

    entries = [Entry("A/cine.dcm", 1, 0), Entry("B/cine.dcm", 1, 0)]
    image, patient = KEY.image("B/cine.dcm", 4), KEY.hash("patient", "unknown")
    found = list(_images(KEY, entries, _Index({}, (-1, 4)), image[:10]))
    assert [(each.hash, each.name) for each in found] == [(image, "B/cine.dcm")]
    place = tmp_path / "scans" / "B" / "cine.dcm"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    from components.shared.storage.image_source import open_source

    index = _Index({patient: {image}}, (-1, 4))
    there = open_source(str(tmp_path / "scans"))
    theirs = list(_patients(KEY, there, there.entries(), index, patient[:10]))
    assert [(each.hash, each.name, each.files) for each in theirs] == [(patient, "", ("B/cine.dcm",))]
