"""A source becomes a dataset: the same one each time, without a name in it, and with what cannot be used set aside."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.ingest import decode_parallel
from components.ingest.file_names import guess_patients
from components.shared.contracts import digest
from components.shared.datasets.dataset import Data, read_shard
from components.shared.imaging.views import Pixels
from components.shared.privacy import keyed_hash
from components.shared.runtime.work import Result
from components.shared.storage import image_source
from components.shared.storage.artifacts import combine
from components.shared.storage.store import Store, open_store
from tests.components.shared.images import dicom, encoded, gray
from tests.components.shared.steps import contents, laid_out, step

pytestmark = pytest.mark.usefixtures("shared_template")

KEY = keyed_hash.parse(keyed_hash.SYNTHETIC)


@dataclass
class Scans:
    """A source that is being made."""

    root: Path
    count: int = 0

    def add(self, name: str, data: bytes | None = None, label: int = 0) -> bytes:
        """Add a file: this one, or a new image."""
        self.count += 1
        data = encoded(gray(self.count, label)) if data is None else data
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return data

    def table(self, *rows: dict[str, str]) -> None:
        """Write the table of patients."""
        with (self.root / image_source.TABLE).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)

    @property
    def revision(self) -> str:
        return image_source.revision(image_source.entries(str(self.root)))

    def settle(self) -> None:
        """Wait until the files' times tell a later change from this one."""
        time.sleep(image_source.SETTLING / 1e9)

    def pixels_of(self, store: Store, done: Result, name: str) -> Pixels:
        """The master of a file in a data set."""
        row = row_of(store, done, name)
        pixels: Pixels = read_shard(store.fetch(about(store, done)["shards"][row["shard"]]["digest"]))[row["row"]]
        return pixels


@pytest.fixture
def scans(tmp_path: Path) -> Scans:
    """Two classes of two patients, two images each."""
    made = Scans(tmp_path / "scans")
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        for patient in (1, 2):
            for number in (1, 2):
                made.add(f"{name}/{name.lower()}{patient}_{number}.png", label=label)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def portions(store: Store, scans: Scans, parts: int = 1, **parameters: Any) -> list[Result]:
    """What each part of the source gives."""
    given = {"source": str(scans.root), "revision": scans.revision, "key_id": KEY.id, **parameters}
    return [step("ingest", store, {}, **given, part=f"{number}/{parts}") for number in range(1, parts + 1)]


def ingest(store: Store, scans: Scans, parts: int = 1, **parameters: Any) -> Result:
    """The data set of a source, ingested in so many parts and merged."""
    return merged(store, portions(store, scans, parts, **parameters))


def merged(store: Store, found: list[Result], **parameters: Any) -> Result:
    several = combine(store, [done.outputs["portion"] for done in found])
    return step("merge", store, {"portions": store.fetch(several.digest)}, **parameters)


def numbers(done: Result) -> dict[str, int]:
    """How many images and patients there are, and how many were set aside, without the reasons."""
    assert sum(done.values["set_aside"].values()) == done.values["quarantined"]
    return {name: value for name, value in done.values.items() if isinstance(value, int)}


def rows(store: Store, done: Result) -> dict[str, dict[str, Any]]:
    """The index, by image id."""
    path = store.fetch(done.outputs["dataset"].files["index.parquet"].digest)
    return {row["image_id"]: row for row in pq.read_table(path).to_pylist()}


def row_of(store: Store, done: Result, name: str) -> dict[str, Any]:
    return rows(store, done)[KEY.hash("image", name)]


def about(store: Store, done: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.get(done.outputs["dataset"].files["dataset.json"].digest))
    return found


def quarantine(store: Store, done: Result) -> dict[str, tuple[str, str]]:
    text = store.get(done.outputs["dataset"].files["quarantine.csv"].digest).decode()
    return {row["image_id"]: (row["reason"], row["detail"]) for row in csv.DictReader(text.splitlines())}


@pytest.mark.slow
def test_it_is_told_how_many_files_are_new_and_how_many_known(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = many(tmp_path, 59)

    def told() -> str:
        caplog.clear()
        with caplog.at_level("INFO", "medloop"):
            portions(store, made)
        notes = [getattr(record, "fields", {}) for record in caplog.records if record.message == "progress"]
        return str(notes[-1]["note"])

    assert told() == "images: 59 new, 0 known"
    for number in range(5):
        made.add(f"A/late_{number}.png", encoded(gray(number + 500, side=8)))
    assert told() == "images: 5 new, 59 known"
    (made.root / "A" / "late_0.png").write_bytes(encoded(gray(900, side=8)))
    made.settle()
    assert told() == "images: 1 new, 63 known"


@pytest.mark.slow
def test_folders_are_classes_and_normal_comes_first(store: Store, scans: Scans) -> None:
    scans.add("ABSCESS/a1_1.png")
    done = ingest(store, scans)
    assert about(store, done)["classes"] == ["NORMAL", "ABSCESS", "PNEUMONIA"]
    assert row_of(store, done, "NORMAL/normal1_1.png")["labels"] == [0]
    assert row_of(store, done, "ABSCESS/a1_1.png")["labels"] == [1]
    assert row_of(store, done, "PNEUMONIA/pneumonia2_2.png")["labels"] == [2]
    assert about(store, done)["counts"]["by_class"] == {"NORMAL": 4, "ABSCESS": 1, "PNEUMONIA": 4}
    assert numbers(done) == {"images": 9, "patients": 5, "duplicates": 0, "near_duplicates": 0, "quarantined": 0}


@pytest.mark.slow
def test_only_the_classes_that_were_asked_for_are_taken(store: Store, scans: Scans) -> None:
    scans.add("ABSCESS/a1_1.png")
    done = ingest(store, scans, classes=["PNEUMONIA", "NORMAL"])
    assert about(store, done)["classes"] == ["PNEUMONIA", "NORMAL"]  # in the order asked for
    assert done.values["images"] == 8
    with pytest.raises(ValueError, match="no class folder 'ABCESS'; it has NORMAL, ABSCESS, PNEUMONIA"):
        ingest(store, scans, classes=["NORMAL", "ABCESS"])


@pytest.mark.slow
def test_the_dataset_holds_every_image_as_it_is(store: Store, scans: Scans, tmp_path: Path) -> None:
    done = ingest(store, scans)
    data = Data.open(laid_out(store, done, "dataset", tmp_path / "out"), store)
    row = row_of(store, done, "NORMAL/normal1_1.png")
    master = read_shard(store.fetch(data.about["shards"][row["shard"]]["digest"]))[row["row"]]
    np.testing.assert_array_equal(master, gray(1, 0))
    assert (row["height"], row["width"], row["bits"]) == (32, 36, 8)
    assert row["source_digest"] == digest((scans.root / "NORMAL" / "normal1_1.png").read_bytes())


@pytest.mark.slow
def test_images_of_one_patient_are_told_by_their_names(store: Store, scans: Scans) -> None:
    found = rows(store, ingest(store, scans)).values()
    assert len({row["patient_id"] for row in found}) == 4
    assert {row["patient_id"] for row in found} >= {KEY.hash("patient", "normal1")}


@pytest.mark.slow
def test_a_patient_comes_from_the_header_then_the_name(store: Store, scans: Scans) -> None:
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    scans.add("NORMAL/x_1.dcm", dicom(pixels, PatientID="17", PatientSex="F", PatientAge="045Y", ViewPosition="AP"))
    scans.add("NORMAL/z_1.dcm", dicom(pixels + 2))
    scans.table({"file": "NORMAL/x_1.dcm", "age": "44"})  # a table that names no patients may be short
    done = ingest(store, scans)
    header, name = (row_of(store, done, f"NORMAL/{letter}_1.dcm") for letter in "xz")
    assert header["patient_id"] == KEY.hash("patient", "17")
    assert (header["sex"], header["age"], header["view"], header["site"]) == ("F", 44, "AP", "")
    assert name["patient_id"] == KEY.hash("patient", "z")
    assert (name["sex"], name["age"]) == ("", -1)


@pytest.mark.slow
def test_a_table_that_names_patients_goes_before_all_else_and_must_name_them_all(store: Store, scans: Scans) -> None:
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    scans.add("NORMAL/y_1.dcm", dicom(pixels + 1, PatientID="17", PatientSex="F", PatientAge="045Y"))
    files = sorted(path.relative_to(scans.root).as_posix() for path in scans.root.rglob("*.*"))
    scans.add("NORMAL/late_1.png")
    scans.table(
        *({"file": ".\\" + name.replace("/", "\\"), "patient_id": name[-5], "sex": "m", "text": "a"} for name in files)
    )
    done = ingest(store, scans, keep_text=True)
    row = row_of(store, done, "NORMAL/y_1.dcm")
    assert (row["patient_id"], row["sex"], row["text"]) == (KEY.hash("patient", "1"), "M", "a")
    assert row["age"] == 45  # what the table does not say, the header may
    assert quarantine(store, done)[KEY.hash("image", "NORMAL/late_1.png")][0] == "not in the table"
    assert numbers(done) == {"images": 9, "patients": 2, "duplicates": 0, "near_duplicates": 0, "quarantined": 1}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("file,PatientID\nNORMAL/normal1_1.png,7\n", "column 'PatientID'.*patient_id"),
        ("file,patient_id\nNORMAL/normal1_9.png,7\n", "line 2 names a file that is not in the source"),
        ("file,sex\nNORMAL/normal1_1.png,F\nNORMAL/normal1_1.png,M\n", "line 3 differs from an earlier line"),
        ("file,sex\nNORMAL/normal1_1.png,F,9\n", "line 2 has more or fewer fields"),
        ('file,sex\n"NORMAL/normal1_1.png,F\n', "not valid CSV"),
        ("name;sex\nNORMAL/normal1_1.png;F\n", "no column 'file'; it has name, sex"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: str, sentence: str, store: Store, scans: Scans) -> None:
    (scans.root / "patients.csv").write_text(table, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        ingest(store, scans)


@pytest.mark.slow
def test_a_table_may_begin_with_the_mark_of_a_spreadsheet(store: Store, scans: Scans) -> None:
    (scans.root / "patients.csv").write_text("file,age\nNORMAL/normal1_1.png,45\n", encoding="utf-8-sig")
    assert row_of(store, ingest(store, scans), "NORMAL/normal1_1.png")["age"] == 45


@pytest.mark.parametrize("name", ["anna08_1", "anna08-1", "anna08 1", "anna08 (1)", "anna08.1", "IM-0008-0001"])
def test_the_last_number_of_a_name_is_the_image_and_the_rest_the_patient(name: str) -> None:
    (guess, _) = guess_patients([f"A/{name}.png", "A/other_2.png"])
    assert guess in (("anna08", "file name"), ("IM-0008", "file name"))


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (["benign/benign_001.jpg", "benign/benign_002.jpg"], [None, None]),
        (["train/benign/benign (1).png", "test/benign/Benign-1.png"], [None, None]),
        (["benign/benign_1.jpg", "benign/overview.png"], [None, "overview"]),
        (["A/us_1.png", "A/us_2.png", "A/anna_1.png"], ["us", "us", "anna"]),
        (["0/0_1.png", "0/3_2.png", "1/1_1.png"], ["0", "3", "1"]),
        (["A/anna_1.png"], ["anna"]),
        (["A/anna/1.png", "A/anna/2.png"], ["anna", "anna"]),
        ([f"Eve{n}/Eve{n}_1.png" for n in range(6)], [f"Eve{n}" for n in range(6)]),
    ],
)
def test_a_name_that_is_the_class_is_no_patient(names: list[str], patients: list[str | None]) -> None:
    expected = [name if patient is None else patient for name, patient in zip(names, patients, strict=True)]
    assert [patient for patient, _ in guess_patients(names)] == expected


def test_where_folders_are_no_classes_a_name_like_the_folder_is_a_patient() -> None:
    names = ["P00/P00_1.png", "P00/P00_2.png"]
    assert [patient for patient, _ in guess_patients(names, in_class_folders=False)] == ["P00", "P00"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "years"),
    [("45", 45), ("045Y", 45), ("18M", 1), ("011M", 0), ("60W", 1), ("400D", 1), ("", -1), ("old", -1), ("1000", -1)],
)
def test_ages_are_read_in_whole_years(given: str, years: int, store: Store, scans: Scans) -> None:
    scans.table({"file": "NORMAL/normal1_1.png", "age": given})
    assert row_of(store, ingest(store, scans), "NORMAL/normal1_1.png")["age"] == years


def test_a_table_without_the_column_of_files_is_refused(store: Store, scans: Scans) -> None:
    scans.table({"name": "x", "age": "4"})
    with pytest.raises(ValueError, match=r"patients\.csv has no column 'file'; it has name, age"):
        ingest(store, scans)


@pytest.mark.slow
def test_folders_above_the_classes_publish_a_split(store: Store, tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    for folder, official in (("train", "train"), ("Validation", "val"), ("testing", "test")):
        for label in ("A", "B"):
            made.add(f"{folder}/{label}/{official}{label}_1.png")
    done = ingest(store, made)
    assert about(store, done)["classes"] == ["A", "B"]
    assert row_of(store, done, "train/A/trainA_1.png")["official"] == "train"
    assert row_of(store, done, "Validation/B/valB_1.png")["official"] == "val"
    assert row_of(store, done, "testing/A/testA_1.png")["official"] == "test"


@pytest.mark.slow
def test_what_cannot_be_used_is_set_aside_with_the_reason(store: Store, scans: Scans) -> None:
    scans.add("NORMAL/broken_1.png", b"this is no image")
    scans.add("NORMAL/cut_1.png", encoded(gray())[:150])
    scans.add("NORMAL/blank_1.png", encoded(np.full((20, 20), 3, np.uint8)))
    scans.add("NORMAL/empty_1.png", b"")
    scans.add("stray.png")
    done = ingest(store, scans)
    found = quarantine(store, done)
    assert numbers(done) == {"images": 8, "patients": 4, "duplicates": 0, "near_duplicates": 0, "quarantined": 5}
    assert found[KEY.hash("image", "stray.png")][0] == "no class"
    for name, words in (("broken", "not a PNG"), ("cut", "cannot be decoded"), ("blank", "blank"), ("empty", "empty")):
        reason, detail = found[KEY.hash("image", f"NORMAL/{name}_1.png")]
        assert reason == "unreadable"
        assert words in detail
    assert not set(found) & set(rows(store, done))


@pytest.mark.slow
def test_the_same_pixels_in_two_classes_are_in_none(store: Store, scans: Scans) -> None:
    pixels = gray(99)
    scans.add("NORMAL/same_1.png", encoded(pixels))
    scans.add("NORMAL/same_2.png", encoded(pixels))
    scans.add("PNEUMONIA/other_1.png", encoded(pixels, compress_level=1))
    done = ingest(store, scans)
    contrary = {image for image, (reason, _) in quarantine(store, done).items() if reason == "contrary label"}
    names = ("NORMAL/same_1.png", "NORMAL/same_2.png", "PNEUMONIA/other_1.png")
    assert contrary == {KEY.hash("image", name) for name in names}
    assert numbers(done) == {"images": 8, "patients": 4, "duplicates": 0, "near_duplicates": 0, "quarantined": 3}


@pytest.mark.slow
def test_copies_are_marked_whatever_file_they_came_in(store: Store, scans: Scans) -> None:
    pixels = gray(99)
    scans.add("NORMAL/one_1.png", encoded(pixels))
    scans.add("NORMAL/two_1.png", encoded(pixels))
    scans.add("NORMAL/three_1.png", encoded(pixels, compress_level=1))
    done = ingest(store, scans)
    copies = [row_of(store, done, f"NORMAL/{name}_1.png") for name in ("one", "two", "three")]
    originals = [row for row in copies if not row["duplicate_of"]]
    assert len(originals) == 1
    assert {row["duplicate_of"] for row in copies} == {"", originals[0]["image_id"]}
    assert about(store, done)["counts"]["duplicates"] == 2
    assert len({row["pixel_digest"] for row in copies}) == 1


def many(tmp_path: Path, count: int = 300) -> Scans:
    """Enough images for several shards."""
    made = Scans(tmp_path / "scans")
    for number in range(count):
        made.add(f"{'AB'[number % 2]}/p{number // 2}_{number}.png", encoded(gray(number, side=8)))
    return made


def everything(store: Store, done: Result) -> dict[str, bytes]:
    """The bytes of the dataset and of its shards."""
    found = contents(store.uri, done.outputs["dataset"])
    return found | {shard["digest"]: store.get(shard["digest"]) for shard in about(store, done)["shards"]}


@pytest.mark.slow
def test_the_same_source_gives_the_same_bytes_wherever_it_lies_and_however_old_it_is(tmp_path: Path) -> None:
    made = many(tmp_path)
    made.add("A/broken_1.png", b"this is no image")
    one = open_store(str(tmp_path / "one"))
    first = ingest(one, made)
    shutil.copytree(made.root, tmp_path / "elsewhere" / "scans", copy_function=shutil.copyfile)
    copy = Scans(tmp_path / "elsewhere" / "scans")
    for number, path in enumerate(sorted(copy.root.rglob("*.png"), reverse=True)):
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    assert copy.revision != made.revision
    other = open_store(str(tmp_path / "other"))
    second = ingest(other, copy)
    assert len(about(one, first)["shards"]) > 1
    assert everything(one, first) == everything(other, second)


@pytest.mark.slow
def test_only_what_is_new_is_decoded(store: Store, tmp_path: Path) -> None:
    made = many(tmp_path)
    made.settle()
    first = ingest(store, made)

    def records() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (Path(store.uri) / "masters").rglob("*") if path.is_file()}

    before = records()
    assert len(before) == len(about(store, first)["shards"]) > 1
    made.add("A/new_1.png")
    second = ingest(store, made)
    after = records()
    assert set(after) == set(before)
    assert sum(after[path] != before[path] for path in before) == 1, "one group changed, and it alone was made"
    assert second.values["images"] == first.values["images"] + 1
    # A source in another order of arrival is the same source.
    other = open_store(str(tmp_path / "other"))
    assert everything(other, ingest(other, made)) == everything(store, second)


@pytest.mark.slow
def test_a_shard_that_has_gone_is_made_again(store: Store, scans: Scans) -> None:
    first = ingest(store, scans)
    shard = about(store, first)["shards"][0]["digest"]
    scans.add("NORMAL/new_1.png")
    scans.root.joinpath("NORMAL/new_1.png").unlink()
    (Path(store.uri) / "objects" / shard[:2] / shard).unlink()
    os.utime(scans.root / "NORMAL" / "normal1_1.png", ns=(1, 1))  # other work over the same files
    again = ingest(open_store(store.uri), scans)
    assert store.has(shard)
    assert again.outputs == first.outputs


@pytest.mark.slow
def test_the_fingerprint_follows_pixels_and_labels_and_not_names(store: Store, scans: Scans) -> None:
    def fingerprint() -> str:
        return str(about(store, ingest(store, scans))["fingerprint"])

    first = fingerprint()
    (scans.root / "NORMAL" / "normal1_1.png").rename(scans.root / "NORMAL" / "renamed_1.png")
    assert fingerprint() == first
    (scans.root / "NORMAL" / "renamed_1.png").rename(scans.root / "PNEUMONIA" / "renamed_1.png")
    assert fingerprint() != first


def stored_bytes(root: Path) -> Iterator[tuple[str, bytes]]:
    for path in root.rglob("*"):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path.read_bytes()


@pytest.mark.slow
def test_no_name_of_a_patient_or_a_file_reaches_the_store(store: Store, scans: Scans) -> None:
    pixels = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    planted = ("ZEBEDEE", "QUIXOTE", "WOLFRAM", "OPHELIA", "FLORIAN")
    scans.add("NORMAL/zebedee_1.dcm", dicom(pixels, PatientName="QUIXOTE^ANNA", PatientID="WOLFRAM-4711"))
    scans.add("NORMAL/zebedee_2.dcm", dicom(pixels, PatientName="QUIXOTE^ANNA", PatientID="WOLFRAM-4711")[:600])
    scans.add("NORMAL/zebedee_3.dcm", dicom(pixels[:4], PatientName="QUIXOTE^ANNA", PatientID="WOLFRAM-4711"))
    scans.add("PNEUMONIA/ophelia_1.png")
    scans.add("zebedee.png", b"zebedee")
    names = sorted(path.relative_to(scans.root).as_posix() for path in scans.root.rglob("*_*.*"))
    scans.table(
        *(
            {"file": name, "patient_id": f"florian{name[-5]}", "site": "SOUTHERN", "label_source": "Dr Florian"}
            for name in names
        )
    )
    scans.add("PNEUMONIA/ophelia_2.png")
    done = ingest(store, scans, keep_sites=["SOUTHERN"])
    assert numbers(done) == {"images": 10, "patients": 2, "duplicates": 0, "near_duplicates": 0, "quarantined": 4}
    found = list(stored_bytes(Path(store.uri)))
    index = pq.read_table(store.fetch(done.outputs["dataset"].files["index.parquet"].digest))
    found.append(("the index, unpacked", json.dumps(index.to_pylist()).encode()))
    assert any(b"SOUTHERN" in data for _, data in found), "the search finds what is there"
    assert {row["label_source"][:9] for row in index.to_pylist()} == {"labeller-"}
    leaks = [(name, word) for name, data in found for word in planted if word in data.decode("latin-1").upper()]
    assert leaks == []


def test_another_key_than_the_runs_is_refused(store: Store, scans: Scans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keyed_hash.VARIABLE, "ab" * 32)
    with pytest.raises(RuntimeError, match=f"this run started with {KEY.id}. Set the same key"):
        ingest(store, scans)


@pytest.mark.slow
def test_another_key_gives_other_ids_and_the_same_fingerprint(
    store: Store, scans: Scans, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ingest(store, scans)
    monkeypatch.setenv(keyed_hash.VARIABLE, "ab" * 32)
    second = ingest(store, scans, key_id=keyed_hash.parse("ab" * 32).id)
    assert about(store, first)["fingerprint"] == about(store, second)["fingerprint"]
    assert not set(rows(store, first)) & set(rows(store, second))
    assert about(store, second)["key_id"] == keyed_hash.parse("ab" * 32).id


@pytest.mark.slow
def test_a_source_that_changed_is_refused_and_the_same_work_may_be_tried_again(store: Store, scans: Scans) -> None:
    revision = scans.revision
    scans.add("NORMAL/late_1.png")
    with pytest.raises(RuntimeError, match="changed after this run listed it"):
        ingest(store, scans, revision=revision)
    (scans.root / "NORMAL" / "late_1.png").unlink()
    assert ingest(store, scans, revision=revision).values["images"] == 8


def test_one_class_is_too_few(store: Store, scans: Scans) -> None:
    shutil.rmtree(scans.root / "PNEUMONIA")
    with pytest.raises(ValueError, match="has 1 class folder: NORMAL; a classifier needs at least 2"):
        ingest(store, scans)


def test_images_outside_of_class_folders_are_no_class(store: Store, tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    made.add("one.png")
    with pytest.raises(ValueError, match="has 0 class folders; a classifier needs at least 2"):
        ingest(store, made)


@pytest.mark.slow
def test_a_class_of_which_nothing_is_usable_is_named(store: Store, scans: Scans) -> None:
    for path in (scans.root / "PNEUMONIA").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="of class 'PNEUMONIA' is left; 4 files were quarantined: unreadable"):
        ingest(store, scans)


@pytest.mark.slow
def test_a_large_image_is_kept_no_larger_than_asked(store: Store, scans: Scans) -> None:
    scans.add("NORMAL/large_1.png", encoded(gray(5, side=200)))
    row = row_of(store, ingest(store, scans, max_side=102), "NORMAL/large_1.png")
    assert (row["height"], row["width"]) == (100, 102)


@pytest.mark.slow
def test_a_group_of_many_large_images_has_several_shards(
    store: Store, scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_parallel, "DECODE_TASK", "tests.components.ingest.sources:work_with_small_shards")
    first = ingest(store, scans)
    assert len(about(store, first)["shards"]) == 3
    assert sum(shard["rows"] for shard in about(store, first)["shards"]) == 8
    scans.add("NORMAL/broken_1.png", b"no image")
    scans.add("NORMAL/new_1.png", encoded(gray(55)))
    second = ingest(store, scans)
    np.testing.assert_array_equal(scans.pixels_of(store, second, "NORMAL/new_1.png"), gray(55))
    for number, path in enumerate(sorted(scans.root.glob("*/*[12]_[12].png"))):
        np.testing.assert_array_equal(
            scans.pixels_of(store, second, path.relative_to(scans.root).as_posix()), gray(number + 1, number // 4)
        )
    other = open_store(str(tmp_path / "other"))
    assert everything(other, ingest(other, scans)) == everything(store, second)
    views = Data.open(laid_out(store, second, "dataset", tmp_path / "out"), store).views(16, "pad")
    assert views[np.arange(9)].shape == (9, 16, 16)
