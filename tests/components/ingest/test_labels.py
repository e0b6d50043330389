"""A source's folders, table, patterns and lists tell what each image shows, whose it is, and on which side it was."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.shared.storage.image_source import Directory
from components.shared.storage.store import Store, open_store
from tests.components.ingest.sources import PLANTED, add, by_name, classes_of, listing, read
from tests.components.ingest.test_ingest import KEY, Scans, about, ingest, quarantine, row_of

NAMES = [
    f"{label}/zebedee{number}_{image}.png" for label in ("NORMAL", "SICK") for number in (1, 2) for image in (1, 2)
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two class folders, two patients in each, two images of each."""
    add(tmp_path, NAMES)
    return tmp_path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Five images in a folder that means nothing, and a table in a hospital's own words."""
    add(tmp_path, [f"images/zebedee{number}.png" for number in range(5)])
    (tmp_path / "export.csv").write_text(
        "Picture,Diagnosis,Case,Years,Gender,Set,Remark\n"
        "zebedee0.png,clear,wolfram1,45,female,train,a\n"
        "zebedee1.png,effusion,wolfram2,058Y,M,test,b\n"
        "zebedee2.png,effusion|mass,wolfram2,411,X,test,c\n"
        "images/zebedee3.png,mass,wolfram3,,U,,d\n"
        "zebedee4.png,,wolfram4,9.0,m,val,e\n",
        encoding="utf-8",
    )
    return tmp_path


COLUMNS = {
    "file": "Picture",
    "label": "Diagnosis",
    "patient_id": "Case",
    "age": "Years",
    "sex": "Gender",
    "official": "Set",
}


def refusal(act: Callable[[], object]) -> str:
    """What a ValueError says, which is no name of a file or a patient."""
    with pytest.raises(ValueError, match=r"\w") as refused:
        act()
    text = str(refused.value)
    assert not [word for word in PLANTED if word in text.lower()], text
    assert refused.value.__cause__ is None
    return text


def test_folders_tell_the_class_where_nothing_else_does(root: Path) -> None:
    add(root, ["stray.png"])
    found = read(root)
    assert (found.task, found.classes, found.warnings, found.left_out) == ("classification", ["NORMAL", "SICK"], [], {})
    assert [item.name for item in found.files] == sorted([*NAMES, "stray.png"])
    assert by_name(found)["NORMAL/zebedee1_1.png"] == (
        *("NORMAL/zebedee1_1.png", (0,), "", "", {}, None),
        ("zebedee1", "file name"),
    )
    assert by_name(found)["stray.png"].problem == ("no class", "it is not in a class folder")


@pytest.mark.parametrize(
    ("name", "label", "side"),
    [
        ("train/A/x.png", "A", "train"),
        ("Validation/B/deep/x.png", "B", "val"),
        ("train/x.png", "train", ""),
        ("A/train/x.png", "A", ""),
    ],
)
def test_folders_above_the_class_folders_are_sides(name: str, label: str, side: str, root: Path) -> None:
    add(root, [name])
    found = read(root)
    assert (classes_of(found)[name], by_name(found)[name].official) == ([label], side)


def test_without_class_folders_a_sides_folder_may_hold_the_images(tmp_path: Path) -> None:
    add(tmp_path, ["train/a_sick.png", "testing/b_well.png", "c_well.png"])
    found = by_name(read(tmp_path, label_pattern="_(sick|well)"))
    assert [found[name].official for name in sorted(found)] == ["", "test", "train"]


def test_a_table_tells_labels_patients_sides_and_the_rest(flat: Path) -> None:
    found = read(flat, table="export.csv", columns=COLUMNS)
    assert found.classes == ["clear", "effusion", "effusion|mass", "mass"]  # without a separator it is one label
    files = by_name(found)
    assert files["images/zebedee0.png"][1:-1] == ((0,), "train", "wolfram1", {"age": "45", "sex": "F"}, None)
    assert files["images/zebedee1.png"][1:-1] == ((1,), "test", "wolfram2", {"age": "058Y", "sex": "M"}, None)
    assert files["images/zebedee2.png"].table == {}
    assert files["images/zebedee3.png"][1:-1] == ((3,), "", "wolfram3", {}, None)
    assert files["images/zebedee4.png"].problem == ("no class", "export.csv names no class for it")
    assert found.warnings == [
        ("no age", "1 age in export.csv (line 4) is invalid or above 120 years and counts as unknown"),
        ("no sex", "1 entry for sex in export.csv (line 4) is neither M nor F and counts as unknown"),
    ]


def test_a_separator_makes_findings_of_labels(flat: Path) -> None:
    asked = {"table": "export.csv", "columns": COLUMNS, "separator": "|"}
    found = read(flat, **asked, no_finding="clear")
    assert (found.task, found.classes) == ("multilabel", ["effusion", "mass"])
    assert list(classes_of(found).values()) == [[], ["effusion"], ["effusion", "mass"], ["mass"]]
    assert by_name(found)["images/zebedee4.png"].problem == ("no class", "export.csv names no class for it")
    picked = read(flat, **asked, no_finding="clear", classes=["mass"])
    assert list(classes_of(picked).values()) == [[], [], ["mass"], ["mass"]], "who has another finding has not this one"
    assert picked.left_out == {}


def test_an_empty_label_is_no_finding_where_no_word_means_that(flat: Path) -> None:
    found = read(flat, table="export.csv", columns=COLUMNS, separator="|")
    assert classes_of(found)["images/zebedee4.png"] == []
    assert ("no label", "1 image has an empty label in export.csv, which counts as no finding") in (found.warnings)
    assert found.classes == ["clear", "effusion", "mass"]
    assert any("'clear' counts as a finding" in detail for _, detail in found.warnings)


def test_one_finding_against_none_is_a_classification(flat: Path) -> None:
    asked: dict[str, Any] = {"table": "export.csv", "columns": COLUMNS, "separator": "|", "task": "classification"}
    found = read(flat, **asked, classes=["clear", "effusion"])
    assert list(classes_of(found).values()) == [["clear"], ["effusion"], ["effusion"]]
    assert found.left_out == {"of no class asked for": 1}
    pure = read(flat, **asked, label_map={"clear": "none", "effusion": "water", "mass": ""})
    assert list(classes_of(pure).values()) == [["none"], ["water"]]
    assert pure.left_out == {"label_map": 2}
    either = read(flat, **asked, label_map={"clear": "none", "effusion": "any", "mass": "any"}, no_finding="clear")
    assert either.classes == ["none", "any"]
    assert list(classes_of(either).values()) == [["none"], ["any"], ["any"], ["any"]]
    both = read(flat, **asked)
    assert both.left_out == {"of several classes": 1}


def test_none_and_a_finding_together_are_contrary(flat: Path) -> None:
    (flat / "patients.csv").write_text("file,label\nzebedee0.png,clear|mass\nzebedee1.png,clear\nzebedee2.png,mass\n")
    for task in ("multilabel", "classification"):
        found = by_name(read(flat, separator="|", no_finding="clear", task=task))
        assert found["images/zebedee0.png"].problem == (
            "contrary label",
            "it has both a finding and the label for no finding",
        )
        assert found["images/zebedee4.png"].problem == ("not in the table", "patients.csv has no row for it")


def test_a_map_joins_labels_renames_them_and_leaves_images_out(root: Path) -> None:
    add(root, ["MILD/a_1.png", "BLURRED/b_1.png"])
    mapped = {"NORMAL": "well", "SICK": "ill", "MILD": "ill", "BLURRED": ""}
    found = read(root, label_map=mapped)
    assert found.classes == ["ill", "well"]
    assert classes_of(found)["MILD/a_1.png"] == classes_of(found)["SICK/zebedee1_1.png"] == ["ill"]
    assert found.left_out == {"label_map": 1}
    assert read(root, label_map=mapped, classes=["well", "ill"]).classes == ["well", "ill"]


def test_patterns_tell_label_and_patient_by_the_first_group_that_matched(root: Path) -> None:
    add(root, ["x/wolfram-1951.png", "x/none.png"])
    found = read(root, label_pattern=r"(NORMAL)/|/(wolfram)|(SICK)/", patient_pattern=r"zebedee(\d)|-(19)51|x/(none)")
    assert found.classes == ["NORMAL", "SICK", "wolfram"]
    assert {item.patient for item in found.files} == {"1", "2", "19", "none"}
    assert by_name(found)["x/none.png"].problem == ("no class", "label_pattern does not match its name")
    some = by_name(read(root, label_pattern="(NORMAL|SICK)", patient_pattern="NORMAL/zebedee(.)"))
    assert some["SICK/zebedee1_1.png"].problem == ("no patient", "patient_pattern does not match its name")
    assert some["NORMAL/zebedee1_1.png"].patient == "1"


def test_lists_publish_sides(root: Path) -> None:
    (root / "for_training.txt").write_text("zebedee1_1.png\n\n NORMAL/zebedee2_1.png \n", encoding="utf-8-sig")
    (root / "for_testing.txt").write_text("SICK\\zebedee2_2.png\r\nSICK/zebedee2_2.png\r\n")
    add(root, ["train/SICK/wolfram.png"])
    (root / "for_training.txt").write_text("NORMAL/zebedee1_1.png\n\n NORMAL/zebedee2_1.png \n", encoding="utf-8-sig")
    found = read(root, official={"for_training.txt": "train", "for_testing.txt": "test"})
    sides = {item.name: item.official for item in found.files if item.official}
    assert sides == {
        "NORMAL/zebedee1_1.png": "train",
        "NORMAL/zebedee2_1.png": "train",
        "SICK/zebedee2_2.png": "test",
    }
    assert classes_of(found)["train/SICK/wolfram.png"] == ["SICK"]
    assert found.warnings == [
        ("no side", "6 images are in none of the lists for_testing.txt, for_training.txt; they are drawn at random")
    ]


def test_lines_without_files_may_be_passed_over(root: Path) -> None:
    (root / "patients.csv").write_text("file,age\nNORMAL/zebedee9.png,3\nNORMAL/zebedee1_1.png,4\nwolfram.png,5\n")
    (root / "list.txt").write_text("NORMAL/zebedee1_1.png\nzebedee8.png\n")
    found = read(root, missing_files="skip", official={"list.txt": "val"})
    assert [text for text in found.warnings if text[0] == "no file"] == [
        ("no file", "2 lines of patients.csv name files that the source does not have"),
        ("no file", "1 line of list.txt names a file that the source does not have"),
    ]
    assert by_name(found)["NORMAL/zebedee1_1.png"][2:5] == ("val", "", {"age": "4"})


def test_a_table_that_names_patients_must_name_those_of_all_images_that_are_taken(root: Path) -> None:
    rows = [f"{name},wolfram,well" for name in NAMES if name.startswith("NORMAL")]
    (root / "patients.csv").write_text("\n".join(["file,patient_id,text", *rows]))
    found = read(root)
    problem = ("not in the table", "patients.csv has no row for it, so its patient is unknown")
    assert {item.problem for item in found.files if "SICK" in item.name} == {problem}
    assert {item.patient for item in found.files if "NORMAL" in item.name} == {"wolfram"}
    add(root, ["OTHER/a.png"])
    assert "OTHER/a.png" not in by_name(read(root, classes=["NORMAL", "SICK"])), "what is left out is not set aside"


def test_a_hundred_ages_alike_are_counted_one_by_one(tmp_path: Path) -> None:
    names = [f"{'AB'[number % 2]}/{number}.png" for number in range(100)]
    add(tmp_path, names)
    (tmp_path / "patients.csv").write_text("\n".join(["file,age", *(f"{name},411" for name in names)]))
    assert read(tmp_path).warnings[0][1].startswith("100 ages")


TABLES = [
    ("", "has no column 'file'; it has none."),
    ("file,age\n", "has no row below the column names"),
    ("datei;age\nNORMAL/zebedee1_1.png;4\n", "has no column 'file'; it has datei, age. Add"),
    ("NORMAL/zebedee1_1.png,wolfram\n", "The first line of patients.csv contains values"),
    ("1951-02-03,wolfram.png\n", "The first line of patients.csv contains values"),
    ("file,lable\nNORMAL/zebedee1_1.png,a\n", "unknown column 'lable'. Did you mean 'label'?"),
    ("file,age,age\nNORMAL/zebedee1_1.png,1,2\n", "has 2 columns 'age'"),
    ("file,age\nNORMAL/zebedee1_1.png\n", "line 2 has more or fewer fields"),
    ("file,age\nzebedee9_1.png,4\n", "line 2 names a file that is not in the source. Correct"),
    ("file,age\n,4\nzebedee9.png,4\nx,4", "line 2 names a file that is not in the source, and so do 2 more. Correct"),
    (
        "file,age\nNORMAL/zebedee1_1.png,4\nNORMAL\\zebedee1_1.png,5\n",
        "line 3 differs from an earlier line about the same file",
    ),
    ("file,official\nNORMAL/zebedee1_1.png,fold 1951\n", "line 2 names a split other than train, val and test"),
    ('file,age\n"NORMAL/zebedee1_1.png,4\n', "patients.csv is not valid CSV: unexpected end of data"),
    ("file,age\nNORMAL/zebedee1_1.png,4" + " " * 2**20, "patients.csv, line 2 has more than 1,048,576 characters"),
    ("file,age\nNORMAL/zebedee1_1.png," + " " * 60 + "\0\n", "patients.csv, line 2 contains a NUL character"),
    ("file," + "a," * 5000 + "\n", "patients.csv has 5,002 columns; the maximum is 1,000"),
    ("file," + "a" * 9000 + "\n", "patients.csv has a column name of 9,000 characters; the maximum is 200"),
    ("file,age\n" + "x" * 200_000 + ",4\n", "field larger than field limit"),
]


@pytest.mark.parametrize(("text", "sentence"), TABLES)
def test_a_table_that_does_not_fit_is_refused(text: str, sentence: str, root: Path) -> None:
    (root / "patients.csv").write_text(text)
    assert sentence in refusal(lambda: read(root))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_tables_as_spreadsheets_write_them(separator: str, encoding: str, root: Path) -> None:
    lines = ["file,site,label", "NORMAL/zebedee1_1.png,Köln,a", "NORMAL/zebedee1_2.png,Jena,b"]
    text = "\r\n".join(line.replace(",", separator) for line in lines)
    (root / "patients.csv").write_text(text, encoding=encoding, newline="")
    details = {name: item.table for name, item in by_name(read(root)).items()}
    assert details["NORMAL/zebedee1_1.png"]["site"] == "Köln"


def test_a_mapped_column_decides_what_separates_columns(root: Path) -> None:
    (root / "patients.csv").write_text('"Datei";"Alter, Jahre, ca."\nNORMAL/zebedee1_1.png;1\n')
    found = by_name(read(root, columns={"file": "Datei", "age": "Alter, Jahre, ca."}))
    assert found["NORMAL/zebedee1_1.png"].table["age"] == "1"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_sixteen_bit_text_without_a_mark_is_refused(encoding: str, root: Path) -> None:
    (root / "patients.csv").write_text("file,age\nNORMAL/zebedee1_1.png,4\n", encoding=encoding)
    (root / "list.txt").write_text("NORMAL/zebedee1_1.png\n", encoding=encoding)
    assert "patients.csv, line 1 contains a NUL character" in refusal(lambda: read(root))
    (root / "patients.csv").unlink()
    assert "list.txt, line 1 contains a NUL character" in refusal(lambda: read(root, official={"list.txt": "train"}))


def test_what_is_no_text_is_refused(root: Path) -> None:
    (root / "patients.csv").write_bytes(b"file,site\nNORMAL/zebedee1_1.png,\x81\x8d\n")
    assert refusal(lambda: read(root)).startswith("patients.csv, line 2 is not in UTF-8, UTF-16 or Windows-1252")


def test_a_wrong_byte_in_utf_8_is_not_taken_for_another_encoding(root: Path) -> None:
    (root / "patients.csv").write_bytes("file,site\nNORMAL/zebedee1_1.png,Köln\n,".encode() + b"\xe9\n")
    assert refusal(lambda: read(root)).startswith("patients.csv, line 3 is not in UTF-8")


def test_windows_1252_is_warned_of(root: Path) -> None:
    (root / "patients.csv").write_text("file,site\nNORMAL/zebedee1_1.png,Köln\n", encoding="cp1252")
    assert [reason for reason, _ in read(root).warnings] == ["Windows-1252"]


def test_a_first_line_of_values_is_not_quoted_whatever_separates_them(root: Path) -> None:
    for line in ("a.png;Wolfram, Anna;front, view", "Anna Wolfram|a.png\tage,x"):
        (root / "patients.csv").write_text(f"{line}\nNORMAL/zebedee1_1.png;4\n")
        assert "The first line of patients.csv contains values" in refusal(lambda: read(root))


def test_a_column_name_may_have_a_line_break(root: Path) -> None:
    (root / "patients.csv").write_text('"age\nin years";Bild\n45;NORMAL/zebedee1_1.png\n')
    found = by_name(read(root, columns={"file": "Bild", "age": "age\nin years"}))
    assert found["NORMAL/zebedee1_1.png"].table["age"] == "45"


def test_an_image_whose_patient_is_empty_is_set_aside_alone(root: Path) -> None:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    lines = [f"{name},{'' if name == names[0] else 'wolfram'}" for name in names]
    (root / "patients.csv").write_text("\n".join(["file,patient_id", *lines]) + "\n")
    found = by_name(read(root))
    assert found.pop(names[0]).problem == ("no patient", "patients.csv names no patient for it")
    assert {(item.patient, item.problem) for item in found.values()} == {("wolfram", None)}


def sexes(root: Path, *entries: str) -> tuple[list[str], list[str]]:
    """What is understood of these entries for sex, one patient each, and what is said of them."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    lines = [f"{name},{number},{entry}" for number, (name, entry) in enumerate(zip(names, entries, strict=False))]
    (root / "patients.csv").write_text("\n".join(["file,patient_id,sex", *lines]) + "\n", encoding="utf-8")
    found = read(root)
    of = by_name(found)
    return [of[name].table.get("sex", "") for name in names[: len(entries)]], [detail for _, detail in found.warnings]


def test_common_words_for_sex_are_understood_in_any_case(root: Path) -> None:
    words = ("W", "weiblich", "MÄNNLICH", "Female", "m", "Femme", "divers", "")
    assert sexes(root, *words) == (["F", "F", "M", "F", "M", "F", "", ""], [])


@pytest.mark.parametrize("odd", [("hen", "Q", "Q"), ("Smith",), ("anna", "bella", "clara", "dora"), ("1951", "Q")])
def test_entries_for_sex_that_mean_nothing_are_counted_and_their_line_is_named(
    root: Path, odd: tuple[str, ...]
) -> None:
    found = sexes(root, "F", *odd)[1]
    entries = "1 entry" if len(odd) == 1 else f"{len(odd)} entries"
    where, are, count = ("line 3", "is", "counts") if len(odd) == 1 else ("the first in line 3", "are", "count")
    assert found == [f"{entries} for sex in patients.csv ({where}) {are} neither M nor F and {count} as unknown"]


SHIFTED = "zebedee"


def shifted(root: Path, count: int = 30, header: str = "file,label", **asked: Any) -> Any:
    """A table of which one line has a patient's name where the label should stand."""
    (root / "images").mkdir()
    lines = []
    for number in range(count):
        (root / "images" / f"{number}.png").write_bytes(b"")
        lines.append(f"images/{number}.png,{SHIFTED if number == 7 else ('clear', 'mass')[number % 2]}")
    (root / "labels.csv").write_text("\n".join([header, *lines]) + "\n")
    return read(root, table="labels.csv", **asked)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "A label in line 9 of labels.csv has 1 of 30 images; it is not shown"),
        (
            {"label_map": {"clear": "clear", "mass": "mass"}},
            "label_map does not contain a label in line 9 of labels.csv",
        ),
        ({"classes": ["clear", "nodule"]}, "it has clear, mass and 1 with fewer than 3 images each"),
        ({"task": "multilabel", "no_finding": "none"}, "There are clear, mass and 1 with fewer than 3 images each"),
    ],
)
def test_a_label_from_another_column_is_named_by_its_line(tmp_path: Path, asked: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        shifted(tmp_path, **asked)
    assert SHIFTED not in str(error.value)


def test_a_first_line_that_is_like_no_known_column_is_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 others, not shown") as error:
        shifted(tmp_path, header="zebedee,wolfram")
    assert SHIFTED not in str(error.value)


@pytest.mark.parametrize("name", ["NOR\nMAL", "NOR\x1b[31mMAL", "NOR\u202eMAL", "NOR\u2028MAL"])
def test_a_class_whose_name_would_break_a_line_is_refused(root: Path, name: str) -> None:
    (root / "NORMAL").rename(root / name)
    with pytest.raises(ValueError, match="contains a line break or a control character"):
        read(root)


def test_a_patient_of_two_sexes_is_warned_of(root: Path) -> None:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    lines = [f"{name},{number // 2},{'FM'[number == 1]}" for number, name in enumerate(names)]
    (root / "patients.csv").write_text("\n".join(["file,patient_id,sex", *lines]) + "\n")
    assert read(root).warnings == [
        ("two sexes", "1 patient has two sexes in patients.csv: check whether two people share an id")
    ]


def test_a_name_without_folder_must_be_one_files(root: Path) -> None:
    add(root, ["SICK/wolfram.png", "SICK/more/zebedee1_1.png"])
    (root / "patients.csv").write_text("file,age\nwolfram.png,4\nzebedee1_1.png,5\n")
    assert "line 3 names a file without its folder, and 3 files" in refusal(lambda: read(root))


ASKED: list[tuple[dict[str, Any], str]] = [
    ({"table": "exports.csv"}, "no table or list 'exports.csv' in its root. Did you mean 'export.csv'?"),
    ({"table": "labels.xlsx"}, "its name must end in .csv or .txt"),
    ({"columns": {"file": "a"}}, "The source has no table or list 'patients.csv'"),
    ({"columns": {"lable": "a"}}, "columns has the unknown key 'lable'. Did you mean 'label'?"),
    ({"columns": {"label": "a"}}, "columns has no key 'file'"),
    ({"columns": {"file": 3}}, "columns contains 3, which is not text"),
    (
        {"table": "export.csv", "columns": COLUMNS | {"label": "Diagnoses"}},
        "has no column 'Diagnoses', to which columns maps 'label'. Did you mean 'Diagnosis'? It has Picture, Diag",
    ),
    (
        {"table": "export.csv", "columns": COLUMNS, "label_pattern": "(.)"},
        "has a column 'label', but label_pattern is set too",
    ),
    ({"table": "export.csv", "columns": COLUMNS, "patient_pattern": "(.)"}, "but patient_pattern is set too"),
    ({"table": "export.csv", "columns": COLUMNS, "official": {"a.txt": "val"}}, "but official is set too"),
    ({"label_pattern": "(a"}, "label_pattern is '(a', which is not a valid regular expression: missing ), u"),
    ({"patient_pattern": "a"}, "patient_pattern is 'a', which has no group"),
    ({"label_pattern": "(WELL)"}, "label_pattern is '(WELL)', which matches none of the 13 files' names"),
    ({"patient_pattern": "(WELL)"}, "patient_pattern is '(WELL)', which matches none of the 13 files' names"),
    ({"official": {"list.txt": "training"}}, "the list list.txt to 'training'; it must be one of train, val, test"),
    ({"official": {"lists.txt": "train"}}, "no table or list 'lists.txt' in its root. Did you mean 'list.txt'?"),
    ({"official": {"unknown.txt": "train"}}, "unknown.txt, line 2 names a file that is not in the source, and so do 1"),
    (
        {"official": {"unknown.txt": "train"}, "missing_files": "skip"},
        "None of the 2 lines of unknown.txt names a file in the source",
    ),
    ({"official": {"empty.txt": "train"}}, "The list empty.txt is empty"),
    (
        {"official": {"list.txt": "train", "other.txt": "test"}},
        "other.txt, line 2 assigns a file to test, but another list assigns it to train",
    ),
    ({"classes": ["NORMAL", "SCIK"]}, "no class folder 'SCIK'; it has NORMAL, SICK, images. Did you mean 'SICK'?"),
    ({"classes": ["NORMAL"]}, "classes contains only 'NORMAL'"),
    ({"classes": ["NORMAL", 1]}, "classes contains 1, which is not text. Put it in quotation marks"),
    (
        {"label_map": {"NORMAL": "a", "SICK": "b"}},
        "label_map does not contain the label 'images' of 5 images. Map it to",
    ),
    ({"label_map": {"NORMAL": "a", "SIKC": "b"}}, "the label 'images' of 5 images. It also lacks 1 other label. Map"),
    (
        {"label_map": {"NORMAL": "a", "SICK": "a", "images": ""}},
        "label_map has 1 class: a; a classifier needs at least",
    ),
    (
        {"label_map": {"NORMAL": ""}, "task": "multilabel"},
        "label_map has 0 classes; a multilabel task needs at least",
    ),
    ({"label_map": {"NORMAL": True}}, "label_map contains True, which is not text"),
    (
        {"label_map": {"NORMAL": "well", "SICK": "ill"}, "classes": ["wel", "ill"]},
        "classes contains 'wel', but label_map maps no label to it. Did you mean 'well'?",
    ),
    ({"no_finding": "NORML"}, "no_finding is 'NORML', but no image has that label. Did you mean 'NORMAL'?"),
    (
        {"no_finding": "NORMAL", "task": "multilabel", "classes": ["NORMAL", "SICK"]},
        "'NORMAL' is in both classes and no_finding",
    ),
    (
        {"no_finding": "NORMAL", "task": "multilabel", "label_map": {"NORMAL": "a", "SICK": "b"}},
        "label_map maps 'NORMAL' to a class, but no_finding declares it to mean no finding",
    ),
]


@pytest.mark.parametrize(("asked", "sentence"), ASKED)
def test_what_cannot_be_given_is_refused_with_the_remedy(asked: dict[str, Any], sentence: str, flat: Path) -> None:
    add(flat, NAMES)
    (flat / "list.txt").write_text("NORMAL/zebedee1_1.png\nNORMAL/zebedee1_2.png\n")
    (flat / "other.txt").write_text("NORMAL/zebedee2_1.png\nNORMAL/zebedee1_2.png\n")
    (flat / "unknown.txt").write_text("\nwolfram1.png\nwolfram2.png\n")
    (flat / "empty.txt").write_text("\n")
    assert sentence in refusal(lambda: read(flat, **asked))


def test_a_column_that_stands_twice_is_not_guessed(flat: Path) -> None:
    table = flat / "export.csv"
    table.write_text(table.read_text().replace("Remark", "Years", 1))
    assert "export.csv has 2 columns 'Years'" in refusal(lambda: read(flat, table="export.csv", columns=COLUMNS))
    read(flat, table="export.csv", columns={name: column for name, column in COLUMNS.items() if name != "age"})


def test_labels_that_tell_persons_apart_are_no_classes_and_are_not_told(tmp_path: Path) -> None:
    names = [f"x/zebedee{number}_1.png" for number in range(60)]
    add(tmp_path, names)
    rows = [f"{name},wolfram{number}" for number, name in enumerate(names)]
    (tmp_path / "patients.csv").write_text("\n".join(["file,label", *rows]))
    assert "60 images have 60 different labels, too many to be classes" in refusal(lambda: read(tmp_path))
    twice = [row.replace("_1.", "_2.") for row in rows]
    add(tmp_path, [name.replace("_1.", "_2.") for name in names])
    (tmp_path / "patients.csv").write_text("\n".join(["file,label", *rows, *twice]))
    assert "it has 60" in refusal(lambda: read(tmp_path, classes=["a", "b"]))
    assert "There are 60." in refusal(lambda: read(tmp_path, no_finding="clear"))
    assert "does not contain a label in line 11 of patients.csv of 2 images. " in refusal(
        lambda: read(tmp_path, label_map={"wolfrm": "a", "b": "b"})
    )


@pytest.mark.slow
def test_the_stage_takes_labels_from_a_table(tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    for number in range(12):
        made.add(f"all/p{number // 2}_{number}.png", label=number % 2)
    made.table(
        *(
            {"file": f"all/p{number // 2}_{number}.png", "label": ("well", "ill", "odd")[number % 3], "sex": "female"}
            for number in range(11)
        )
    )
    store: Store = open_store(str(tmp_path / "store"))
    done = ingest(store, made, label_map={"well": "WELL", "ill": "ILL", "odd": ""}, limit_per_class=3)
    assert about(store, done)["classes"] == ["ILL", "WELL"]
    assert about(store, done)["counts"]["by_class"] == {"ILL": 3, "WELL": 3}
    assert quarantine(store, done) == {
        KEY.hash("image", "all/p5_11.png"): ("not in the table", "patients.csv has no row for it")
    }
    kept = read_with(made.root, label_map={"well": "WELL", "ill": "ILL", "odd": ""}, limit_per_class=3)
    assert sum(kept.values()) == 6
    row = row_of(store, done, next(iter(kept)))
    assert (row["sex"], row["labels"]) == ("F", [0])


def read_with(root: Path, **asked: Any) -> Counter[str]:
    """The files that the stage's key chooses, those of the first class first."""
    from components.ingest.labels import read_labels
    from components.ingest.parameters import SourceParameters

    found = read_labels(
        Directory(str(root)), listing(root), SourceParameters(**asked), lambda name: KEY.hash("limit", name)
    )
    return Counter(item.name for item in sorted(found.files, key=lambda item: item.labels) if not item.problem)
