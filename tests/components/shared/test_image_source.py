"""A source is a listing of images, and its revision tells when one of them changed."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from minio.credentials import StaticProvider
from minio.minioadmin import MinioAdmin

from components.shared import contracts
from components.shared.storage import image_source
from tests.components.shared.faults import KINDS, Answer, Faults, faulty
from tests.components.shared.servers import (
    BUCKET,
    KEY,
    SECRET,
    S3Server,
    client,
    make_bucket,
    minio,
    moto,
    rclone,
    speaking,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for name in ("A/one.png", "A/two.JPG", "B/deep/three.dcm", "patients.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_images_and_the_table_are_listed_by_name_and_nothing_else(root: Path, tmp_path: Path) -> None:
    for name in ("A/notes.txt", ".hidden/four.png", "A/.five.png", "A/patients.csv", "synth.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    (tmp_path / "outside.png").write_bytes(b"x")
    (root / "A" / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "A" / "dangling.png").symlink_to(tmp_path / "nothing.png")
    names = [entry.name for entry in image_source.entries(str(root))]
    assert names == ["A/one.png", "A/two.JPG", "B/deep/three.dcm", "patients.csv"]


def test_the_revision_changes_with_every_change_of_a_file(root: Path) -> None:
    def revision() -> str:
        return image_source.revision(image_source.entries(str(root)))

    seen = [revision()]
    assert revision() == seen[0]
    (root / "A" / "new.png").write_bytes(b"x")
    seen.append(revision())
    (root / "A" / "new.png").write_bytes(b"xy")
    seen.append(revision())
    os.utime(root / "A" / "new.png", ns=(1, 1))
    seen.append(revision())
    (root / "A" / "new.png").rename(root / "A" / "newer.png")
    seen.append(revision())
    assert len(set(seen)) == len(seen)
    (root / "A" / "newer.png").unlink()
    assert revision() == seen[0]


def test_the_place_of_a_source_does_not_matter(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(root)
    revisions = {image_source.revision(image_source.entries(str(place))) for place in (root, tmp_path / "elsewhere")}
    assert len(revisions) == 1


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("", ValueError, "The source is missing"),
        ("nowhere", FileNotFoundError, "There is no source .*nowhere"),
        ("scans/A/one.png", NotADirectoryError, "is a file. Set it to a directory"),
    ],
)
def test_what_is_no_source_is_called_what_it_is(
    name: str, error: type[Exception], sentence: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=sentence):
        image_source.entries(name and str(tmp_path / name))


# In a bucket.

ODD = (
    "A/one two.png",
    "A/ünï.png",
    "A/p+q.png",
    "A/50%.png",
    "A/%41.png",
    "A/x#y.png",
    "A/a?b&c=d.png",
    "A/back\\slash.png",
    "A/<'\">.png",
    "B/deep/t.DCM",
    "patients.csv",
)
NO_PART = (".x/hidden.png", "A/.hidden.png", "A/patients.csv", "A/notes.txt", "synth.json")
ZEBEDEE = "A/zebedee_1.png"


@dataclass
class Scans:
    """A source in a bucket, behind a proxy, and its plain client."""

    server: S3Server
    faults: Faults
    prefix: str

    @property
    def address(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def put(self, name: str, data: bytes) -> None:
        client(self.server).put_object(BUCKET, f"{self.prefix}/{name}", io.BytesIO(data), len(data))

    def remove(self, name: str) -> None:
        client(self.server).remove_object(BUCKET, f"{self.prefix}/{name}")

    def entry(self, name: str = ZEBEDEE) -> image_source.Entry:
        return next(entry for entry in image_source.entries(self.address) if entry.name == name)

    def read(self, entry: image_source.Entry) -> bytes:
        with image_source.open_source(self.address).file(entry) as path:
            return path.read_bytes()


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture
def scans(behind: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scans]:
    """A bucket with one scan."""
    with faulty(behind) as (server, faults):
        keys = tmp_path.with_suffix(".keys")  # in a file, so that they can be renewed
        keys.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        made = Scans(behind, faults, tmp_path.name)
        made.put(ZEBEDEE, b"a scan" * 10_000)
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("kind", [moto, rclone, minio])
def test_odd_names_in_a_bucket_are_names_as_in_a_directory(
    kind: Callable[[Path], AbstractContextManager[S3Server]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scans"
    with kind(tmp_path / "server") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for name in (*ODD, *NO_PART):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(name.encode())
            client(server).put_object(BUCKET, f"my scans/{name}", io.BytesIO(name.encode()), len(name.encode()))
        client(server).put_object(BUCKET, "my scans 2/A/other.png", io.BytesIO(b"x"), 1)
        there = image_source.open_source(f"s3://{BUCKET}/my scans/")
        found = there.entries()
        here = image_source.entries(str(folder))
        assert [(entry.name, entry.size) for entry in found] == [(entry.name, entry.size) for entry in here]
        assert {entry.name for entry in found} == set(ODD)
        for entry in found:
            assert contracts.digest(there.read(entry)) == contracts.digest(entry.name.encode())
        assert there.has("synth.json")
        assert not there.has("other.json")
        names = [entry.name for entry in image_source.entries(f"s3://{BUCKET}")]
        assert names == sorted(["my scans 2/A/other.png", *(f"my scans/{name}" for name in ODD if "/" in name)])


@pytest.mark.slow
def test_marks_of_folders_and_empty_parts_of_names_do_no_harm(scans: Scans) -> None:
    for name in ("A/", "B.png/", "A//two.png"):
        scans.put(name, b"" if name.endswith("/") else b"x")
    found = image_source.entries(scans.address)
    assert [entry.name for entry in found] == ["A//two.png", ZEBEDEE]


LISTED = "<Contents><Key>s/{}</Key><ETag>&quot;e&quot;</ETag><Size>1</Size></Contents>"


def test_names_that_lead_elsewhere_are_no_part_of_a_source(scans: Scans, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("../escaped.png", "A/../../escaped.png", "./A/escaped.png", "A/one.png")
    listing = f"<ListBucketResult><Name>bucket</Name>{''.join(map(LISTED.format, names))}</ListBucketResult>"
    with speaking(listing) as (address, asked):  # few servers take such names
        monkeypatch.setenv("AWS_ENDPOINT_URL", address.rstrip("/"))
        assert [entry.name for entry in image_source.entries(f"s3://{BUCKET}/s")] == ["A/one.png"]
    assert len(asked) == 1


def test_a_file_of_a_bucket_is_here_for_a_while_under_a_name_of_ours(scans: Scans, tmp_path: Path) -> None:
    there = image_source.open_source(scans.address)
    with there.file(scans.entry()) as path:
        assert path.read_bytes() == b"a scan" * 10_000
        assert "zebedee" not in str(path)
        assert path.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_listing_goes_on_over_pages(scans: Scans) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: scans.put(f"B/{number}.png", b"x"), range(1001)))
    scans.faults.force("list", "cut", "503", "cut, no length")
    assert len(image_source.entries(scans.address)) == 1002
    assert scans.faults.requests["list"] == 5


def test_the_revision_follows_the_etag(scans: Scans) -> None:
    first = image_source.revision(image_source.entries(scans.address))
    scans.put(ZEBEDEE, b"a scan" * 10_000)
    assert image_source.revision(image_source.entries(scans.address)) == first, "the same content again is no change"
    scans.put(ZEBEDEE, b"A scan" * 10_000)
    assert image_source.revision(image_source.entries(scans.address)) != first


@pytest.mark.parametrize("fault", [kind for kind, on in KINDS.items() if not on or "get" in on])
def test_a_file_arrives_whole_whatever_befalls_the_request(fault: str, scans: Scans) -> None:
    entry = scans.entry()
    scans.faults.force("get", fault, *([] if fault == "slow" else [fault]))
    assert scans.read(entry) == b"a scan" * 10_000
    assert scans.faults.total >= 1


@pytest.mark.parametrize("conditional", [True, False])
def test_what_changed_or_went_since_it_was_listed_is_not_read(
    conditional: bool, scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not conditional:  # a server that does not look at If-Match
        stack = ExitStack()
        server = stack.enter_context(rclone(tmp_path / "server"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        scans = Scans(server, scans.faults, scans.prefix)
        scans.put(ZEBEDEE, b"a scan" * 10_000)
    entry = scans.entry()
    scans.put(ZEBEDEE, b"A scan" * 10_000)
    with pytest.raises(RuntimeError, match=f"^{image_source.CHANGED}$"):
        scans.read(entry)
    scans.remove(ZEBEDEE)
    with pytest.raises(RuntimeError, match=f"^{image_source.CHANGED}$"):
        scans.read(entry)
    if not conditional:
        stack.close()


@pytest.mark.slow
def test_what_changes_between_two_halves_is_not_glued_together(scans: Scans) -> None:
    entry = scans.entry()
    scans.faults.force("get", "cut", "slow")
    scans.faults.drip = 0.5
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(scans.read, entry)
        while not scans.faults.injected["cut", "get"]:
            time.sleep(0.001)
        scans.put(ZEBEDEE, b"A scan" * 10_000)
        with pytest.raises(RuntimeError, match=image_source.CHANGED):
            reading.result()


def test_an_object_that_always_arrives_cut_short_is_said_to(scans: Scans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    entry = scans.entry()
    shorter = image_source.Entry(entry.name, entry.size + 1, entry.changed)  # as if its last byte never came
    with pytest.raises(RuntimeError, match=image_source.CHANGED):
        scans.read(shorter)
    scans.faults.force("get", *["cut record"] * 40)
    with pytest.raises(
        ConnectionError, match=r"The source at .* returned an invalid response on all 10 attempts: .* bytes arrived"
    ):
        scans.read(entry)


WORDS = "User: bob is not authorized to perform: s3:GetObject on resource: arn:aws:s3:::bucket/A/zebedee_1.png"


@pytest.mark.parametrize(
    ("operation", "sentence"),
    [
        ("list", r"may not list objects in the bucket 'bucket' at"),
        ("get", "may not read objects in the bucket 'bucket'"),
    ],
)
def test_a_missing_right_is_named_and_no_scan_is(
    operation: str, sentence: str, scans: Scans, caplog: pytest.LogCaptureFixture
) -> None:
    entry = scans.entry()
    scans.faults.force(operation, Answer(403, "AccessDenied", WORDS), Answer(403, "AccessDenied", WORDS))
    with caplog.at_level(logging.DEBUG), pytest.raises(PermissionError, match=sentence) as refusal:
        scans.read(scans.entry() if operation == "list" else entry)
    told = "".join(traceback.format_exception(refusal.value)) + caplog.text
    assert "docs/storage.md" in told
    assert "zebedee" not in told


@pytest.mark.parametrize("operation", ["list", "get"])
def test_a_server_that_never_answers_well_is_named_and_no_scan_is(
    operation: str, scans: Scans, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    entry = scans.entry()
    scans.faults.force(operation, *[Answer(503, "SlowDown", WORDS)] * 10)
    with caplog.at_level(logging.DEBUG), pytest.raises(ConnectionError, match=r"source at .* SlowDown") as refusal:
        scans.read(scans.entry() if operation == "list" else entry)
    told = "".join(traceback.format_exception(refusal.value)) + caplog.text
    assert "zebedee" not in told


@pytest.mark.parametrize(
    ("address", "error", "sentence"),
    [
        ("s3://no-such-bucket/x", OSError, r"no bucket 'no-such-bucket' at .*Check the bucket's name in the source's"),
        (f"s3://{BUCKET}/nothing/here", FileNotFoundError, f"s3://{BUCKET}/nothing/here is empty"),
        ("s3://Bad_Name/x", ValueError, "The source's bucket is 'Bad_Name'.*Check its address"),
        ("s3:///x", ValueError, "The source is 's3:///x'"),
        ("https://example/x", ValueError, "must be a directory or s3://bucket/prefix"),
    ],
)
def test_an_address_that_leads_nowhere_is_called_what_it_is(
    address: str, error: type[Exception], sentence: str, scans: Scans
) -> None:
    with pytest.raises(error, match=sentence):
        image_source.entries(address)


@pytest.mark.parametrize(
    ("address", "name"),
    [("s3://bucket/a/chest scans/", "chest scans"), ("s3://bucket", "bucket"), ("s3://bucket/", "bucket")],
)
def test_a_source_is_called_by_the_last_part_of_its_address(address: str, name: str, scans: Scans) -> None:
    assert image_source.open_source(address).name == name


@pytest.mark.slow
def test_the_rights_that_the_docs_list_suffice_to_read_scans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "storage.md").read_text()
    policy = json.loads(page.partition("## Scans in a bucket")[2].partition("```json\n")[2].partition("```")[0])
    with minio(tmp_path / "server") as server:
        make_bucket(server, "scans")
        client(server).put_object("scans", "chest/A/zebedee_1.png", io.BytesIO(b"x"), 1)
        person = MinioAdmin(
            endpoint=urlsplit(server.endpoint).netloc, credentials=StaticProvider(KEY, SECRET), secure=False
        )
        person.user_add("reader", "readers-secret")
        settings = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "readers-secret"}
        for name, value in {**server.environment, **settings}.items():
            monkeypatch.setenv(name, value)

        def may(*statements: object) -> image_source.Source:
            person.policy_add("rights", policy={**policy, "Statement": statements})
            person.policy_set("rights", "reader")
            return image_source.open_source("s3://scans/chest")

        get, listing = policy["Statement"]
        there = may(get, listing)
        (entry,) = there.entries()
        assert contracts.digest(there.read(entry)) == contracts.digest(b"x")
        assert not there.has("synth.json")
        with pytest.raises(PermissionError, match="may not list objects in the bucket 'scans' at"):
            may(get).entries()
        with pytest.raises(PermissionError, match="may not read objects in the bucket 'scans' at") as refusal:
            may(listing).read(entry)
        assert "zebedee" not in str(refusal.value)


def test_a_source_without_keys_asks_for_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PermissionError, match=r"No keys for the source: .*Set AWS_ACCESS_KEY_ID"):
        image_source.entries(f"s3://{BUCKET}/x")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [moto, rclone, minio])
def test_a_large_scan_that_was_sent_in_parts_is_read_as_it_was_listed(
    kind: Callable[[Path], AbstractContextManager[S3Server]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * (6 * 2**12)
    with kind(tmp_path / "server") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        client(server).put_object(BUCKET, "s/A/large.dcm", io.BytesIO(data), len(data), part_size=5 * 2**20)
        there = image_source.open_source(f"s3://{BUCKET}/s")
        (entry,) = there.entries()
        assert contracts.digest(there.read(entry)) == contracts.digest(data)
