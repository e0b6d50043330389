"""All images together: the same data set in however many parts they came, with what only all of them can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.shared.runtime.work import Result
from components.shared.storage.store import Store, open_store
from tests.components.ingest.test_ingest import (
    KEY,
    Scans,
    about,
    everything,
    ingest,
    many,
    merged,
    portions,
    quarantine,
    row_of,
)
from tests.components.shared.images import encoded, gray
from tests.components.shared.steps import contents, nothing, step

pytestmark = pytest.mark.usefixtures("shared_template")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 3, 20])
def test_however_many_parts_the_data_set_is_the_same_to_the_byte(parts: int, tmp_path: Path) -> None:
    made = many(tmp_path)
    made.add("A/broken_1.png", b"this is no image")
    made.add("stray.png")
    made.add("B/copy_1.png", (made.root / "A" / "p0_0.png").read_bytes())
    made.add("A/copy_2.png", (made.root / "A" / "p1_2.png").read_bytes())
    (made.root / "A" / "notes.doc").write_text("left out")
    one, other = open_store(str(tmp_path / "one")), open_store(str(tmp_path / "other"))
    whole, together = ingest(one, made), ingest(other, made, parts)
    assert everything(one, whole) == everything(other, together)
    assert about(one, whole)["counts"]["reasons"] == {"contrary label": 2, "no class": 1, "unreadable": 1}
    assert whole.outputs == together.outputs


@pytest.mark.slow
def test_parts_do_not_decode_what_another_part_does(store: Store, tmp_path: Path) -> None:
    made = many(tmp_path, 1200)
    done = portions(store, made, 3)
    assert sum(each.values["images"] for each in done) == 1200
    assert all(each.values["images"] for each in done)
    seconds = {path: path.stat().st_mtime_ns for path in (Path(store.uri) / "masters").rglob("*")}
    made.settle()
    ingest(store, made, 1)
    assert set(seconds) == set((Path(store.uri) / "masters").rglob("*")), "the groups are those of the parts"


@pytest.mark.slow
def test_a_part_that_is_missing_or_there_twice_is_refused(store: Store, tmp_path: Path) -> None:
    found = portions(store, many(tmp_path), 3)
    for wrong in (found[:2], [*found, found[0]], [found[0], found[1], found[1]]):
        with pytest.raises(ValueError, match="must be all 3 of one source, each once"):
            merged(store, wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"classes": ["B", "A"]}, "classes"),
        ({"max_side": 64}, "decoding"),
        ({"patient_pattern": r"(\d+)\."}, "the parameters of ingest"),
        ({"label_map": {"A": "A", "B": "B"}}, "the parameters of ingest"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    other: dict[str, Any], name: str, store: Store, tmp_path: Path
) -> None:
    made = many(tmp_path)
    found = [portions(store, made, 2)[0], portions(store, made, 2, **other)[1]]
    with pytest.raises(ValueError, match=f"The portions 1/2 and 2/2 differ in {name}|2/2 and 1/2 differ in {name}"):
        merged(store, found)


@pytest.mark.slow
def test_parts_of_a_source_that_changed_between_them_are_refused(store: Store, tmp_path: Path) -> None:
    made = many(tmp_path)
    first = portions(store, made, 2)[0]
    made.add("A/late_1.png")
    with pytest.raises(ValueError, match="differ in the files of the source"):
        merged(store, [first, portions(store, made, 2)[1]])


def warned(store: Store, done: Result) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines = contents(store.uri, done.outputs["dataset"])["warnings.csv"].decode().splitlines()[1:]
    for line in lines:
        found.setdefault(line.split(",")[2], []).append(line)
    return found


@pytest.mark.slow
def test_copies_of_a_patients_image_are_counted_and_those_under_another_patient_told(
    store: Store, tmp_path: Path
) -> None:
    made = many(tmp_path, 40)
    made.add("A/p0_77.png", (made.root / "A" / "p0_0.png").read_bytes())
    done = ingest(store, made)
    assert done.values["duplicates"] == 1
    assert not [reason for reason in warned(store, done) if reason.startswith(("copies", "look"))]


@pytest.mark.slow
def test_look_alikes_are_marked_and_told_with_whose_they_are(store: Store, tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    for number in range(6):
        made.add(f"{'AB'[number % 2]}/p{number}_1.jpg", textured(number, 95))
    made.add("A/p0_2.jpg", textured(0, 60))
    made.add("B/other_1.jpg", textured(1, 50))
    done = ingest(store, made)
    assert done.values["near_duplicates"] == 4
    for one, two in (("A/p0_1.jpg", "A/p0_2.jpg"), ("B/p1_1.jpg", "B/other_1.jpg")):
        first, second = row_of(store, done, one), row_of(store, done, two)
        assert first["near"] == second["near"] == min(first["image_id"], second["image_id"])
    assert row_of(store, done, "A/p2_1.jpg")["near"] == ""
    told = warned(store, done)
    assert "2 images of 1 patient: " in told["look-alikes"][0]
    assert "2 images of 2 patients: " in told["look-alikes across patients"][0]
    assert about(store, done)["counts"]["warnings"]["look-alikes across patients"] == 1
    untouched = merged(store, portions(store, made), near_duplicates=False)
    assert untouched.values["near_duplicates"] == 0


def textured(seed: int, quality: int) -> bytes:
    """A picture of coarse blobs, in a JPEG of that quality."""
    blobs = np.random.default_rng(seed).integers(20, 230, (9, 9), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(blobs).resize((256, 256), Image.Resampling.BICUBIC))
    return encoded(picture, "JPEG", quality=quality)


def test_every_image_a_patient_of_its_own_is_told(store: Store, tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    for number in range(6):
        made.add(f"{'AB'[number % 2]}/scan-{chr(97 + number)}.png")
    (line,) = warned(store, ingest(store, made))["every image is a patient of its own"]
    assert "6 images of as many patients" in line
    assert "may be in several splits" in line


def test_how_patients_were_guessed_is_told(store: Store, tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    for number in range(6):
        made.add(f"A/anna{number // 2}_{number % 2}.png")
        made.add(f"B/B_{number}.png")
        made.add(f"C/eve{number // 3}/{number}.png")
    told = warned(store, ingest(store, made))
    assert (
        told["patients guessed from file names"][0]
        .partition('"')[2]
        .startswith("6 images: the file's name without its last number")
    )
    assert (
        told["patients guessed from folders"][0]
        .partition('"')[2]
        .startswith("6 images: each folder below a class folder")
    )
    (line,) = told["each file counted as a patient"]
    assert "6 images: their names show no patient" in line
    assert "name the patients in patients.csv, or set ingest_options patient_pattern" in line
    (made.root / "patients.csv").write_text(
        "\n".join(
            ["file,patient_id", *(f"{p.relative_to(made.root)},p{n}" for n, p in enumerate(made.root.rglob("*.png")))]
        )
    )
    assert not [reason for reason in warned(store, ingest(store, made)) if "guessed" in reason]


@pytest.mark.slow
def test_what_the_listing_left_out_is_told(store: Store, tmp_path: Path) -> None:
    made = many(tmp_path, 20)
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded(gray()))
    (made.root / "A" / "link_1.png").symlink_to(outside)
    (made.root / "A" / "thumbs.db").write_bytes(b"x")
    lines = warned(store, ingest(store, made))["not in the listing"]
    assert len(lines) == 2
    assert any("1 file of the source left out: links out of it" in line for line in lines)
    assert any("1 file of the source left out: of another kind" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 4])
def test_what_was_left_out_as_asked_and_set_aside_is_told_once_by_the_merge_again_and_again(
    parts: int, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = many(tmp_path, 60)
    made.add("C/one_1.png")
    made.add("stray_1.png")
    made.settle()
    with caplog.at_level("INFO", "medloop"):
        done = ingest(store, made, parts, label_map={"A": "A", "B": "B", "C": ""}, limit_per_class=20)
    assert done.values["left_out"] == {"label_map": 1, "limit_per_class": 60 - done.values["images"]}
    assert done.values["images"] < 60
    assert done.values["set_aside"] == {"no class: it is not in a class folder": 1}
    events = [getattr(record, "fields", {}) for record in caplog.records]
    assert sum("limit_per_class" in str(fields) for fields in events) == 1, "in the values of merge, and nowhere else"
    again = ingest(store, made, parts, label_map={"A": "A", "B": "B", "C": ""}, limit_per_class=20)
    assert again.reused
    assert again.values == done.values


@pytest.mark.slow
def test_of_many_details_of_a_reason_three_are_told_and_the_rest_counted(store: Store, tmp_path: Path) -> None:
    made = many(tmp_path, 20)
    for side in range(1, 6):
        made.add(f"A/tiny_{side}.png", encoded(gray()[:side, :side]))
    told = ingest(store, made).values["set_aside"]
    assert len(told) == 4
    assert told["unreadable: for other reasons"] == 2
    assert sum(told.values()) == 5


def test_no_portion_at_all_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="There are 0 portions"):
        step("merge", store, {"portions": nothing(store)})


def findings(made: Scans, *rows: tuple[str, str]) -> None:
    """A table of findings, and an image for each of its lines."""
    lines = ["file,label,patient_id"]
    for number, (name, label) in enumerate(rows):
        made.add(name, encoded(gray(number + 1000)))
        lines.append(f"{name},{label},p{number}")
    (made.root / "patients.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_any_number_of_findings(store: Store, tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    made.root.mkdir()
    findings(made, ("a.png", "Mass|Nodule"), ("b.png", "Mass"), ("c.png", "None"), ("d.png", "Effusion"))
    done = ingest(store, made, separator="|", no_finding="None")
    described = about(store, done)
    assert (described["task"], described["classes"]) == ("multilabel", ["Effusion", "Mass", "Nodule"])
    assert described["counts"]["by_class"] == {"Effusion": 1, "Mass": 2, "Nodule": 1}
    assert described["counts"]["without_finding"] == 1
    assert row_of(store, done, "a.png")["labels"] == [1, 2]
    assert row_of(store, done, "c.png")["labels"] == []


@pytest.mark.slow
def test_the_same_pixels_with_other_findings_are_set_aside(store: Store, tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    made.root.mkdir()
    findings(made, ("a.png", "Mass|Nodule"), ("b.png", "Mass"), ("c.png", "None"), ("d.png", "Nodule|Mass"))
    for name in ("b.png", "d.png"):
        (made.root / name).write_bytes((made.root / "a.png").read_bytes())
    made.add("e.png", encoded(gray(5000)))
    with (made.root / "patients.csv").open("a") as table:
        table.write("e.png,Mass,p9\n")
    done = ingest(store, made, separator="|", no_finding="None", classes=["Mass", "Nodule"])
    contrary = {image for image, (reason, _) in quarantine(store, done).items() if reason == "contrary label"}
    assert contrary == {KEY.hash("image", name) for name in ("a.png", "b.png", "d.png")}
