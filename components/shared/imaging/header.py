"""What a scan's header, or its line in a table, may say of patient and scan: what is read, and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from components.shared.privacy.hash_keys import HashKey

if TYPE_CHECKING:
    from pydicom import Dataset

OLDEST = 90
"""Who is this old or older is counted as this old: few are, and an age would tell who."""


class Field(NamedTuple):
    """One field that is read: the DICOM attribute, and what becomes of it, with the option of Annex E that says so."""

    attribute: str
    becomes: str
    option: str


FIELDS = {
    "patient_id": Field("PatientID", "a keyed hash", "the basic profile's dummy"),
    "sex": Field("PatientSex", "M, F or nothing", "Retain Patient Characteristics"),
    "age": Field("PatientAge", f"whole years, {OLDEST} and over as {OLDEST}", "Retain Patient Characteristics"),
    "site": Field("InstitutionName", "a short keyed hash, as site-1a2b3c4d", "the basic profile's dummy"),
    "view": Field("ViewPosition", "one of DICOM's terms, or nothing", "not in the profile"),
    "modality": Field("Modality", "one of DICOM's terms, or nothing", "not in the profile"),
    "burned_in": Field("BurnedInAnnotation", "YES, NO or nothing", "not in the profile"),
}
"""The only attributes of a DICOM header that are read, under the names that medloop has for them."""

TERMS = {
    "sex": "M F",
    "view": "AP PA LL RL RLD LLD RLO LLO LATERAL LAT CC MLO ML LM LMO SIO XCC XCCL XCCM FB ISO",
    "modality": """
        AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT IVUS
        KER KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG
        RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA
        XA XAPROTOCOL XC
    """,
    "burned_in": "YES NO",
}
"""The only words that pass in these fields: DICOM's terms, and what many write for a view from the side."""

LABELLERS = ("expert", "consensus", "pathology", "follow-up", "report", "nlp", "model", "crowd")
"""What a label may be said to come from in plain words; anything else may be a reader's name."""

_UNITS = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.0, "D": 365.0}


def passing(dataset: Dataset) -> dict[str, str]:
    """The few fields of a DICOM header that are read, as they stand there: not yet fit to be written down."""
    return {name: _text(dataset.get(field.attribute)) for name, field in FIELDS.items()}


def pseudonymous(
    said: Mapping[str, str], key: HashKey, *, keep_sites: Collection[str] = (), keep_text: bool = False
) -> dict[str, str]:
    """What may be written down of that which a header or a line of a table says; unknown fields are "".

    The patient's id becomes `patient_hash`. A site's name passes only if `keep_sites` names it, and free text only
    with `keep_text`: both are for those who know what stands there.
    """
    patient, text = said.get("patient_id", ""), said.get("text", "")
    age = whole_years(said.get("age", ""))
    return {
        "patient_hash": key.hash("patient", patient) if patient else "",
        "sex": _term("sex", said.get("sex", "")[:1]),
        "age": str(age) if age >= 0 else "",
        "site": site_code(said.get("site", ""), key, keep_sites),
        "view": _term("view", said.get("view", "")),
        "modality": _term("modality", said.get("modality", "")),
        "burned_in": _term("burned_in", said.get("burned_in", "")),
        "label_source": labeller_code(said.get("label_source", ""), key),
        "text": text if keep_text else "",
    }


def whole_years(text: str) -> int:
    """An age in whole years from `45`, `045Y` or `18M`, the oldest together; -1 where it is unknown."""
    found = re.fullmatch(r"(\d{1,3})(?:\.\d+)?\s*([YMWD]?)", text.strip().upper(), re.ASCII)
    return min(int(int(found[1]) / _UNITS[found[2]]), OLDEST) if found else -1


def site_code(name: str, key: HashKey, keep: Collection[str] = ()) -> str:
    """What stands for a site: its name where that may be kept, else a short keyed hash of it."""
    plain = " ".join(name.split())
    if not plain or plain in keep:
        return plain
    return f"site-{key.hash('site', plain.casefold())[:8]}"  # however a hospital's machines spell it


def labeller_code(name: str, key: HashKey) -> str:
    """What stands for where a label comes from: one of the plain words, else a short keyed hash."""
    plain = " ".join(name.split()).casefold()
    return plain if not plain or plain in LABELLERS else f"labeller-{key.hash('labeller', plain)[:8]}"


def _term(name: str, text: str) -> str:
    term = text.strip().upper()
    return term if term in TERMS[name].split() else ""


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return str(value).strip()
    return "\\".join(map(str, value)).strip()  # several values, where the standard has one
