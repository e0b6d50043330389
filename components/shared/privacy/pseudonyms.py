"""Pseudonymise the fields about patient and scan that a DICOM header or a table's row provides."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from components.shared.privacy.keyed_hash import HashKey

if TYPE_CHECKING:
    from pydicom import Dataset

OLDEST = 90
"""Maximum age stored, in years; higher ages are stored as this one, because they could identify a patient."""


class Field(NamedTuple):
    """A DICOM attribute, the form in which it is stored, and its option of Annex E."""

    attribute: str
    stored_as: str
    option: str


FIELDS = {
    "patient_id": Field("PatientID", "a keyed hash", "the basic profile's dummy"),
    "sex": Field("PatientSex", "M, F or nothing", "Retain Patient Characteristics"),
    "age": Field("PatientAge", f"whole years, {OLDEST} and over as {OLDEST}", "Retain Patient Characteristics"),
    "site": Field("InstitutionName", "a short keyed hash, such as site-1a2b3c4d", "the basic profile's dummy"),
    "view": Field("ViewPosition", "one of DICOM's terms, or nothing", "not in the profile"),
    "modality": Field("Modality", "one of DICOM's terms, or nothing", "not in the profile"),
    "burned_in": Field("BurnedInAnnotation", "YES, NO or nothing", "not in the profile"),
}
"""The only attributes read from a DICOM header, by medloop's names."""

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
"""Allowed values of these fields: DICOM's terms, and common words for a lateral view."""

LABELLERS = ("expert", "consensus", "pathology", "follow-up", "report", "nlp", "model", "crowd")
"""Sources of labels that are stored in plain text; any other may be a reader's name."""

_UNITS = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.0, "D": 365.0}


def read_fields(dataset: Dataset) -> dict[str, str]:
    """Return the fields read from a DICOM header, not yet pseudonymised."""
    return {name: _text(dataset.get(field.attribute)) for name, field in FIELDS.items()}


def pseudonymise(
    values: Mapping[str, str], key: HashKey, *, keep_sites: Collection[str] = (), keep_text: bool = False
) -> dict[str, str]:
    """Return the fields in the form in which they may be stored; "" if unknown.

    The patient's id becomes `patient_hash`. A site's name is kept only if it is in `keep_sites`, and free text only
    with `keep_text`.
    """
    patient, text = values.get("patient_id", ""), values.get("text", "")
    age = min(parse_age(values.get("age", "")), OLDEST)
    return {
        "patient_hash": key.hash("patient", patient) if patient else "",
        "sex": _term("sex", values.get("sex", "")[:1]),
        "age": str(age) if age >= 0 else "",
        "site": site_code(values.get("site", ""), key, keep_sites),
        "view": _term("view", values.get("view", "")),
        "modality": _term("modality", values.get("modality", "")),
        "burned_in": _term("burned_in", values.get("burned_in", "")),
        "label_source": labeller_code(values.get("label_source", ""), key),
        "text": text if keep_text else "",
    }


def parse_age(text: str) -> int:
    """Return an age (`45`, `045Y`, `18M`) in whole years; -1 if it is invalid."""
    match = re.fullmatch(r"(\d{1,3})(?:\.\d+)?\s*([YMWD]?)", text.strip().upper(), re.ASCII)
    return int(int(match[1]) / _UNITS[match[2]]) if match else -1


def site_code(name: str, key: HashKey, keep: Collection[str] = ()) -> str:
    """Return a site's name if it is in `keep`, else a short keyed hash of it."""
    plain = " ".join(name.split())
    if not plain or plain in keep:
        return plain
    return f"site-{key.hash('site', plain.casefold())[:8]}"  # scanners of one hospital spell its name differently


def labeller_code(name: str, key: HashKey) -> str:
    """Return the source of a label if it is in LABELLERS, else a short hash."""
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
    return "\\".join(map(str, value)).strip()  # several values although the standard allows one
