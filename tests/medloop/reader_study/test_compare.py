"""`medloop readers`: a table of what people said, held against a run's test images; and every way to get it wrong."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.shared.contracts import Manifest
from components.shared.privacy import keyed_hash
from components.shared.storage.store import open_store
from medloop.reader_study.compare import compare_readers
from medloop.reader_study.study_figures import LockedTest, Readings, study
from medloop.reader_study.table import Reading, read_table
from medloop.runner import explain
from medloop.runner.run import find
from medloop.settings import Settings
from tests.components.evaluate.test_page import Balance
from tests.medloop.by_hand import RUN, ByHand
from tests.medloop.test_cli import medloop

CLASSES = ["NORMAL", "PNEUMONIA"]
KEY = keyed_hash.parse(keyed_hash.SYNTHETIC)
Row = dict[str, str]


@pytest.fixture(scope="module")
def images(finished: ByHand) -> list[tuple[str, dict[str, Any]]]:
    """The test images of the finished run: the name of each at the source, and its row of predictions."""
    store = open_store(str(finished.home / "store"))
    step = find(store).last("evaluate")
    assert step is not None
    files = Manifest.decode(store.get(step["outputs"]["report"]), "report").files
    rows = pq.read_table(pa.BufferReader(store.get(files["predictions.parquet"].digest))).to_pylist()
    names = {
        KEY.image(path.relative_to(finished.scans).as_posix()): path.relative_to(finished.scans).as_posix()
        for path in finished.scans.rglob("*")
    }
    return [(names[row["image_id"]], row) for row in rows]


def written(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def table(images: list[tuple[str, dict[str, Any]]], readers: dict[str, float]) -> list[Row]:
    """What these readers say, each wrong in a share of the images alone, and in half of that with help."""
    rng = np.random.default_rng(1)
    rows = []
    for reader, wrong in readers.items():
        for aided, share in (("no", wrong), ("yes", wrong / 2)):
            for name, row in images:
                label = row["label"] ^ int(rng.random() < share)
                rows.append({"reader": reader, "image": name, "label": CLASSES[label], "aided": aided})
    return rows


def test_a_study_is_told_beside_the_run_and_changes_nothing_there(
    finished: ByHand, images: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    store = open_store(str(finished.home / "store"))
    before = sorted(path.as_posix() for path in Path(finished.home / "store").rglob("*"))
    rows = table(images, {"Ada": 0.3, "Bo & <b>Co</b>": 0.4, "3": 0.2})
    file = written(tmp_path / "readings.csv", rows)
    told = json.loads(medloop(finished.home, "readers", RUN[:6], "--csv", str(file), "--json").stdout)
    assert sorted(path.as_posix() for path in Path(finished.home / "store").rglob("*")) == before
    assert (told["run"], told["positive"], told["images"]) == (RUN, "PNEUMONIA", len(images))
    assert [each["reader"] for each in told["readers"]] == ["3", "Ada", "Bo & <b>Co</b>"]
    truth = {name: row["label"] for name, row in images}
    for each in told["readers"]:
        for aided, way in (("no", "unaided"), ("yes", "aided")):
            own = [row for row in rows if row["reader"] == each["reader"] and row["aided"] == aided]
            right = np.mean([CLASSES.index(row["label"]) == truth[row["image"]] for row in own])
            assert each[way]["accuracy"]["value"] == pytest.approx(right)
            assert each[way]["accuracy"]["low"] <= right <= each[way]["accuracy"]["high"]
            found = [row for row in own if truth[row["image"]] == 1]
            share = np.mean([row["label"] == "PNEUMONIA" for row in found])
            assert each[way]["sensitivity"]["value"] == pytest.approx(share)
        gain = each["aided"]["accuracy"]["value"] - each["unaided"]["accuracy"]["value"]
        assert each["difference"]["accuracy"]["difference"] == pytest.approx(gain)
    gains = [each["difference"]["accuracy"]["difference"] for each in told["readers"]]
    assert told["effect"]["figures"]["accuracy"]["difference"] == pytest.approx(np.mean(gains))
    assert told["effect"]["figures"]["auc"] is None, "labels alone have no curve"
    assert told["agreement"]["unaided"]["method"] == "Fleiss"
    model = np.mean([row["label"] == row["predicted"] for _, row in images])
    assert told["model"]["accuracy"]["value"] == pytest.approx(model)
    page = Path(told["page"]).read_text(encoding="utf-8")
    assert Path(told["page"]).parent == finished.home / "runs" / RUN
    assert json.loads((finished.home / "runs" / RUN / "readers.json").read_text())["images"] == len(images)
    assert store.uri
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert all(resource.startswith("#") for resource in balance.resources)
    assert "<b>Co" not in page
    assert "&lt;b&gt;Co" in page
    assert told["effect"]["sentence"].split(" (")[0] in page.replace("&#39;", "'")
    assert page.count("<svg") == 1
    assert not any(name in page for name, _ in images), "no file of a patient is named"


def test_in_the_terminal_it_says_the_effect_and_where_the_page_is(
    finished: ByHand, images: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    file = written(tmp_path / "readings.csv", table(images, {"Ada": 0.3, "Bo": 0.4}))
    told = medloop(finished.home, "readers", "--csv", str(file)).stdout
    assert told.startswith("With the model's help, the accuracy of the 2 readers was ")
    assert told.endswith(f"{finished.home / 'runs' / RUN / 'readers.html'}\n")


def test_ids_do_as_well_as_names_and_need_no_key(
    finished: ByHand, images: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    rows = [
        {"Reader": "Ada", "image_id": row["image_id"], "score": str(row["label"] + 0.25 * (place % 2)), "aided": ""}
        for place, (_, row) in enumerate(images)
    ]
    file = written(tmp_path / "scores.csv", rows)
    told = json.loads(medloop(finished.home, "readers", "--csv", str(file), "--cut", "1", "--json").stdout)
    assert told["readers"][0]["unaided"]["auc"]["value"] == 1
    assert told["readers"][0]["unaided"]["sensitivity"]["value"] == 1
    assert told["readers"][0]["aided"] is None
    assert told["effect"]["sentence"].startswith("No reader read with and without help")


# Bad input.


def changed(rows: list[Row], line: int, **cells: str) -> list[Row]:
    """The rows with other cells in one line; the header is line 1."""
    return [{**row, **(cells if place == line - 2 else {})} for place, row in enumerate(rows)]


WRONG: dict[str, tuple[Callable[[list[Row]], list[Row]], list[str]]] = {
    "unknown image": (
        lambda rows: changed(rows, 4, image="NORMAL/none.png"),
        ["Line 4", "not among the", "test images", "Use its name relative to the source"],
    ),
    "unknown label": (
        lambda rows: changed(rows, 3, label="Pneumona"),
        ["Line 3", "a label that is not a class", "did you mean 'PNEUMONIA'", "NORMAL, PNEUMONIA"],
    ),
    "too few": (lambda rows: rows[:4], ["'Ada' has 4 images without help", "at least 10", "remove these lines"]),
    "duplicate": (
        lambda rows: [*rows, rows[2]],
        ["Lines 4 and ", "the same image, read by 'Ada' without help", "Keep one"],
    ),
    "aided": (lambda rows: changed(rows, 2, aided="perhaps"), ["Line 2", "column aided", "yes", "no."]),
    "no reader": (lambda rows: changed(rows, 2, reader=" "), ["Line 2", "has no reader"]),
    "no label": (lambda rows: changed(rows, 5, label=""), ["Line 5", "has no label", "remove the line"]),
    "column": (
        lambda rows: [{**row, "lable": "x"} for row in rows],
        ["an unknown column 'lable'", "did you mean 'label'"],
    ),
    "missing column": (
        lambda rows: [{"reader": row["reader"], "image": row["image"]} for row in rows],
        ["has the columns reader, image; it must have", "label (or score)"],
    ),
    "scores without a cut": (
        lambda rows: [{"reader": row["reader"], "image": row["image"], "score": "1"} for row in rows],
        ["scores but no labels", "--cut"],
    ),
    "a frame": (
        lambda rows: changed([{**row, "frame": ""} for row in rows], 2, frame="x"),
        ["Line 2", "an invalid frame"],
    ),
    "a score": (
        lambda rows: changed([{**row, "score": "1"} for row in rows], 3, score="nan"),
        ["Line 3", "a score that is not a number"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_table_that_makes_no_sense_is_refused_with_its_line(what: str) -> None:
    ids = {KEY.image(f"{number}.png"): number for number in range(12)}
    rows = [{"reader": "Ada", "image": f"{n}.png", "label": CLASSES[n % 2], "aided": "no"} for n in range(12)]
    edit, words = WRONG[what]
    read(rows, ids)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        read(edit(rows), ids)
    for word in words:
        assert word in str(caught.value)
    for cell in ("none.png", "Pneumona", "perhaps", "'x'", "nan"):  # it may be of another column
        assert cell not in str(caught.value)


def read(rows: list[Row], ids: dict[str, int]) -> list[Reading]:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return read_table(text.getvalue().encode("utf-8-sig"), CLASSES, ids, KEY.image, 1, None)


def test_an_empty_file_and_another_encoding_are_refused() -> None:
    with pytest.raises(ValueError, match="has the columns \\(none\\)"):
        read_table(b"", CLASSES, {}, KEY.image, 1, None)
    with pytest.raises(ValueError, match="contains 0 readings"):
        read_table(b"reader,image,label\n,,\n", CLASSES, {}, KEY.image, 1, None)
    with pytest.raises(ValueError, match="not valid UTF-8 at byte 21"):
        read_table("reader,image,label\nB,ä".encode("latin-1"), CLASSES, {}, KEY.image, 1, None)
    with pytest.raises(RuntimeError, match="there is no hash key"):
        read_table(b"reader,image,label\n", CLASSES, {}, None, 1, None)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            "reader,image,label,score\nA,1.png,NORMAL,0,5",
            "Line 2 .* has 5 cells, but the table has 4 columns.* with a point",
        ),
        (
            'reader,image,label\nA,"' + "x" * 200_000 + '",NORMAL',
            r"Line \d of the readers' table is not valid CSV",
        ),
        ("reader,image,label\nA,1.png,\0", "The readers' table, line 2 contains a NUL character"),
        ("reader,image," + "label," * 2000, "The readers' table has 2,003 columns; the maximum is 1,000"),
        ("reader,image,label,Label\nA,1.png,NORMAL,PNEUMONIA", "has the column 'label' twice. Keep one"),
    ],
)
def test_what_is_no_table_is_refused_and_not_guessed(data: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_table(data.encode(), CLASSES, {KEY.image("1.png"): 0}, KEY.image, 1, None)


def test_findings_have_no_readers_and_a_cut_is_a_number(
    finished: ByHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "readings.csv", [{"reader": "Ada", "image": "1.png", "score": "0.5"}])
    done = medloop(finished.home, "readers", "--csv", str(file), "--cut", "nan", status=2)
    assert "Invalid value for '--cut'" in done.stderr
    store = open_store(str(finished.home / "store"))
    several = {**(explain.metrics(store, find(store)) or {}), "task": "multilabel"}
    monkeypatch.setattr(explain, "metrics", lambda *_: several)
    with pytest.raises(ValueError, match="predicts 2 findings, several per image"):
        compare_readers(Settings.__new__(Settings), store, find(store), file, "", None)


def test_a_frame_of_a_file_is_an_image_of_its_own() -> None:
    ids = {KEY.image("cine.dcm", frame): frame for frame in range(10)}
    rows = [
        {"reader": "Ada", "image": "./cine.dcm", "frame": str(frame), "label": "NORMAL", "aided": "YES"}
        for frame in range(10)
    ]
    found = read(rows, ids)
    assert [each.image_id for each in found] == list(ids)
    assert all(each.aided for each in found)


def test_what_cannot_be_asked_is_refused(
    finished: ByHand, images: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    file = str(written(tmp_path / "readings.csv", table(images, {"Ada": 0.3})))
    nothing = medloop(finished.home, "readers", "--csv", str(tmp_path / "none.csv"), status=2)
    assert "no such file exists" in nothing.stderr
    other = medloop(finished.home, "readers", "--csv", file, "--positive", "VIRUS", status=2)
    assert "--positive is 'VIRUS', which is not a class" in other.stderr
    foreign = keyed_hash.parse("a7" * 32)
    wrong = medloop(finished.home, "readers", "--csv", file, status=1, MEDLOOP_HASH_KEY=foreign.text)
    assert f"has the id {foreign.id}, but the run's data set uses the key {KEY.id}" in wrong.stderr
    early = ByHand(tmp_path / "early")
    early.data()
    said = medloop(tmp_path / "early", "readers", "--csv", file, status=1)
    assert "its model was not evaluated" in said.stderr


# Studies that are not whole.


def locked(images: int = 60, classes: int = 2) -> LockedTest:
    labels = np.arange(images) % classes
    return LockedTest(
        classes=["NORMAL", "BACTERIA", "VIRUS"][:classes],
        image_ids=[f"{number}" for number in range(images)],
        labels=labels,
        patients=np.arange(images) // 2,
        predicted=labels,
        probabilities=np.eye(classes)[labels],
        confidence=0.95,
    )


def readings(which: LockedTest, ways: dict[tuple[str, bool], range]) -> Readings:
    """What each reader said of these images in each way: each fifth is wrong, each seventh with help."""
    rows = []
    for (reader, aided), images in ways.items():
        for image in images:
            wrong = (image + len(reader)) % (7 if aided else 5) == 0
            label = (int(which.labels[image]) + wrong) % len(which.classes)
            rows.append(Reading(reader, f"{image}", aided, label, None, image))
    return Readings.of(rows, which)


def test_the_effect_is_of_images_that_all_read_in_both_ways() -> None:
    test = locked()
    whole = {("A", False): range(60), ("A", True): range(40), ("BB", False): range(20, 60), ("BB", True): range(60)}
    told = study(readings(test, {**whole, ("CCC", False): range(60)}), test, 1)
    assert (told["effect"]["readers"], told["effect"]["images"]) == (2, 20)
    assert told["readers"][0]["difference"]["images"] == 40
    assert told["readers"][2]["difference"] is None
    assert told["agreement"]["unaided"]["readers"] == 3
    assert told["agreement"]["unaided"]["images"] == 40
    assert told["effect"]["sentence"].endswith("Two readers are too few to represent others.")


def test_too_little_in_common_is_said() -> None:
    test = locked()
    apart = {("A", False): range(30), ("A", True): range(30), ("B", False): range(25, 60), ("B", True): range(25, 60)}
    told = study(readings(test, apart), test, 1)
    assert told["effect"]["figures"] is None
    assert "All 2 readers read 5 images with and without help" in told["effect"]["sentence"]
    assert told["agreement"] == {"unaided": None, "aided": None}
    alone = study(readings(test, {("A", False): range(30), ("A", True): range(30)}), test, 1)
    assert alone["effect"]["sentence"].startswith("Only one reader read in both ways")


def test_of_three_classes_one_can_be_asked_for() -> None:
    test = locked(90, 3)
    said = readings(test, {("A", False): range(90), ("B", False): range(90)})
    told = study(said, test, None)
    assert told["positive"] is None
    assert told["readers"][0]["unaided"]["sensitivity"] is None
    assert told["agreement"]["unaided"]["method"] == "Cohen"
    asked = study(said, test, 2)
    own = said.calls[0, 0]
    assert asked["readers"][0]["unaided"]["sensitivity"]["value"] == pytest.approx((own[test.labels == 2] == 2).mean())
    assert asked["readers"][0]["unaided"]["specificity"]["value"] == pytest.approx((own[test.labels != 2] != 2).mean())
