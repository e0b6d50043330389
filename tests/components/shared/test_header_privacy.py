"""Nothing that the basic profile names passes: not what is written down, and not what the pixels are decoded from."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import ImplicitVRLittleEndian

from components.shared.imaging.dicom_frames import NEEDED, open_scan
from components.shared.privacy import keyed_hash
from components.shared.privacy.pseudonyms import FIELDS, pseudonymise
from tests.components.shared.annex_e import PROFILE
from tests.components.shared.images import dicom

KEY = keyed_hash.parse("ab" * 32)
NAME, DAY, UID = "ZEBEDEE", "19340229", "1.2.826.19340229"
TOKENS = (NAME, DAY)
PIXELS = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 4096
NUMBERS = {"US": 19340, "SS": 19340, "UL": 19340229, "SL": 19340229, "FL": 1934.5, "FD": 19340229.0, "AT": 0x00100010}
TEXTS = {
    "DA": DAY, "DT": f"{DAY}031415", "TM": "031415", "UI": UID, "IS": DAY, "DS": DAY, "AS": "057Y", "UR": f"http://{NAME}",
}  # fmt: skip
BYTES = ("OB", "OW", "UN", "OF", "OD", "OL", "OV")


def inner() -> Dataset:
    """An item of a sequence that holds what it must not: named, private, and deeper still."""
    item = Dataset()
    item.PatientName, item.StudyDate = f"{NAME}^INNER", DAY
    item.private_block(0x0029, NAME, create=True).add_new(0x01, "LO", NAME)
    deeper = Dataset()
    deeper.OtherPatientIDs = NAME
    item.ViewModifierCodeSequence = Sequence([deeper])
    return item


def planted(keyword: str) -> Any:
    """A value of the attribute's own kind, with a name or a day in it where the kind can hold one."""
    vr = dictionary_VR(keyword).split(" or ")[0]
    if vr == "SQ":
        return Sequence([inner()])
    if vr in BYTES:
        return f"{NAME} ".encode() * 2
    return NUMBERS.get(vr, TEXTS.get(vr, NAME))


def file(syntax: str = "") -> bytes:
    """A DICOM file with everything of the profile in it, and its names for what is its own."""
    dataset = dcmread(io.BytesIO(dicom(PIXELS)))
    for keywords in PROFILE.values():
        for keyword in keywords:
            if tag_for_keyword(keyword) >> 16 > 2:  # a file holds no commands, and has a head of its own (below)
                setattr(dataset, keyword, planted(keyword))
    dataset.ViewCodeSequence = Sequence([inner()])  # not in the profile itself
    for place in (dataset, inner()):  # sequences that are read, each with more in it than is needed
        table = inner()
        table.LUTDescriptor, table.LUTExplanation = [4096, 0, 16], NAME
        table.add_new("LUTData", "OW", np.arange(4096, dtype=np.uint16).tobytes())
        place.ModalityLUTSequence = Sequence([table])
    group = inner()
    group.PixelValueTransformationSequence = Sequence([place])
    dataset.SharedFunctionalGroupsSequence = Sequence([group])
    dataset.ViewPosition, dataset.Modality, dataset.BurnedInAnnotation = NAME, "DX", "YES"
    dataset.private_block(0x0011, NAME, create=True).add_new(0x10, "UT", NAME)
    dataset.add_new(0x50000005, "US", 1)
    dataset.add_new(0x50020022, "LO", NAME)
    for group in (0x6000, 0x601E):
        dataset.add_new((group, 0x3000), "OW", f"{NAME} ".encode())
        dataset.add_new((group, 0x4000), "LT", NAME)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID
    dataset.preamble = NAME.encode().ljust(128, b"\0")
    out = io.BytesIO()
    if syntax:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(out, implicit_vr=True, little_endian=True)
    else:
        dataset.save_as(out)
    return out.getvalue()


def every_tag(dataset: Dataset) -> Iterator[BaseTag]:
    """The tags of all elements, also of those within sequences."""
    for element in dataset:
        yield element.tag
        for item in element.value if element.VR == "SQ" else ():
            yield from every_tag(item)


@pytest.mark.parametrize("syntax", ["", ImplicitVRLittleEndian])
def test_nothing_of_the_profile_is_written_down(syntax: str) -> None:
    data = file(syntax)
    dataset = dcmread(io.BytesIO(data))
    assert sum(keyword in dataset for keywords in PROFILE.values() for keyword in keywords) > 600
    said = open_scan(data).header
    assert (said["patient_id"], said["site"], said["view"]) == (NAME, NAME, NAME)  # read, and not yet written
    written = pseudonymise(said, KEY)
    assert (written["age"], written["modality"], written["burned_in"], written["view"]) == ("57", "DX", "YES", "")
    assert not [token for token in TOKENS if token in json.dumps(written).upper()]


@pytest.mark.parametrize("syntax", ["", ImplicitVRLittleEndian])
def test_nothing_of_it_is_left_where_pixels_are_decoded(syntax: str) -> None:
    data = file(syntax)
    assert all(token.encode() in data for token in TOKENS)
    scan = open_scan(data)
    needed = {tag_for_keyword(keyword) for keyword in NEEDED}
    kept = {*every_tag(scan.dataset)}
    assert kept <= needed
    lookups = {"ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PixelValueTransformationSequence", "LUTData"}
    assert kept >= {tag_for_keyword(keyword) for keyword in lookups}
    assert not hasattr(scan.dataset, "file_meta")
    assert not hasattr(scan.dataset, "preamble")
    left = scan.dataset.to_json() + repr(vars(scan.dataset).keys())
    assert not [token for token in TOKENS if token in left]
    [(_, seen)] = scan.decode_frames([0], (2048.0, 4096.0))
    [(_, plain)] = open_scan(dicom(PIXELS)).decode_frames([0], (2048.0, 4096.0))
    assert seen is not None
    assert plain is not None
    assert np.array_equal(seen, plain)


def test_a_damaged_sequence_does_not_stop_it() -> None:
    dataset = dcmread(io.BytesIO(dicom(PIXELS)))
    dataset.PatientName = NAME
    dataset[0x00283000] = RawDataElement(BaseTag(0x00283000), "UN", 7, b"\xff" * 7, 0, False, True)
    dataset.add_new(0x00091010, "UN", NAME.encode())
    out = io.BytesIO()
    dataset.save_as(out)
    kept = {*every_tag(open_scan(out.getvalue()).dataset)}
    assert kept <= {tag_for_keyword(keyword) for keyword in NEEDED}
    assert 0x00283000 not in kept


def test_what_pixels_are_decoded_with_is_not_in_the_profile() -> None:
    assert not {*NEEDED} & {keyword for keywords in PROFILE.values() for keyword in keywords}
    assert all(tag_for_keyword(keyword) for keyword in NEEDED)


def test_every_field_that_is_read_all_the_same_says_by_what_right() -> None:
    profile = {keyword for keywords in PROFILE.values() for keyword in keywords}
    for name, field in FIELDS.items():
        assert (field.attribute in profile) == (field.option != "not in the profile"), name


def test_the_list_is_the_standards() -> None:
    profile = {keyword: action for action, keywords in PROFILE.items() for keyword in keywords}
    assert len(profile) == sum(map(len, PROFILE.values())) == 617
    assert set(PROFILE) == {"X", "Z", "D", "U", "Z/D", "X/Z", "X/D", "X/Z/D", "X/Z/U*"}
    assert all(keyword_for_tag(tag_for_keyword(keyword)) == keyword for keyword in profile)
    known = {
        "PatientName": "Z", "PatientBirthDate": "Z", "StudyDate": "Z", "AccessionNumber": "Z", "StudyInstanceUID": "U",
        "PatientAddress": "X", "OtherPatientIDs": "X", "PatientAge": "X", "InstitutionName": "X/Z/D",
        "SeriesDate": "X/D", "ReferringPhysicianName": "Z", "PatientSex": "Z", "ImageComments": "X",
        "DeviceSerialNumber": "X/Z/D",
    }  # fmt: skip
    assert {keyword: profile[keyword] for keyword in known} == known
