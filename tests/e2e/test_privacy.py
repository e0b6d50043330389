"""Names, ids and dates that are planted everywhere in a source stand in nothing that a loop writes down or says."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom import dcmread, dcmwrite

from tests.e2e.leaks import forms, found, found_in
from tests.e2e.loop import QUICK, ROOT, Place, wait_for

pytestmark = pytest.mark.timeout(900)

PLANTED = {
    "zebedee": "the names of files",
    "mulberry": "the names of folders inside a class",
    "19340229": "a date in the names of files",
    "MRN4711": "patient_id in patients.csv",
    "oakapple": "site in patients.csv",
    "drumknott": "text in patients.csv",
    "quixworth": "PatientName",
    "PID8842": "PatientID",
    "19351113": "PatientBirthDate",
    "20190317": "StudyDate",
    "hildegund": "InstitutionName",
    "wimbleford": "ReferringPhysicianName, private elements, items of sequences",
    "ACC90210": "AccessionNumber",
    "pennyfeather": "tEXt and zTXt of PNGs",
    "ottershaw": "EXIF and comments of JPEGs",
    "vetinarius": "ViewPosition and Modality, where a term should stand",
}
"""Each word, and the only place where it was planted."""


@dataclass
class Said:
    """A loop that was run over the planted source, and all that it said."""

    place: Place
    source: Path
    words: list[str] = field(default_factory=list)

    def ask(self, *arguments: str, status: int = 0) -> str:
        """What a command says, on both of its outputs; it is kept, too."""
        done = self.place.medloop(*arguments, status=status)
        self.words.append(done.stdout + done.stderr)
        return self.words[-1]

    def leaks(self, words: list[str]) -> list[str]:
        """Where a word stands in what was written down or said."""
        key = [self.place.home / "hash.key"]
        needles = {word: forms(word) for word in words}
        said = [f"{word} in what was said" for text in self.words for word in found(text.encode(), needles)]
        return said + found_in(self.place.home, words, leave=key)


def room(folder: Path) -> Place:
    """A home whose temporary files are looked through, too."""
    temporary = folder / "home" / "tmp"
    temporary.mkdir(parents=True)
    return Place(folder / "home", {"TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"})


def plant(source: Path) -> None:
    """Make scans that look like real ones: with names, ids and dates in every place that can hold one."""
    (source / "synth.json").unlink()
    with (source / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        old = source / row["file"]
        place = f"{old.parent.name}/Mulberry{number % 7}/Zebedee_{row['patient_id']}_19340229_{number}{old.suffix}"
        (source / place).parent.mkdir(exist_ok=True)
        (source / place).write_bytes(marked(old.read_bytes(), number))
        old.unlink()
        row |= {"file": place, "patient_id": f"MRN4711-{row['patient_id']}", "text": f"Drumknott {row['text']}"}
        row["site"] = "" if old.suffix == ".dcm" else f"Oakapple {row['site']}"
    write_table(source, rows[:-1])  # and one file has no line


def write_table(source: Path, rows: list[dict[str, str]], header: bool = True) -> None:
    with (source / "patients.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if header:
            writer.writeheader()
        writer.writerows(rows)


def marked(data: bytes, number: int) -> bytes:
    """The file with planted words in what it says besides its pixels; a file that is no image stays as it is."""
    if data[128:132] == b"DICM":
        return _marked_dicom(data, number)
    if data.startswith(b"\x89PNG"):
        packed = zlib.compress(b"Pennyfeather")
        texts = _chunk(b"tEXt", b"Author\0Pennyfeather") + _chunk(b"zTXt", b"Title\0\0" + packed)
        return data[:33] + texts + data[33:]
    if data.startswith(b"\xff\xd8"):
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\x0a\0\0\0\x1a\0\0\0\0\0\0\0Ottershaw\0"
        segments = [(b"\xff\xe1", exif), (b"\xff\xfe", b"Ottershaw")]
        return data[:2] + b"".join(m + (len(d) + 2).to_bytes(2, "big") + d for m, d in segments) + data[2:]
    return data


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _marked_dicom(data: bytes, number: int) -> bytes:
    try:
        scan = dcmread(io.BytesIO(data))
    except Exception:
        return data
    scan.PatientName, scan.PatientID, scan.PatientBirthDate = "Quixworth^Max", f"PID8842-{number}", "19351113"
    scan.StudyDate, scan.AccessionNumber, scan.InstitutionName = "20190317", "ACC90210", "St Hildegund"
    scan.ReferringPhysicianName = "Wimbleford^Ada"
    scan.private_block(0x0011, "Wimbleford", create=True).add_new(1, "LO", "Wimbleford")
    item = type(scan)("", {})
    item.PersonName = "Wimbleford"
    scan.ViewCodeSequence = [item]
    if number % 3 == 0:
        scan.ViewPosition = scan.Modality = "VETINARIUS"
    out = io.BytesIO()
    dcmwrite(out, scan, enforce_file_format=True)
    whole = out.getvalue()
    return whole[: len(whole) // 2] if number % 5 == 1 else whole  # some end in the middle


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """A whole run over the planted source, asked about in every way."""
    folder = tmp_path_factory.mktemp("privacy")
    place, source = room(folder), folder / "scans"
    place.medloop("synth", str(source), "--patients", "24", "--reports")
    plant(source)
    told = Said(place, source)
    run = ("--source", str(source), *QUICK)
    told.ask("run", *run)
    told.ask("run", *run, "--json")  # again, for what is said of work that is done
    for command in ("explain", "report", "runs", "plan", "models", "doctor"):
        told.ask(command, *(run if command == "plan" else ()))
    told.ask("explain", "--json")
    told.ask("keys", "show")
    return told


@pytest.fixture
def broken(said: Said, tmp_path: Path) -> Said:
    """Another loop, with a copy of the source that a test may harm."""
    shutil.copytree(said.source, tmp_path / "scans")
    return Said(room(tmp_path), tmp_path / "scans")


# The search can find


@pytest.mark.parametrize("word", PLANTED)
def test_each_word_stands_in_the_source_where_it_is_looked_for(word: str, said: Said) -> None:
    assert found_in(said.source, [word])


def parquet(word: str) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"name": [f"x {word} y"] * 9}), out, compression="zstd")
    return out.getvalue()


def database(word: str) -> bytes:
    with sqlite3.connect(":memory:") as made:
        made.execute("create table t (name text)")
        made.execute("insert into t values (?)", [word])
        made.commit()
        return made.serialize()


def archive(word: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("inner", gzip.compress(word.encode()))
    return out.getvalue()


@pytest.mark.parametrize(
    "hide",
    [
        str.encode, lambda word: word.upper().encode(), lambda word: word.encode("utf-16"), parquet, database, archive,
        lambda word: b"data:image/png;base64," + base64.b64encode(b"x" * 41 + word.encode() + b"y" * 30),
        lambda word: json.dumps({"x": word.encode().hex()}).encode(),
        lambda word: _chunk(b"\x89PNG", b"") [4:8] + _chunk(b"zTXt", b"T\0\0" + zlib.compress(word.encode())),
        lambda word: gzip.compress(parquet(word)),
    ],
)  # fmt: skip
def test_a_word_is_found_in_whatever_it_is_packed(hide: Callable[[str], bytes], tmp_path: Path) -> None:
    (tmp_path / "artifact").write_bytes(hide("Zebedee"))
    assert found_in(tmp_path, ["zebedee", "mulberry"]) == ["zebedee in artifact"]
    (tmp_path / "artifact").write_bytes(hide("Somebody"))
    assert found_in(tmp_path, ["zebedee"]) == []


# And does not


def test_the_loop_has_come_to_its_end(said: Said) -> None:
    assert json.loads(said.place.medloop("models", "--json").stdout)["log"]
    index = next(
        table for path in (said.place.home / "store" / "objects").rglob("*") if path.is_file()
        and path.read_bytes()[:4] == b"PAR1" and "pixel_digest" in (table := pq.read_table(path)).column_names
    )  # fmt: skip
    assert len(index) > 30


@pytest.fixture(scope="module")
def leaks(said: Said) -> list[str]:
    """All that a look through everything finds."""
    return said.leaks(list(PLANTED))


@pytest.mark.parametrize("word", PLANTED)
def test_no_word_is_written_down_or_said(word: str, leaks: list[str]) -> None:
    assert [leak for leak in leaks if leak.startswith(f"{word} in ")] == [], f"It was planted in {PLANTED[word]}."


def no_file(source: Path, rows: list[dict[str, str]]) -> str:
    (source / rows[3]["file"]).unlink()
    return "names a file that is not in the source"


def two_patients(source: Path, rows: list[dict[str, str]]) -> str:
    write_table(source, [*rows, {**rows[0], "patient_id": "MRN4711-other"}])
    return "differs from an earlier line about the same file"


def no_header(source: Path, rows: list[dict[str, str]]) -> str:
    write_table(source, rows, header=False)
    return "contains values"


def no_utf8(source: Path, _rows: list[dict[str, str]]) -> str:
    table = source / "patients.csv"
    table.write_bytes(table.read_bytes().replace(b"Drumknott", b"Drumknott caf\xc3\xa9 caf\xe9", 1))
    return "UTF-8"


def no_quote(source: Path, _rows: list[dict[str, str]]) -> str:
    table = source / "patients.csv"
    table.write_bytes(table.read_bytes().replace(b"MRN4711", b'"MRN4711', 1))
    return "patients.csv"


def no_images(source: Path, _rows: list[dict[str, str]]) -> str:
    for path in (source / "PNEUMONIA").rglob("*.*"):
        path.write_bytes(path.read_bytes()[:200])
    return "No usable image"


@pytest.mark.parametrize("harm", [no_file, two_patients, no_header, no_utf8, no_quote, no_images])
def test_no_error_tells_a_word(harm: Callable[[Path, list[dict[str, str]]], str], broken: Said) -> None:
    with (broken.source / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sentence = harm(broken.source, rows)
    assert sentence in " ".join(broken.ask("run", "--source", str(broken.source), *QUICK, status=1).split())
    broken.ask("explain")
    assert broken.leaks(list(PLANTED)) == []


def test_an_image_without_a_patient_is_set_aside_without_a_word(broken: Said) -> None:
    with (broken.source / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[5]["patient_id"] = ""
    write_table(broken.source, rows)
    said = " ".join(broken.ask("run", "--source", str(broken.source), *QUICK).split())
    assert "1 quarantined: no patient: patients.csv names no patient for it" in said
    broken.ask("explain")
    assert broken.leaks(list(PLANTED)) == []


def test_a_file_that_cannot_be_read_is_not_named(broken: Said) -> None:
    for file in (broken.source / "NORMAL").rglob("*.png"):
        file.chmod(0)
    powers = "-dac_override,-dac_read_search"  # root reads everything, unless it gives that up
    drop = ["setpriv", "--bounding-set", powers, "--inh-caps", powers] if os.geteuid() == 0 else []
    if drop and subprocess.run([*drop, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root give up reading everything")
    command = [*drop, sys.executable, "-m", "medloop.cli.main", "run", "--source", str(broken.source), *QUICK]
    done = subprocess.run(
        command, capture_output=True, text=True, env=broken.place.environment(), cwd=ROOT, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cannot be read (Permission denied)" in " ".join(done.stdout.split())
    broken.words.append(done.stdout + done.stderr)
    assert broken.leaks(list(PLANTED)) == []


def test_a_file_that_vanishes_during_the_run_is_not_named(broken: Said) -> None:
    running = broken.place.begin("--source", str(broken.source))

    def at_work() -> bool:
        logs = (broken.place.home / "runs").glob("*/log.txt")
        return any(re.search('"event": "finished".*"resolve"', log.read_text()) for log in logs)

    wait_for(at_work)
    for path in list((broken.source / "NORMAL").rglob("*.png"))[:3]:
        path.unlink()
        time.sleep(0.3)
    printed, _ = running.communicate(timeout=280)
    broken.words.append(printed)
    assert running.returncode in (0, 1), printed
    assert broken.leaks(list(PLANTED)) == []
