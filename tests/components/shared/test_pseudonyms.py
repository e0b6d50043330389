"""What a header or a table may say of a patient, and the form in which it passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from components.shared.privacy import keyed_hash
from components.shared.privacy.pseudonyms import FIELDS, LABELLERS, parse_age, pseudonymise, read_fields, site_code

KEY = keyed_hash.parse("ab" * 32)
DOCS = Path(__file__).resolve().parents[3] / "docs" / "privacy.md"


def header(**fields: object) -> Dataset:
    dataset = Dataset()
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


def test_only_the_named_fields_are_read() -> None:
    said = read_fields(header(PatientID=" 17 ", PatientSex="F", PatientName="Zebedee^Max", PatientBirthDate="19340229"))
    assert set(said) == set(FIELDS)
    assert {name: value for name, value in said.items() if value} == {"patient_id": "17", "sex": "F"}


def test_what_may_be_written_down() -> None:
    said = read_fields(
        header(PatientID="17", PatientSex="F", PatientAge="045Y", InstitutionName="St Mary", ViewPosition="PA",
               Modality="DX", BurnedInAnnotation="NO")
    )  # fmt: skip
    assert pseudonymise(said, KEY) == {
        "patient_hash": KEY.hash("patient", "17"), "sex": "F", "age": "45", "site": site_code("St Mary", KEY),
        "view": "PA", "modality": "DX", "burned_in": "NO", "label_source": "", "text": "",
    }  # fmt: skip


@pytest.mark.parametrize("field", ["sex", "view", "modality", "burned_in", "age"])
def test_free_text_in_a_field_of_terms_does_not_pass(field: str) -> None:
    assert pseudonymise({field: "Zebedee, 29.02.1934"}, KEY)[field] == ""


@pytest.mark.parametrize(
    ("text", "years"),
    [("045Y", 45), ("45", 45), ("018M", 1), ("100D", 0), ("089Y", 89), ("090Y", 90), ("104Y", 90), ("999Y", 90),
     ("", -1), ("old", -1), ("19340229", -1), ("-3", -1)],
)  # fmt: skip
def test_ages_are_whole_years_and_the_oldest_are_together(text: str, years: int) -> None:
    assert min(parse_age(text), 90) == years
    assert pseudonymise({"age": text}, KEY)["age"] == ("" if years < 0 else str(years))


def test_a_site_is_a_short_keyed_hash_however_it_is_spelt() -> None:
    code = site_code("St. Mary's Hospital", KEY)
    assert code.startswith("site-")
    assert len(code) == 13
    assert site_code("  ST. MARY'S   hospital", KEY) == code
    assert site_code("St. Mark's Hospital", KEY) != code
    assert site_code("St. Mary's Hospital", keyed_hash.parse("cd" * 32)) != code
    assert site_code("", KEY) == ""


def test_a_site_and_a_text_pass_only_when_asked_for() -> None:
    row = {"patient_id": "17", "site": "NORTH", "text": "Mr Zebedee coughs"}
    plain = pseudonymise(row, KEY)
    assert (plain["site"][:5], plain["text"]) == ("site-", "")
    kept = pseudonymise(row, KEY, keep_sites=["NORTH"], keep_text=True)
    assert (kept["site"], kept["text"]) == ("NORTH", "Mr Zebedee coughs")
    assert pseudonymise({"site": "SOUTH"}, KEY, keep_sites=["NORTH"])["site"].startswith("site-")


@pytest.mark.parametrize("name", [*LABELLERS, " NLP ", "Follow-Up"])
def test_plain_words_for_where_a_label_comes_from_pass(name: str) -> None:
    assert pseudonymise({"label_source": name}, KEY)["label_source"] == name.strip().lower()


def test_who_labelled_is_not_named() -> None:
    code = pseudonymise({"label_source": "Dr Zebedee"}, KEY)["label_source"]
    assert code.startswith("labeller-")
    assert len(code) == 17
    assert pseudonymise({"label_source": "DR  ZEBEDEE"}, KEY)["label_source"] == code


def test_several_values_where_one_is_meant_are_read_as_they_stand() -> None:
    assert read_fields(header(PatientID=["17", "18"]))["patient_id"] == "17\\18"


def test_the_page_shows_every_field_as_the_code_has_it() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for name, field in FIELDS.items():
        assert f"| {field.attribute} | `{name}` | {field.stored_as} | {field.option} |" in page
