"""The shipped parameter files read the published data sets as they are published."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from components.ingest.file_names import guess_patients
from components.ingest.labels import Labels, read_labels
from components.ingest.parameters import SourceParameters
from components.shared.parsing.yaml_documents import read_yaml
from components.shared.storage.image_source import Directory
from tests.components.ingest.sources import add, by_name, classes_of, listing, order, read

pytestmark = pytest.mark.usefixtures("shared_template")

ROOT = Path(__file__).resolve().parents[3]
PARAMS = ROOT / "workflows" / "params"
KERMANY = ROOT.parent / "shared" / "data" / "kermany_cxr"


def options(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_yaml(PARAMS / f"{name}.yaml")["ingest_options"]
    return found


def sides_of_patients(found: Labels) -> dict[str, set[str]]:
    sides = defaultdict(set)
    for item in found.files:
        sides[item.patient].add(item.official)
    return sides


@pytest.mark.slow
@pytest.mark.skipif(not KERMANY.is_dir(), reason=f"{KERMANY.name} is not beside the repository")
@pytest.mark.parametrize(("params", "column"), [("kermany", "label"), ("kermany-three", "subtype")])
def test_kermany_as_its_manifest_has_it(params: str, column: str) -> None:
    source = Directory(str(KERMANY))
    found = read_labels(source, listing(KERMANY), SourceParameters(**options(params)), order)
    with (KERMANY / "manifest.csv").open(newline="") as file:
        manifest = {row["image"]: row for row in csv.DictReader(file)}
    assert Counter(item.official for item in found.files) == {"train": 5216, "test": 624}
    assert not [item for item in found.files if item.problem]
    assert {item.name: (found.classes[item.labels[0]].lower(), item.official) for item in found.files} == {
        name: (row[column].lower(), row["split"]) for name, row in manifest.items()
    }
    pairs = {(item.patient, manifest[item.name]["patient_id"]) for item in found.files}
    assert len(pairs) == len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs}) == 4082
    assert max(len(sides) for sides in sides_of_patients(found).values()) == 1, "no patient is on both sides"
    guessed = {patient for patient, _ in guess_patients([item.name for item in found.files])}
    assert len(guessed) > 4082, "the rule for names alone parts patients"


def test_kermany_in_either_way_of_naming(tmp_path: Path) -> None:
    names = {
        "train/NORMAL/IM-0115-0001.jpeg": ("NORMAL", "IM-0115"),
        "train/NORMAL/IM-0115-0001-0002.jpeg": ("NORMAL", "IM-0115"),
        "train/NORMAL/NORMAL2-IM-0115-0001.jpeg": ("NORMAL", "NORMAL2-IM-0115"),
        "train/NORMAL/NORMAL-28501-0001.jpeg": ("NORMAL", "28501"),
        "test/PNEUMONIA/person1_bacteria_2.jpeg": ("BACTERIA", "person1_bacteria"),
        "test/PNEUMONIA/person1_virus_6.jpeg": ("VIRUS", "person1_virus"),
        "val/PNEUMONIA/person1_virus_6_1.jpeg": ("VIRUS", "person1_virus"),
        "train/PNEUMONIA/BACTERIA-213622-0001.jpeg": ("BACTERIA", "213622"),
        "train/PNEUMONIA/VIRUS-213622-0002.jpeg": ("VIRUS", "213622"),
    }
    add(tmp_path, names)
    three, two = read(tmp_path, **options("kermany-three")), read(tmp_path, **options("kermany"))
    assert (three.classes, two.classes) == (["NORMAL", "BACTERIA", "VIRUS"], ["NORMAL", "PNEUMONIA"])
    assert {name: (classes_of(three)[name][0], item.patient) for name, item in by_name(three).items()} == names
    assert {item.name: item.patient for item in two.files} == {name: patient for name, (_, patient) in names.items()}
    assert by_name(three)["val/PNEUMONIA/person1_virus_6_1.jpeg"].official == "val"


def test_oct2017_knows_a_patient_in_every_folder(tmp_path: Path) -> None:
    names = [
        f"{side}/{label}/{label}-{1016042 + number // 2}-{number}.jpeg"
        for side in ("train", "test", "val")
        for label in ("CNV", "DME", "DRUSEN", "NORMAL")
        for number in range(4)
    ]
    add(tmp_path, names)
    found = read(tmp_path, **options("oct2017"))
    assert found.classes == ["NORMAL", "CNV", "DME", "DRUSEN"]
    assert sides_of_patients(found) == {patient: {"train", "test", "val"} for patient in ("1016042", "1016043")}
    assert not [item for item in found.files if item.problem]
    small = read(tmp_path, **options("oct2017-small") | {"limit_per_class": 3})
    assert Counter((item.official, item.labels) for item in small.files) == dict.fromkeys(
        ((side, (label,)) for side in ("train", "test", "val") for label in range(4)), 3
    )
    assert options("oct2017-small") == options("oct2017") | {"limit_per_class": 1000}


FINDINGS = options("chestxray14")["classes"]
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
SIZES = "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"


@pytest.fixture(params=[",", ""])
def chestxray14(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small source in the form of ChestX-ray14, with and without the comma at the ends of the table's lines."""
    end = request.param
    lines, lists = [HEADER + SIZES + end], defaultdict(list)
    for number in range(48):
        patient, image = number // 3 + 1, number % 3
        name = f"{patient:08d}_{image:03d}.png"
        add(tmp_path, [f"images_{number // 20 + 1:03d}/images/{name}"])
        findings = "|".join({FINDINGS[number % 14], FINDINGS[number % 5]}) if number % 4 else "No Finding"
        age = ("058Y", "411", "9")[image]
        lines.append(f"{name},{findings},{image},{patient},{age},{'FM'[patient % 2]},PA,2682,2749,0.143,0.143{end}")
        lists["test" if patient % 4 == 0 else "train_val"].append(name)
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    for side, names in lists.items():
        (tmp_path / f"{side}_list.txt").write_text("\n".join(names))
    (tmp_path / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n")
    return tmp_path


def test_chestxray14_with_all_its_findings(chestxray14: Path) -> None:
    found = read(chestxray14, **options("chestxray14"))
    assert (found.task, len(found.classes), len(found.files)) == ("multilabel", 14, 48)
    assert not [item for item in found.files if item.problem]
    assert classes_of(found)["images_001/images/00000001_000.png"] == []
    assert classes_of(found)["images_001/images/00000002_002.png"] == [FINDINGS[0], FINDINGS[5]]
    first = by_name(found)["images_001/images/00000001_000.png"]
    assert first[2:5] == ("train", "1", {"sex": "M", "age": "058Y", "view": "PA"})
    assert Counter(item.official for item in found.files) == {"train": 36, "test": 12}
    told = "16 ages in Data_Entry_2017.csv (the first in line 3) are invalid or above 120 years"
    assert found.warnings == [("no age", f"{told} and count as unknown")]


def test_chestxray14_with_one_finding_against_none(chestxray14: Path) -> None:
    found = read(chestxray14, **options("chestxray14-effusion"))
    assert (found.task, found.classes) == ("classification", ["No Finding", "Effusion"])
    assert Counter(item.labels for item in found.files)[0,] == 12
    assert Counter(item.labels for item in found.files)[1,] > 4
    assert sum(found.left_out.values()) == 48 - len(found.files) > 0


def test_part_of_chestxray14_may_be_read_when_that_is_said(chestxray14: Path) -> None:
    for path in (chestxray14 / "images_003" / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"Data_Entry_2017\.csv, line 42 names a file .* so do 7 more.*missing_files"):
        read(chestxray14, **options("chestxray14-effusion"))
    found = read(chestxray14, **options("chestxray14-effusion"), missing_files="skip")
    assert len(found.files) + sum(found.left_out.values()) == 40
    assert [reason for reason, _ in found.warnings] == ["no file", "no age", "no file", "no file"]
