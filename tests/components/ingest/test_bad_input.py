"""What goes wrong around a source and its store: told in a sentence, nothing lost, and mended by going on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from components.ingest import decode_parallel
from components.shared.imaging.decode_sandbox import Template
from components.shared.storage.store import Store, open_store
from tests.components.ingest.test_ingest import KEY, Scans, about, ingest, quarantine, row_of, rows
from tests.components.shared.images import encoded, gray

pytestmark = pytest.mark.usefixtures("shared_template")


@pytest.fixture
def scans(tmp_path: Path) -> Scans:
    made = Scans(tmp_path / "scans")
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        for number in range(6):
            made.add(f"{name}/{name.lower()}{number // 2}_{number}.png", label=label)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.mark.slow
def test_a_name_that_is_no_unicode_is_a_name(store: Store, scans: Scans) -> None:
    odd = os.fsencode(scans.root) + b"/NORMAL/m\xfcller\xff_1.png"
    Path(os.fsdecode(odd)).write_bytes(encoded(gray(50)))
    Path(os.fsdecode(odd.replace(b"_1", b"_2"))).write_bytes(b"no image")
    done = ingest(store, scans)
    row = row_of(store, done, os.fsdecode(b"NORMAL/m\xfcller\xff_1.png"))
    assert row["patient_id"] == KEY.hash("patient", os.fsdecode(b"m\xfcller\xff"))
    assert KEY.hash("image", os.fsdecode(b"NORMAL/m\xfcller\xff_2.png")) in quarantine(store, done)


def test_a_link_out_of_the_source_is_not_followed(store: Store, scans: Scans, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other_1.png").write_bytes(encoded(gray(60)))
    (scans.root / "NORMAL" / "other_1.png").symlink_to(tmp_path / "elsewhere" / "other_1.png")
    (scans.root / "NORMAL" / "deeper").symlink_to(tmp_path / "elsewhere")
    (scans.root / "NORMAL" / "round").symlink_to(scans.root)
    (scans.root / "NORMAL" / "same_1.png").symlink_to("normal0_0.png")
    done = ingest(store, scans)
    assert done.values["images"] == 13, "and one within it is"
    assert about(store, done)["counts"]["warnings"]["not in the listing"] == 1


@pytest.mark.slow
def test_a_shard_that_does_not_hold_what_its_name_says_is_named_and_made_again(
    store: Store, scans: Scans, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ingest(store, scans)
    shard = about(store, first)["shards"][0]["digest"]
    path = Path(store.uri) / "objects" / shard[:2] / shard
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)
    with pytest.raises(OSError, match=f"The object {shard[:12]} in .* does not match its digest"):
        open_store(store.uri).fetch(shard)
    scans.add("NORMAL/new_1.png")
    monkeypatch.setattr(decode_parallel, "Template", Template)  # a shared one writes to an earlier standard error
    second = ingest(open_store(store.uri), scans)
    assert f"the content of shard {shard[:12]} does not match its digest" in capfd.readouterr().err
    assert second.values["images"] == 13
    np.testing.assert_array_equal(scans.pixels_of(store, second, "NORMAL/normal0_0.png"), gray(1, 0))
    assert set(rows(store, first)) < set(rows(store, second))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount to make a small disk with")
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_and_nothing_is_lost(scans: Scans, small_disk: Path, tmp_path: Path) -> None:
    for number in range(40):
        scans.add(f"NORMAL/more{number}_1.png", encoded(gray(100 + number, side=100)))
    place = str(small_disk / "store")
    with pytest.raises(OSError, match="is full"):
        ingest(open_store(place), scans)
    assert list((small_disk / "store" / "partial").glob("*")) == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    done = ingest(open_store(place), scans)
    other = open_store(str(tmp_path / "other"))
    assert done.outputs == ingest(other, scans).outputs


def test_a_file_that_changes_while_it_is_read_is_no_content(store: Store, scans: Scans) -> None:
    revision = scans.revision
    path = scans.root / "NORMAL" / "normal0_0.png"
    times = path.stat().st_mtime_ns
    path.write_bytes(encoded(gray(77)) + b"longer")
    os.utime(path, ns=(times, times))
    with pytest.raises(RuntimeError, match="changed"):
        ingest(store, scans, revision=revision)


@pytest.mark.slow
def test_a_folder_below_the_class_folder_is_a_patient(store: Store, tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    for label in "AB":
        for patient in range(3):
            for number in range(2):
                made.add(f"{label}/{label}pat{patient}/000{number}.png")
                made.add(f"train/{label}/{label}pat{patient}/100{number}.png")
    done = ingest(store, made)
    assert done.values["patients"] == 6
    assert row_of(store, done, "A/Apat1/0001.png")["patient_id"] == KEY.hash("patient", "Apat1")
    assert row_of(store, done, "train/A/Apat1/1001.png")["patient_id"] == KEY.hash("patient", "Apat1")


@pytest.mark.slow
def test_folders_of_people_are_no_classes_and_are_not_named(store: Store, tmp_path: Path) -> None:
    made = Scans(tmp_path / "scans")
    for patient in range(8):
        for number in range(3):
            made.add(f"Zebedee{patient}/person{patient}_{number}.png")
    with pytest.raises(ValueError, match="Each of the 8 classes has one patient") as refusal:
        ingest(store, made)
    assert "Zebedee" not in str(refusal.value)


def test_a_class_folder_that_is_no_unicode_is_refused(store: Store, scans: Scans) -> None:
    scans.add(os.fsdecode(b"caf\xe9/a_1.png"))
    with pytest.raises(ValueError, match="is not in UTF-8"):
        ingest(store, scans)


@pytest.mark.slow
def test_a_link_to_itself_and_a_hidden_folder_are_passed_over(store: Store, scans: Scans) -> None:
    (scans.root / "NORMAL" / "loop_1.png").symlink_to("loop_1.png")
    (scans.root / ".snapshot").mkdir(mode=0o000)
    assert ingest(store, scans).values["images"] == 12


@pytest.mark.slow
def test_content_that_was_replaced_with_its_time_kept_is_seen(store: Store, scans: Scans) -> None:
    scans.settle()
    first = ingest(store, scans)
    path = scans.root / "NORMAL" / "normal0_0.png"
    times = path.stat().st_mtime_ns
    other = encoded(gray(77))
    path.write_bytes(other[: path.stat().st_size].ljust(path.stat().st_size, b"\0"))
    os.utime(path, ns=(times, times))
    assert ingest(store, scans).outputs != first.outputs


@pytest.mark.slow
def test_ages_with_a_decimal_are_ages(store: Store, scans: Scans) -> None:
    scans.table({"file": "NORMAL/normal0_0.png", "age": "45.0"}, {"file": "NORMAL/normal0_1.png", "age": "93"})
    done = ingest(store, scans)
    assert [row_of(store, done, f"NORMAL/normal0_{n}.png")["age"] for n in (0, 1)] == [45, 90]


@pytest.mark.slow
def test_a_file_whose_group_joins_another_stands_once_in_the_index(store: Store, tmp_path: Path) -> None:
    """Groups part and join as files come and go, and records of groups that are gone may tell of the same files."""
    made = Scans(tmp_path / "scans")
    for number in range(200):
        made.add(f"{'AB'[number % 2]}/p{number}_1.png", encoded(gray(number, side=8)) if number < 6 else b"unreadable")
    ends = [
        path
        for path in made.root.rglob("*.png")
        if int(KEY.hash("image", str(path.relative_to(made.root)))[:12], 16) % 128 == 0
    ]
    assert ends, "a file that ends a group"
    ingest(store, made)
    for path in ends:
        path.rename(tmp_path / path.name)
    ingest(store, made)
    made.add("A/p900_1.png", b"unreadable, too")
    done = ingest(store, made)
    counts = about(store, done)["counts"]
    assert counts["quarantined"] == len(quarantine(store, done)) == counts["reasons"]["unreadable"]
    assert counts["images"] == len(rows(store, done))
