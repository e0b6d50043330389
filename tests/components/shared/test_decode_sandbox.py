"""A decoding process: no file costs more than its limits, and what ends the process is told in a sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from components.shared.imaging.decode_sandbox import (
    MEMORY,
    SECONDS,
    Decoder,
    EndedError,
    Limits,
    Template,
    limit_resources,
    limits,
)
from tests.components.shared import hostile
from tests.components.shared.decoders import Decoders
from tests.components.shared.images import encoded, gray

JOB = f"{__name__}:job"


def job(what: str) -> bytes:
    """What the processes of these tests run."""
    with limit_resources(Limits(0.5, 2**26), "the file"):
        if what == "spin":
            while True:
                pass
        if what == "grow":
            return bytes(len(np.ones(2**27, np.uint8)))
        if what == "crash":
            os.abort()
        if what == "raise":
            raise LookupError("a name")
        if what == "write":
            os.write(2, b"PN=Doe")
    return f"{what} {os.getpid()}".encode()


@pytest.fixture
def template() -> Iterator[Template]:
    made = Template(JOB)
    yield made
    made.close()


def asked(decoder: Decoder, what: str) -> str:
    decoder.send(what)
    return decoder.receive().decode()


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until_gone(*processes: int) -> None:
    deadline = time.monotonic() + 10
    while not all(gone(each) for each in processes):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "why", "words"),
    [
        ("spin", "time", "takes more than 0.5 seconds of CPU time"),
        ("grow", "memory", "takes more than 64 MiB of memory"),
        ("crash", "crash", "its decoder crashed"),
        ("raise", "crash", "its decoder crashed"),
    ],
)
def test_what_ends_the_process_is_told_and_a_new_one_works(template: Template, what: str, why: str, words: str) -> None:
    decoder = Decoder(template)
    assert asked(decoder, "well").startswith("well")
    decoder.send(what)
    with pytest.raises(EndedError) as end:
        decoder.receive()
    decoder.close()
    assert (end.value.cause, end.value.note) == (why, "" if what == "raise" else "the file")
    assert words in end.value.sentence()
    another = Decoder(template)
    assert asked(another, "well").startswith("well")
    another.close()


@pytest.mark.slow
def test_limits_hold_for_each_file_and_not_for_all_together(template: Template) -> None:
    decoder = Decoder(template)
    assert len({asked(decoder, f"file {number}").split()[-1] for number in range(50)}) == 1
    decoder.close()


SAYING = """
from components.shared.imaging.decode_sandbox import Decoder, EndedError, Template
template = Template({job!r})
decoder = Decoder(template)
decoder.send({what!r})
try:
    decoder.receive()
except EndedError:
    pass
decoder.close()
template.close()
"""


@pytest.mark.slow
def test_what_libraries_print_goes_nowhere_and_a_fault_in_our_own_code_is_shown() -> None:
    for what, shown in (("write", ""), ("raise", "LookupError")):
        command = [sys.executable, "-c", SAYING.format(job=JOB, what=what)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert (done.stdout, shown in done.stderr, bool(done.stderr)) == ("", True, bool(shown))


@pytest.mark.slow
def test_a_process_that_is_killed_from_outside_is_no_fault_of_the_file(template: Template) -> None:
    decoder = Decoder(template)
    process = int(asked(decoder, "where").split()[1])
    decoder.send("spin")
    os.kill(process, signal.SIGKILL)
    with pytest.raises(EndedError) as end:
        decoder.receive()
    assert end.value.cause == "killed"
    decoder.close()
    decoder.close()
    assert gone(process)


@pytest.mark.slow
def test_a_process_stands_still_and_goes_on(template: Template) -> None:
    decoder = Decoder(template)
    asked(decoder, "well")
    decoder.pause(True)
    decoder.send("well")
    time.sleep(0.3)
    before = decoder.seconds
    time.sleep(0.3)
    assert decoder.seconds == before
    decoder.pause(False)
    assert decoder.receive().startswith(b"well")
    decoder.close()


ORPHANED = """
import sys
from components.shared.imaging.decode_sandbox import Decoder, Template
template = Template({job!r})
decoders = [Decoder(template) for _ in range(2)]
for decoder in decoders:
    decoder.send("where")
print(template._process.pid, *(decoder.receive().decode().split()[1] for decoder in decoders), flush=True)
decoders[0].send("spin forever")
sys.stdin.read()
"""


@pytest.mark.slow
def test_no_process_outlives_its_parent() -> None:
    command = [sys.executable, "-c", ORPHANED.format(job=JOB)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    processes = [int(each) for each in parent.stdout.readline().split()]
    assert len(processes) == 3
    parent.kill()
    until_gone(*processes)
    parent.communicate()


def test_limits_grow_with_what_may_hold_many_images() -> None:
    assert limits(b"\x89PNG" + bytes(2**26)) == limits(b"\xff\xd8" + bytes(2**26)) == Limits(SECONDS, MEMORY)
    assert limits(bytes(2**20)) == Limits(SECONDS, MEMORY)
    assert limits(bytes(2**27)) == Limits(64.0, 2**29)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("progressive JPEG, 90,000 empty scans", "the JPEG has 90,006 scans; the maximum is 64: save it again"),
        ("deflated DICOM, 3 million elements", "the DICOM header has more than 20,000 elements"),
        ("DICOM, one million meta elements", "the DICOM header has more than 20,000 elements"),
        ("deflated DICOM, a sequence of 5 million items", "more than 4 seconds of CPU time"),
        ("deflated DICOM, sequences nested a million deep", "the DICOM header cannot be read"),
        ("PNG of 16 bits, 100 million pixels", "more than 352 MiB of memory"),
        ("PNG, five million chunks", "the PNG has more than the maximum of 100,000 chunks"),
        ("PNG with a text that unpacks to 1 GB", "too large when decompressed"),
        ("DICOM, 2 billion frames claimed", "2,147,483,647 frames of 64×64 pixels need at least"),
        ("RLE, 20,000 frames of 10,000² in 2 MB", "no frame can be used: of 20,000"),
        ("JPEG 2000, 100 million tiles claimed", "cannot be decoded"),
        ("JPEG-LS of 64² that claims 10,000²", "cannot be decoded"),
        ("lossless JPEG that brings its decoder down", "its decoder crashed"),
        ("JPEG in DICOM, 90,000 empty scans", "cannot be decoded"),
        ("gzip, 1 GB of voxels in 1 MB", "more than 352 MiB of memory"),
        ("gzip, a name of 30 MB", "not a PNG, JPEG or DICOM image"),
    ],
)
def test_no_hostile_file_takes_more_than_its_limits(decoders: Decoders, name: str, words: str) -> None:
    """`python -m bench.hostile` measures all kinds."""
    shapes, refused = decoders.outcome(hostile.KINDS[name]())
    assert words in refused
    assert not shapes
    assert decoders.seconds < 5.5
    assert decoders.mebibytes < 512
    assert decoders.outcome(encoded(gray())).shapes == [list(gray().shape)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mammogram of 4,096×5,600, 16 bits, DICOM", 1),
        ("the same as PNG of 16 bits", 1),
        ("ultrasound, 100 frames of 1,024×768 in colour", 100),
        ("radiograph of 2,000², DICOM", 1),
    ],
)
def test_large_honest_files_are_read(decoders: Decoders, name: str, count: int) -> None:
    assert len(decoders.outcome(hostile.HONEST[name]()).shapes) == count
