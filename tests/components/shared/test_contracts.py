"""Records are canonical, and refused by name when they are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.shared.contracts import (
    SCHEMAS,
    Blob,
    Manifest,
    check,
    decode,
    digest,
    encode,
    file_digest,
    fingerprint,
    read_record,
    write_record,
)


def test_equal_records_have_equal_bytes_whatever_the_order_of_their_keys() -> None:
    one, other = encode("run", {"b": 1, "a": {"y": 1, "x": "ü"}}), encode("run", {"a": {"x": "ü", "y": 1}, "b": 1})
    assert one == other
    assert one.endswith(b"}\n")
    assert "ü".encode() in one


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_record_comes_back_with_its_kind_and_schema(kind: str) -> None:
    assert decode(kind, encode(kind, {"a": 1}), "here") == {"a": 1, "kind": kind, "schema": SCHEMAS[kind]}


def test_a_number_that_json_has_no_word_for_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode("run", {"a": float("nan")})


@pytest.mark.parametrize("data", [b"", b"{", b'{"kind": "run"', b"\xff\xfe"])
def test_what_is_no_json_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"decision\.json is not a JSON decision"):
        decode("decision", data, "decision.json")


@pytest.mark.parametrize("document", [[], None, 3, {}, {"kind": "run", "schema": 1}])
def test_another_kind_is_refused_by_name(document: object) -> None:
    with pytest.raises(ValueError, match=r"decision\.json contains a .* a 'decision' is expected"):
        check("decision", document, "decision.json")


@pytest.mark.parametrize("schema", [0, 1, 3, "2", None])
def test_an_unknown_schema_is_refused_by_name(schema: object) -> None:
    with pytest.raises(ValueError, match=r"dataset\.json is a dataset of schema .* reads schema 2"):
        check("dataset", {"kind": "dataset", "schema": schema}, "dataset.json")


def test_a_manifest_comes_back_and_is_named_by_its_bytes() -> None:
    manifest = Manifest({"b/c": Blob("2" * 64, 5), "a": Blob("1" * 64, 7)})
    again = Manifest.decode(manifest.encode(), "there")
    assert again == manifest
    assert again.digest == manifest.digest == digest(manifest.encode())
    assert manifest.bytes == 12
    assert Manifest({"a": Blob("1" * 64, 7), "b/c": Blob("2" * 64, 5)}).digest == manifest.digest
    assert Manifest({"a": Blob("1" * 64, 7)}).digest != manifest.digest


def test_a_record_in_a_file_is_read_back_or_refused_by_the_files_name(tmp_path: Path) -> None:
    write_record("split", tmp_path / "split.json", {"version": 1})
    assert read_record("split", tmp_path / "split.json")["version"] == 1
    with pytest.raises(ValueError, match=r"split\.json contains a 'split'"):
        read_record("dataset", tmp_path / "split.json")


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    assert file_digest(tmp_path / "file") == digest(b"x" * 3_000_000)


def test_a_fingerprint_does_not_depend_on_the_order_of_keys_and_does_on_that_of_lists() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
