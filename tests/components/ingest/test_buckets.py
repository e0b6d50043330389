"""A source in a bucket becomes the same dataset as its copy in a directory, whatever the network does meanwhile."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.ingest.decode_group import AHEAD
from components.shared.privacy import keyed_hash
from components.shared.runtime.work import Result
from components.shared.storage import image_source
from components.shared.storage.store import Store, open_store
from tests.components.ingest.test_ingest import Scans, about, everything, many, merged, row_of, stored_bytes
from tests.components.shared.faults import Answer, Faults, faulty
from tests.components.shared.images import dicom, encoded, gray
from tests.components.shared.servers import BUCKET, S3Server, client, moto, rclone
from tests.components.shared.steps import step

pytestmark = pytest.mark.usefixtures("shared_template")

Kind = Callable[[Path], AbstractContextManager[S3Server]]
KEY = keyed_hash.parse(keyed_hash.SYNTHETIC)


@dataclass
class Copy:
    """Scans in a directory, and their copy in a bucket behind a proxy."""

    scans: Scans
    server: S3Server
    faults: Faults

    @property
    def address(self) -> str:
        return f"s3://{BUCKET}/hospital/{self.scans.root.name}"

    @property
    def revision(self) -> str:
        return image_source.revision(image_source.entries(self.address))

    def put(self, name: str, data: bytes) -> None:
        place = f"hospital/{self.scans.root.name}/{name}"
        client(self.server).put_object(BUCKET, place, io.BytesIO(data), len(data))

    def remove(self, name: str) -> None:
        client(self.server).remove_object(BUCKET, f"hospital/{self.scans.root.name}/{name}")

    def add(self, name: str) -> None:
        self.put(name, self.scans.add(name))

    def upload(self) -> None:
        for path in self.scans.root.rglob("*"):
            if path.is_file():
                self.put(path.relative_to(self.scans.root).as_posix(), path.read_bytes())

    def gets(self) -> int:
        """How often a file was asked for since the last time."""
        return self.faults.requests.pop("get", 0)

    def before_get(self, number: int, act: Callable[[], None]) -> None:
        """Let something happen in the bucket just before it is asked for a file for this time."""
        tell = self.faults.next

        def told(operation: str, headers: Mapping[str, str]) -> str | Answer:
            if operation == "get" and self.faults.requests["get"] == number - 1:
                act()
            return tell(operation, headers)

        self.faults.next = told  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture
def copy(behind: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copy]:
    """Two classes of four images."""
    made = Scans(tmp_path / tmp_path.name)
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        for number in range(4):
            made.add(f"{name}/{name.lower()}{number // 2}_{number}.png", label=label)
    with _copied(made, behind, 0.0, monkeypatch) as copied:
        yield copied


@contextmanager
def _copied(scans: Scans, server: S3Server, rate: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copy]:
    with faulty(server, rate, seed=3) as (broken, faults):
        for name, value in broken.environment.items():
            monkeypatch.setenv(name, value)
        made = Copy(scans, server, faults)
        made.upload()
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def ingest(store: Store, place: Scans | Copy, **parameters: Any) -> Result:
    address = place.address if isinstance(place, Copy) else str(place.root)
    given = {"source": address, "revision": place.revision, "key_id": KEY.id, **parameters}
    return merged(store, [step("ingest", store, {}, **given)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [moto, rclone])
def test_a_bucket_gives_the_bytes_that_the_directory_gives_though_five_in_a_hundred_requests_fail(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = many(tmp_path)
    made.add("A/broken p+1 ü_1.png", b"this is no image")
    made.add("A/x 100%_1.dcm", dicom(np.arange(1024, dtype=np.uint16).reshape(32, 32), PatientID="17"))
    files = sorted(path.relative_to(made.root).as_posix() for path in made.root.rglob("*.*"))
    made.table(*({"file": name, "age": str(20 + number % 60)} for number, name in enumerate(files)))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    (tmp_path / "keys").write_text("[default]\naws_access_key_id = test-key\naws_secret_access_key = test-secret\n")
    with kind(tmp_path / "server") as server, _copied(made, server, 0.05, monkeypatch) as copy:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")  # from the file they can be renewed
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        one, other = open_store(str(tmp_path / "one")), open_store(str(tmp_path / "other"))
        here, there = ingest(one, made), ingest(other, copy)
        assert copy.faults.total > 10
    assert len(about(one, here)["shards"]) > 1
    assert everything(one, here) == everything(other, there)
    assert row_of(other, there, "A/x 100%_1.dcm")["patient_id"] == KEY.hash("patient", "17")
    assert row_of(other, there, files[7])["age"] == 27


@pytest.mark.slow
def test_what_is_known_is_neither_fetched_nor_decoded(store: Store, copy: Copy) -> None:
    first = ingest(store, copy)
    assert copy.gets() == 8, "each once"
    again = ingest(store, copy, classes=["NORMAL", "PNEUMONIA"])  # other work over the same files
    assert copy.gets() == 0
    assert again.outputs == first.outputs
    fewer = ingest(store, copy, max_side=64)
    assert copy.gets() == 8, "other masters are decoded from what is known"
    assert fewer.values == first.values


@pytest.mark.slow
def test_a_new_object_is_all_that_is_looked_at(store: Store, tmp_path: Path, behind: S3Server) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, _copied(many(tmp_path), behind, 0.0, monkeypatch) as copy:
        first = ingest(store, copy)
        copy.gets()
        copy.add("A/new_1.png")
        second = ingest(store, copy)
        assert copy.gets() == 1
        assert second.values["images"] == first.values["images"] + 1


@pytest.mark.slow
def test_an_object_that_went_is_forgotten_and_a_changed_one_is_read_anew(store: Store, copy: Copy) -> None:
    ingest(store, copy)
    copy.gets()
    copy.remove("NORMAL/normal0_0.png")
    copy.put("NORMAL/normal0_1.png", encoded(gray(77)))
    done = ingest(store, copy)
    assert copy.gets() == 1
    assert done.values["images"] == 7
    assert copy.scans.pixels_of(store, done, "NORMAL/normal0_1.png").tolist() == gray(77).tolist()
    known = b"".join(store.read(name) or b"" for name in store.names("masters"))
    assert KEY.hash("image", "NORMAL/normal0_1.png").encode() in known
    assert KEY.hash("image", "NORMAL/normal0_0.png").encode() not in known


@pytest.mark.slow
@pytest.mark.parametrize("change", ["changes", "vanishes"])
def test_a_source_that_changes_meanwhile_is_refused_and_the_same_work_may_be_tried_again(
    change: str, store: Store, copy: Copy
) -> None:
    name, revision = "PNEUMONIA/pneumonia1_3.png", copy.revision
    content = (copy.scans.root / name).read_bytes()
    act = (lambda: copy.put(name, content[:-1] + b"x")) if change == "changes" else (lambda: copy.remove(name))
    copy.before_get(1, act)
    with pytest.raises(RuntimeError) as caught:
        ingest(store, copy, revision=revision)
    assert str(caught.value) == image_source.CHANGED
    with pytest.raises(RuntimeError, match="changed after this run listed it"):
        ingest(store, copy, revision=revision)
    copy.put(name, content)
    assert ingest(store, copy, revision=revision).values["images"] == 8


@pytest.mark.slow
def test_objects_that_arrive_cut_short_are_fetched_on(store: Store, copy: Copy) -> None:
    copy.faults.force("get", *["cut", "cut record"] * AHEAD)
    assert ingest(store, copy).values["images"] == 8
    assert copy.faults.total == 2 * AHEAD


def test_an_object_that_may_not_be_read_is_told_by_its_hash(store: Store, copy: Copy) -> None:
    refused = Answer(403, "InvalidObjectState", "arn:aws:s3:::bucket/NORMAL/normal0_0.png lies in the archive")
    copy.faults.force("get", *[refused] * 8)
    with pytest.raises(OSError, match=r"InvalidObjectState.*It concerned the file [0-9a-f]{12}\.$") as refusal:
        ingest(store, copy)
    assert "normal0" not in str(refusal.value)


@pytest.mark.slow
def test_a_damaged_record_of_what_is_known_is_made_again(store: Store, copy: Copy) -> None:
    first = ingest(store, copy)
    for name in store.names("masters"):
        store.write(name, b"{")
    copy.gets()
    assert ingest(store, copy, classes=["NORMAL", "PNEUMONIA"]).outputs == first.outputs
    assert copy.gets() == 8


@pytest.mark.slow
def test_the_data_set_is_called_by_the_last_part_of_the_address(store: Store, copy: Copy) -> None:
    assert about(store, ingest(store, copy))["name"] == copy.scans.root.name


@pytest.mark.slow
def test_no_name_in_a_bucket_reaches_the_store_and_no_file_stays(
    store: Store, copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    copy.add("NORMAL/zebedee_1.png")
    copy.put("NORMAL/zebedee_2.png", b"zebedee")
    copy.put("NORMAL/zebedee_3.dcm", dicom(np.arange(1024, dtype=np.uint16).reshape(32, 32), PatientName="ZEBEDEE"))
    assert ingest(store, copy).values["images"] == 10
    assert store.names("masters")
    found = list(stored_bytes(Path(store.uri)))
    assert [name for name, data in found if "ZEBEDEE" in (name + data.decode("latin-1")).upper()] == []
    assert list((tmp_path / "tmp").iterdir()) == []
