"""Synthetic scans: read back as files, the same for the same arguments, growing by whole patients, honest refusals."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, UnidentifiedImageError

from medloop.synth import synth


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "patients.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    directory = tmp_path_factory.mktemp("synth") / "scans"
    return directory, synth(directory, patients=24)


def pixels(path: Path) -> np.ndarray:
    if path.suffix == ".dcm":
        return np.asarray(pydicom.dcmread(path).pixel_array)
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.slow
def test_every_row_of_the_table_is_a_readable_image(scans: tuple[Path, dict[str, int]]) -> None:
    directory, _ = scans
    rows = table(directory)
    assert list(rows[0]) == ["file", "patient_id", "sex", "age", "site", "view"]
    for row in rows:
        found = pixels(directory / row["file"])
        assert found.ndim == 2
        assert 180 <= min(found.shape) <= max(found.shape) <= 320
        assert Path(row["file"]).name.startswith(f"{row['patient_id']}_")
        assert row["sex"] in {"F", "M"}
        assert 1 <= int(row["age"]) <= 92
        assert row["view"] in {"PA", "AP"}
    assert {row["site"] for row in rows} == {"NORTH", "SOUTH"}
    assert {Path(row["file"]).suffix for row in rows} == {".png", ".jpeg", ".dcm"}
    assert any(pixels(directory / row["file"]).dtype == np.uint16 for row in rows if row["file"].endswith(".png"))


def test_counts_are_those_of_the_files(scans: tuple[Path, dict[str, int]]) -> None:
    directory, counts = scans
    held = {label: len(list((directory / label).iterdir())) for label in ("NORMAL", "PNEUMONIA")}
    assert {label: counts[label] for label in held} == held
    assert counts["files"] == sum(held.values())
    assert counts["patients"] == len({row["patient_id"] for row in table(directory)}) == 24
    marker = json.loads((directory / "synth.json").read_text())
    assert marker == {"schema": 1, "seed": 7, "patients": 24, "classes": 2, "shift": 0.0, "reports": False}


def test_dicom_files_are_valid_and_carry_an_invented_patient(scans: tuple[Path, dict[str, int]]) -> None:
    directory, _ = scans
    rows = [row for row in table(directory) if row["file"].endswith(".dcm")]
    for row in rows:
        scan = pydicom.dcmread(directory / row["file"])
        assert scan.PatientID == row["patient_id"]
        assert scan.PatientName == f"SYNTH^{row['patient_id'].upper()}"
        assert (scan.PatientSex, int(scan.PatientAge[:3])) == (row["sex"], int(row["age"]))
        assert (scan.InstitutionName, scan.ViewPosition) == (row["site"], row["view"])
        assert (scan.BitsStored, scan.BitsAllocated) == (12, 16)
        assert scan.pixel_array.max() <= 4095
        assert not scan.file_meta.TransferSyntaxUID.is_compressed
    uids = [pydicom.dcmread(directory / row["file"], stop_before_pixels=True).SOPInstanceUID for row in rows]
    assert len(set(uids)) == len(uids)
    kinds = {pydicom.dcmread(directory / row["file"]).PhotometricInterpretation for row in rows}
    assert kinds == {"MONOCHROME1", "MONOCHROME2"}


def test_spoilt_files_are_there(scans: tuple[Path, dict[str, int]]) -> None:
    directory, counts = scans
    listed = {row["file"] for row in table(directory)}
    unlisted = [path for path in directory.glob("*/*") if path.relative_to(directory).as_posix() not in listed]
    assert sum(path.stat().st_size == 0 for path in unlisted) == 1
    assert len(unlisted) == 3
    for path in unlisted:
        with pytest.raises((UnidentifiedImageError, OSError)):
            pixels(path)
    blank = [name for name in listed if np.ptp(pixels(directory / name)) == 0]
    assert len(blank) == 1
    assert counts["corrupt"] == len(unlisted) + len(blank)


def test_duplicates_and_a_contrary_label_are_there(scans: tuple[Path, dict[str, int]]) -> None:
    directory, counts = scans
    found = digests(directory)
    copies = [digest for digest, number in Counter(found.values()).items() if number > 1]
    groups = [[name for name, digest in found.items() if digest == copy] for copy in copies]
    contrary = [group for group in groups if len({name.split("/")[0] for name in group}) > 1]
    patients = [{Path(name).name.split("_")[0] for name in group} for group in groups if group not in contrary]
    assert len(contrary) == counts["contrary"] == 1
    assert sorted(map(len, patients)) == [1, 2]
    assert counts["duplicates"] == 2


@pytest.mark.slow
def test_same_arguments_same_bytes(scans: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    directory, counts = scans
    assert synth(tmp_path / "again", patients=24) == counts
    assert digests(tmp_path / "again") == digests(directory)


def test_another_seed_gives_other_scans(scans: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    directory, _ = scans
    synth(tmp_path / "other", patients=3, seed=8)
    assert not set(digests(tmp_path / "other").values()) & set(digests(directory).values())


@pytest.mark.slow
def test_new_patients_arrive_and_the_old_stay(scans: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    directory, _ = scans
    grown = tmp_path / "grown"
    synth(grown, patients=9)
    before, rows = digests(grown), table(grown)
    synth(grown, patients=24)
    after = digests(grown)
    changing = {"patients.csv", "synth.json"}
    assert {name: after[name] for name in before if name not in changing} == {
        name: digest for name, digest in before.items() if name not in changing
    }
    assert table(grown)[: len(rows)] == rows
    assert after == digests(directory)


@pytest.mark.slow
def test_an_interrupted_call_can_be_repeated(scans: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    directory, _ = scans
    synth(tmp_path / "cut", patients=24)
    for name in ("patients.csv", table(directory)[0]["file"], table(directory)[-1]["file"]):
        (tmp_path / "cut" / name).unlink()
    synth(tmp_path / "cut", patients=24)
    assert digests(tmp_path / "cut") == digests(directory)


def test_second_hospital_has_other_patients_and_sites(scans: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    directory, _ = scans
    synth(tmp_path / "east", patients=12, shift=1.0)
    here, there = table(directory), table(tmp_path / "east")
    assert all(row["patient_id"].startswith("east") for row in there)
    assert not {row["site"] for row in here} & {row["site"] for row in there}
    drawn = digests(tmp_path / "east")
    assert not {drawn[row["file"]] for row in there} & set(digests(directory).values())


@pytest.mark.slow
def test_three_classes(tmp_path: Path) -> None:
    counts = synth(tmp_path / "three", patients=9, classes=3)
    assert min(counts[label] for label in ("NORMAL", "BACTERIA", "VIRUS")) >= 3


@pytest.mark.slow
def test_reports_do_not_name_the_label(tmp_path: Path) -> None:
    synth(tmp_path / "two", patients=10, reports=True)
    synth(tmp_path / "three", patients=9, classes=3, reports=True)
    rows = table(tmp_path / "two") + table(tmp_path / "three")
    for row in rows:
        assert len(row["text"]) > 40
        assert not any(word in row["text"].lower() for word in ("pneumonia", "normal", "bacteri", "virus", "viral"))
    fever = Counter(row["file"].split("/")[0] for row in table(tmp_path / "two") if "Fever" in row["text"])
    assert fever["PNEUMONIA"] > fever["NORMAL"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 0}, "patients is 0; it must be 1 or more"),
        ({"classes": 4}, "classes is 4; it must be 2"),
        ({"shift": 2.5}, "shift is 2.5; it must be from 0"),
        ({"shift": float("nan")}, "shift is nan; it must be from 0"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synth(tmp_path / "scans", **arguments)
    assert not (tmp_path / "scans").exists()


@pytest.mark.parametrize("changed", [{"seed": 8}, {"classes": 3}, {"shift": 0.5}, {"reports": True}])
def test_a_directory_keeps_what_it_was_made_with(tmp_path: Path, changed: dict[str, Any]) -> None:
    synth(tmp_path / "scans", patients=1)
    before = digests(tmp_path / "scans")
    message = rf"was created with {next(iter(changed))} .* or name another directory"
    with pytest.raises(ValueError, match=message):
        synth(tmp_path / "scans", patients=1, **changed)
    assert digests(tmp_path / "scans") == before


def test_fewer_patients_than_there_are_is_refused(tmp_path: Path) -> None:
    synth(tmp_path / "scans", patients=2)
    with pytest.raises(ValueError, match="already contains 2 patients"):
        synth(tmp_path / "scans", patients=1)


def test_other_files_are_never_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"contains other files and no synth\.json"):
        synth(tmp_path, patients=1)
    with pytest.raises(ValueError, match="is a file"):
        synth(tmp_path / "mine.txt", patients=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2, "patients": 1}'])
def test_an_unknown_marker_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "synth.json").write_text(content)
    with pytest.raises(ValueError, match="name another directory"):
        synth(tmp_path, patients=1)


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, medloop.synth; print(sorted({'numpy', 'PIL', 'pydicom', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
